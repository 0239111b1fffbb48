"""LocalStorage: a session's files as plain files in a directory.

The directory is `<base_path>/<prefix>_<session id>` (`<base_path>/<session id>` without a prefix), and is what a
container may mount. Writes are atomic and durable: a file aside, fsync, rename. What is ours lies in
`.mount-session/` below it, which no path reaches. A version is made of inode, size and mtime: every write here makes
a new inode, every edit by others changes the rest."""

from __future__ import annotations

import errno
import io
import os
import secrets
import shutil
import stat
import tempfile
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

import trio

from vfs.callbacks import Context
from vfs.errors import Conflict, error
from vfs.fileref import FileRef, compute_checksum, guess_content_type, validate_session_id
from vfs.storage.base import Backend, FileRefs, relative
from vfs.storage.beneath import Beneath, Place
from vfs.storage.keys import RESERVED

__all__ = ["LocalStorage"]

T = TypeVar("T")

COPIED_AT_ONCE = 1 << 20
_IMAGE = f"{RESERVED}/image"


class LocalStorage(Backend):
    """`cleanup_on_exit`: `cleanup` removes the files, as an ephemeral session wants it; otherwise it keeps them."""

    def __init__(
        self, *, base_path: str | Path | None = None, prefix: str = "mount-session", cleanup_on_exit: bool = True
    ) -> None:
        self.base_path = Path(tempfile.gettempdir() if base_path is None else base_path)
        self.prefix = prefix
        self.cleanup_on_exit = cleanup_on_exit
        self._directory: Path | None = None
        # Check and change are one step for this process; rename and link make them safe to see for others.
        self._changing = threading.Lock()

    async def init(self, session_id: str, **options: Any) -> Self:
        """Bind to a session and make its directory."""
        self._session_id = validate_session_id(session_id)
        if unknown := options.keys() - {"base_path", "prefix", "cleanup_on_exit"}:
            raise ValueError(f"unknown option {', '.join(sorted(unknown))}")
        self.base_path = Path(options.get("base_path", self.base_path))
        self.prefix = options.get("prefix", self.prefix)
        self.cleanup_on_exit = options.get("cleanup_on_exit", self.cleanup_on_exit)
        name = f"{self.prefix}_{session_id}" if self.prefix else session_id
        directory = self.base_path / name
        await _in_thread(lambda: (directory / RESERVED).mkdir(mode=0o700, parents=True, exist_ok=True))
        self._directory = directory
        return self

    @property
    def directory(self) -> Path:
        if self._directory is None:
            raise error(errno.EINVAL, why="LocalStorage is bound to no session; call init first")
        return self._directory

    # The storage contract

    async def write(self, path: str, content: bytes) -> FileRef:
        return await _in_thread(lambda: self._write(path, io.BytesIO(content), {"checksum": compute_checksum(content)}))

    async def read(self, path: str) -> bytes:
        return await _in_thread(lambda: self._read(path, 0, -1, None))

    async def exists(self, path: str) -> bool:
        try:
            await self.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    async def stat(self, path: str) -> FileRef:
        return await _in_thread(lambda: self._ref(path, self._status(path)))

    async def delete(self, path: str) -> None:
        await _in_thread(lambda: self._delete(path, {}))

    async def list(self) -> AsyncIterator[FileRef]:
        for ref in await _in_thread(self._list):
            yield ref

    async def local_path(self) -> Path:
        return self.directory

    async def sync_to_remote(self) -> FileRefs:
        """Nothing is remote here: what was written is where it belongs."""
        return []

    async def cleanup(self) -> None:
        if self.cleanup_on_exit:
            await _in_thread(lambda: shutil.rmtree(self.directory))

    # The callbacks of a mounted session

    async def on_list(self, scope: object, context: Context) -> FileRefs:
        return await _in_thread(self._list)

    async def on_stat(self, scope: object, path: str, context: Context) -> FileRef:
        return await self.stat(relative(path))

    async def on_read(self, scope: object, path: str, context: Context) -> bytes:
        return await _in_thread(lambda: self._read(relative(path), 0, -1, context.get("if_version")))

    async def on_read_range(self, scope: object, path: str, offset: int, size: int, context: Context) -> bytes:
        return await _in_thread(lambda: self._read(relative(path), offset, size, context.get("if_version")))

    async def on_write(self, scope: object, path: str, content: bytes, context: Context) -> FileRef:
        return await _in_thread(lambda: self._write(relative(path), io.BytesIO(content), context))

    async def on_write_file(self, scope: object, path: str, file: BinaryIO, context: Context) -> FileRef:
        return await _in_thread(lambda: self._write(relative(path), file, context))

    async def on_delete(self, scope: object, path: str, context: Context) -> None:
        await _in_thread(lambda: self._delete(relative(path), context))

    async def on_move(self, scope: object, old: str, new: str, context: Context) -> FileRef:
        return await _in_thread(lambda: self._move(relative(old), relative(new), context))

    async def on_load_image(self, scope: object, context: Context) -> tuple[bytes, str] | None:
        def load() -> tuple[bytes, str] | None:
            try:
                with self._files.at(_IMAGE) as place, place.open() as file:
                    return file.read(), _version(os.fstat(file.fileno()))
            except FileNotFoundError:
                return None

        return await _in_thread(load)

    async def on_save_image(self, scope: object, image: bytes, context: Context) -> str:
        return _version(await _in_thread(lambda: self._replace(_IMAGE, io.BytesIO(image), context)))

    # In threads

    @property
    def _files(self) -> Beneath:
        return Beneath(self.directory)

    def _at(self, path: str) -> AbstractContextManager[Place]:
        """Where the file is; refused where a symlink that someone made might lead out of the session."""
        _refuse_reserved(path)
        return self._files.at(path)

    def _status(self, path: str) -> os.stat_result:
        with self._at(path) as place:
            return _regular(place, path)

    def _read(self, path: str, offset: int, size: int, version: str | None) -> bytes:
        with self._at(path) as place:
            _regular(place, path)
            file = place.open()
        with file:
            found = _version(os.fstat(file.fileno()))
            if version is not None and found != version:
                raise Conflict(path, found)
            file.seek(offset)
            return file.read(size)

    def _write(self, path: str, content: BinaryIO, context: Context) -> FileRef:
        _refuse_reserved(path)
        return self._ref(path, self._replace(path, content, context), context.get("checksum"))

    def _replace(self, path: str, content: BinaryIO, context: Context) -> os.stat_result:
        """Put `content` in place of the file, whole or not at all; its status."""
        with ExitStack() as held:
            aside = held.enter_context(self._files.at(f"{RESERVED}/aside-{secrets.token_hex(8)}"))
            held.callback(aside.unlink)
            with aside.create() as copy:
                shutil.copyfileobj(content, copy, COPIED_AT_ONCE)
                copy.flush()
                if (mode := context.get("mode")) is not None:
                    os.fchmod(copy.fileno(), stat.S_IMODE(mode))
                if (mtime := context.get("mtime_ns")) is not None:
                    os.utime(copy.fileno(), ns=(mtime, mtime))
                os.fsync(copy.fileno())
            with self._changing:
                self._check(path, context)
                place = held.enter_context(self._files.at(path, make=True))
                self._rename(aside, place, context, path)
            os.fsync(place.directory)
            return place.status()

    def _check(self, path: str, context: Context) -> None:
        if "if_version" not in context:
            return
        try:
            with self._files.at(path) as place:
                found = _version(place.status())
        except (FileNotFoundError, NotADirectoryError):
            found = None
        if found != context["if_version"]:
            raise Conflict(path, found)

    @staticmethod
    def _rename(aside: Place, place: Place, context: Context, path: str) -> None:
        if "if_version" in context and context["if_version"] is None:
            try:
                place.link(aside)  # unlike a rename, it never replaces what another process just made
            except FileExistsError as e:
                raise Conflict(path) from e
        else:
            place.take(aside)

    def _delete(self, path: str, context: Context) -> None:
        with self._changing:
            try:
                with self._at(path) as place:
                    found = _version(place.status())
                    wanted = context.get("if_version")
                    if wanted is not None and found != wanted:
                        raise Conflict(path, found)
                    place.unlink()
            except (FileNotFoundError, NotADirectoryError):
                return
            self._prune(path)

    def _move(self, old: str, new: str, context: Context) -> FileRef:
        _refuse_reserved(new)
        with self._changing, self._at(old) as source:
            found = _version(_regular(source, old))
            wanted = context.get("if_version")
            if wanted is not None and found != wanted:
                raise Conflict(old, found)
            with self._files.at(new, make=True) as target:
                target.take(source)
                os.fsync(target.directory)
                status = target.status()
            self._prune(old)
        return self._ref(new, status)

    def _prune(self, path: str) -> None:
        """Remove directories that a deletion left empty, as an object store would not have them either."""
        while folder := path.rpartition("/")[0]:
            try:
                with self._files.at(folder) as place:
                    os.rmdir(place.name, dir_fd=place.directory)
            except OSError as e:
                if e.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT, errno.ENOTDIR, errno.EXDEV):
                    return
                raise
            path = folder

    def _list(self) -> FileRefs:
        """Regular files only; symlinks are neither listed nor followed."""
        ours = f"{RESERVED}/"
        return [self._ref(path, status) for path, status in self._files.files() if not path.startswith(ours)]

    def _ref(self, path: str, status: os.stat_result, checksum: str | None = None) -> FileRef:
        return FileRef(
            path=path,
            size=status.st_size,
            content_type=guess_content_type(path),
            checksum=checksum,
            storage_url=(self.directory / path).absolute().as_uri() if path.isascii() else None,
            created_at=datetime.fromtimestamp(status.st_ctime, UTC),
            version=_version(status),
            mtime_ns=status.st_mtime_ns,
            mode=stat.S_IMODE(status.st_mode),
        )


def _refuse_reserved(path: str) -> None:
    if path.split("/", 1)[0] == RESERVED:
        raise error(errno.EPERM, path, f"{RESERVED} is reserved in a local storage")


def _regular(place: Place, path: str) -> os.stat_result:
    status = place.status()
    if not stat.S_ISREG(status.st_mode):
        raise error(errno.ENOENT, path, "not a regular file")
    return status


async def _in_thread(work: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(work)


def _version(status: os.stat_result) -> str:
    return f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"
