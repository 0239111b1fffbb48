"""Cache: copies of a session's objects in a local directory, for programs that use `S3Storage` without a mount.

A mounted session needs none of this: its backing files are the cache. Here a copy is used only after the bucket has
said that it is of the current version, so a stale read cannot happen; a file that was not uploaded yet is never
evicted; all others are, least recently used first, when the directory holds more than `limit` bytes.

What others write into the directory is pending from when it is noticed: by `sync`, by a read of the file, and before
it is replaced or deleted. Between two awaits no path is in both `_copies` and `_pending`; what decides on a file, and
what is done to it, has no await in between."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import cachetools
import trio

from vfs.callbacks import Context
from vfs.fileref import FileRef, build_file_ref
from vfs.storage.beneath import Beneath, Place
from vfs.storage.bucket import ANY, Condition
from vfs.storage.copies import Copies, Copy
from vfs.storage.objects import Objects

__all__ = ["Cache"]

ASIDE = ".mount-session-"


class Pending(NamedTuple):
    """Content that is not uploaded yet."""

    change: int  # of `_changes`
    condition: Condition


class _Evicting(cachetools.LRUCache[str, Copy]):
    """Least recently used first, with the file."""

    def __init__(self, limit: int, evict: Callable[[str, Copy], None]) -> None:
        super().__init__(limit, getsizeof=lambda copy: copy.size)
        self._evict = evict

    def popitem(self) -> tuple[str, Copy]:
        path, copy = super().popitem()
        self._evict(path, copy)
        return path, copy


class Cache:
    """Copies below `directory`, clean ones of at most `limit` bytes together."""

    def __init__(self, directory: Path, limit: int, objects: Objects) -> None:
        self.directory = directory
        self.failures: dict[str, OSError] = {}
        self._objects = objects
        self._files = Beneath(directory)
        self._copies = _Evicting(limit, self._evict)
        # No session id has a tilde: this is no other session's directory.
        self._known = Copies(directory.with_name(f"{directory.name}~copies.db"))
        self._pending: dict[str, Pending] = {}
        self._changes: Counter[str] = Counter()  # path -> how often it was written or deleted here
        self._uploading: defaultdict[str, trio.Lock] = defaultdict(trio.Lock)

    async def open(self) -> None:
        await trio.to_thread.run_sync(lambda: self.directory.mkdir(mode=0o700, parents=True, exist_ok=True))
        for path, copy in await trio.to_thread.run_sync(self._known.load):
            self._hold(path, copy)

    def close(self) -> None:
        self._known.close()

    async def remove(self) -> None:
        """Forget all. No upload is under way when this returns, and none begins."""
        self._pending.clear()
        for lock in list(self._uploading.values()):
            async with lock:
                pass
        self._copies.clear()
        await trio.to_thread.run_sync(self._remove_directory)
        await trio.to_thread.run_sync(self._known.remove)

    def is_pending(self, path: str) -> bool:
        return path in self._pending

    async def write(self, path: str, content: bytes, *, later: bool) -> FileRef:
        """Keep the content here and upload it, whatever is there: before this returns, or, `later`, by a task whose
        failure `sync` raises."""
        if not later:
            async with self._uploading[path]:
                return await self._upload(path, await self._accept(path, content))
        await self._accept(path, content)
        trio.lowlevel.spawn_system_task(self._upload_behind, path)
        return build_file_ref(path, content, storage_url=await self._objects.url(path))

    async def read(self, path: str) -> bytes:
        self._notice(path)
        if path in self._pending:
            return await trio.to_thread.run_sync(self._content, path)
        change = self._changes[path]
        current = await self._objects.stat(path)
        copy = self._copies.get(path)
        if copy is not None and copy.version == current.version:
            content = await trio.to_thread.run_sync(self._unchanged, path, copy)
            if content is not None:
                return content
        blob = await self._objects.read(path)

        def is_wanted() -> bool:
            self._notice(path)
            return path not in self._pending and self._changes[path] == change

        if (status := await self._put(path, blob.content, is_wanted)) is not None:
            self._keep(path, Copy(status.st_size, status.st_mtime_ns, blob.version))
        return blob.content

    async def forget(self, path: str) -> None:
        """Drop the copy: the file is about to be deleted. No upload is under way when this returns, and none begins."""
        async with self._uploading[path]:
            self._changes[path] += 1
            self._pending.pop(path, None)
            self._copies.pop(path, None)
            self._unlink(path)
            self._known.drop(path)

    async def sync(self) -> list[FileRef]:
        """Upload what is pending and what someone else wrote into the directory. An ExceptionGroup has what failed: a
        Conflict for what was written here on top of a version that the bucket has no longer."""
        for path in await trio.to_thread.run_sync(self._scan):
            self._notice(path)
        uploaded: list[FileRef] = []
        self.failures.clear()
        for path in list(self._pending):
            try:
                uploaded += await self._upload_pending(path)
            except OSError as e:
                self.failures[path] = e
        if self.failures:
            raise ExceptionGroup("files that could not be uploaded", list(self.failures.values()))
        return uploaded

    async def _upload_behind(self, path: str) -> None:
        try:
            await self._upload_pending(path)
        except OSError as e:
            self.failures[path] = e

    async def _upload_pending(self, path: str) -> list[FileRef]:
        async with self._uploading[path]:
            pending = self._pending.get(path)
            return [] if pending is None else [await self._upload(path, pending)]

    async def _accept(self, path: str, content: bytes) -> Pending:
        await self._put(path, content)
        return self._mark(path, ANY)

    async def _upload(self, path: str, pending: Pending) -> FileRef:
        """The caller has the path's lock."""
        with await trio.to_thread.run_sync(self._open, path) as file:
            status = os.fstat(file.fileno())
            context: Context = {"mtime_ns": status.st_mtime_ns}
            if pending.condition is not ANY:
                context["if_version"] = pending.condition
            ref = await self._objects.write_file(path, file, context)
        copy = Copy(status.st_size, status.st_mtime_ns, ref.version or "")
        if self._pending.get(path) == pending:
            del self._pending[path]
            self.failures.pop(path, None)
            self._keep(path, copy)
            self._notice(path)
        elif path in self._pending:  # written again meanwhile
            self._known.put(path, copy)
        return ref

    def _mark(self, path: str, condition: Condition) -> Pending:
        self._changes[path] += 1
        self._pending[path] = pending = Pending(self._changes[path], condition)
        self._copies.pop(path, None)
        return pending

    def _notice(self, path: str) -> None:
        """A file that is no copy, or is not what the copy was, has been written by someone else: it is pending, to
        replace the version that the copy was of, or nothing."""
        status, copy = self._status(path), self._copies.get(path)
        if status is not None and path not in self._pending and not (copy is not None and copy.is_of(status)):
            self._mark(path, None if copy is None else copy.version)

    def _keep(self, path: str, copy: Copy) -> None:
        self._known.put(path, copy)
        self._hold(path, copy)

    def _hold(self, path: str, copy: Copy) -> None:
        self._copies.pop(path, None)
        if copy.size <= self._copies.maxsize:
            self._copies[path] = copy
        else:
            self._evict(path, copy)

    def _evict(self, path: str, copy: Copy) -> None:
        """Delete the copy's file. If it is not the copy any more it is someone's work, and stays."""
        status = self._status(path)
        if status is not None and not copy.is_of(status):
            self._mark(path, copy.version)
            return
        if status is not None:
            self._unlink(path)
        self._known.drop(path)

    def _status(self, path: str) -> os.stat_result | None:
        """The file's, if there is one. What lies behind a symlink is none."""
        with _absent_is_fine(), self._files.at(path) as place:
            status = place.status()
            return status if stat.S_ISREG(status.st_mode) else None
        return None

    def _unlink(self, path: str) -> None:
        with _absent_is_fine(), self._files.at(path) as place:
            place.unlink()

    def _open(self, path: str) -> BinaryIO:
        with self._files.at(path) as place:
            return place.open()

    def _content(self, path: str) -> bytes:
        with self._open(path) as file:
            return file.read()

    async def _put(
        self, path: str, content: bytes, is_wanted: Callable[[], bool] = lambda: True
    ) -> os.stat_result | None:
        """Replace the file, if that is still wanted once the content is on disk; its status then. Nothing else happens
        between the question and the return."""
        with self._files.at(path, make=True) as place:
            aside = Place(place.directory, f"{ASIDE}{secrets.token_hex(8)}")
            try:
                await trio.to_thread.run_sync(_fill, aside, content)
                if not is_wanted():
                    return None
                status = aside.status()
                place.take(aside)
                return status
            finally:
                aside.unlink()

    def _unchanged(self, path: str, copy: Copy) -> bytes | None:
        """The copy's content, unless it is gone or someone changed the file."""
        with _absent_is_fine(), self._open(path) as file:
            return file.read() if copy.is_of(os.fstat(file.fileno())) else None
        return None

    def _remove_directory(self) -> None:
        if self.directory.exists():
            shutil.rmtree(self.directory)

    def _scan(self) -> list[str]:
        return [path for path, _ in self._files.files() if not Path(path).name.startswith(ASIDE)]


def _fill(place: Place, content: bytes) -> None:
    with place.create() as file:
        file.write(content)


@contextlib.contextmanager
def _absent_is_fine() -> Iterator[None]:
    """There is no file of ours: nothing, or what someone else put in its place or in that of a directory above."""
    try:
        yield
    except OSError as e:
        if e.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EXDEV, errno.ELOOP):
            raise
