"""Cache: copies of a session's objects in a local directory, for programs that use `S3Storage` without a mount.

A mounted session needs none of this: its backing files are the cache. Here a copy is used only after the bucket has
said that it is of the current version, so a stale read cannot happen; a file that was not uploaded yet is never
evicted; all others are, least recently used first, when the directory holds more than `limit` bytes.

Between two awaits `_copies` and `_pending` agree with each other; the directory may be behind them by one file
operation."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import cachetools
import trio

from vfs.fileref import FileRef, build_file_ref
from vfs.storage.beneath import Beneath, Place
from vfs.storage.objects import Objects

__all__ = ["Cache"]

ASIDE = ".mount-session-"


@dataclass(frozen=True, slots=True)
class Copy:
    """A file of the directory as it was when it was the same as the object of `version`."""

    size: int
    mtime_ns: int
    version: str


class _Evicting(cachetools.LRUCache[str, Copy]):
    """Least recently used first, with the file."""

    def __init__(self, files: Beneath, limit: int) -> None:
        super().__init__(limit, getsizeof=lambda copy: copy.size)
        self._files = files

    def popitem(self) -> tuple[str, Copy]:
        path, copy = super().popitem()
        _unlink(self._files, path)
        return path, copy


class Cache:
    """Copies below `directory`, clean ones of at most `limit` bytes together."""

    def __init__(self, directory: Path, limit: int, objects: Objects) -> None:
        self.directory = directory
        self.failures: dict[str, OSError] = {}
        self._objects = objects
        self._files = Beneath(directory)
        self._copies = _Evicting(self._files, limit)
        self._pending: dict[str, int] = {}  # path -> generation of its newest content that is not uploaded
        self._generation = 0
        self._uploading: dict[str, trio.Lock] = {}

    async def open(self) -> None:
        await trio.to_thread.run_sync(lambda: self.directory.mkdir(mode=0o700, parents=True, exist_ok=True))

    async def remove(self) -> None:
        self._copies.clear()
        self._pending.clear()
        await trio.to_thread.run_sync(lambda: shutil.rmtree(self.directory, ignore_errors=False))

    def is_pending(self, path: str) -> bool:
        return path in self._pending

    async def write(self, path: str, content: bytes, *, later: bool) -> FileRef:
        """Keep the content here and upload it: before this returns, or, `later`, by a task whose failure `sync`
        raises."""
        await trio.to_thread.run_sync(self._put, path, content)
        self._generation += 1
        self._pending[path] = self._generation
        self._copies.pop(path, None)
        if not later:
            return await self._upload(path)
        trio.lowlevel.spawn_system_task(self._upload_behind, path)
        return build_file_ref(path, content, storage_url=await self._objects.url(path))

    async def read(self, path: str) -> bytes:
        if path in self._pending:
            return await trio.to_thread.run_sync(self._content, path)
        current = await self._objects.stat(path)
        copy = self._copies.get(path)
        if copy is not None and copy.version == current.version:
            content = await trio.to_thread.run_sync(self._unchanged, path, copy)
            if content is not None:
                return content
        blob = await self._objects.read(path)
        await trio.to_thread.run_sync(self._put, path, blob.content)
        await self._remember(path, blob.version)
        return blob.content

    async def forget(self, path: str) -> None:
        """Drop the copy: the file is about to be deleted."""
        self._pending.pop(path, None)
        self._copies.pop(path, None)
        await trio.to_thread.run_sync(_unlink, self._files, path)

    async def sync(self) -> list[FileRef]:
        """Upload what is pending and what someone else wrote into the directory. An ExceptionGroup has what failed."""
        for path, status in (await trio.to_thread.run_sync(self._scan)).items():
            copy = self._copies.get(path)
            if copy is None or (copy.size, copy.mtime_ns) != (status.st_size, status.st_mtime_ns):
                self._generation += 1
                self._pending.setdefault(path, self._generation)
        uploaded: list[FileRef] = []
        self.failures.clear()
        for path in list(self._pending):
            try:
                uploaded.append(await self._upload(path))
            except OSError as e:
                self.failures[path] = e
        if self.failures:
            raise ExceptionGroup("files that could not be uploaded", list(self.failures.values()))
        return uploaded

    async def _upload_behind(self, path: str) -> None:
        try:
            if path in self._pending:
                await self._upload(path)
        except OSError as e:
            self.failures[path] = e

    async def _upload(self, path: str) -> FileRef:
        lock = self._uploading.setdefault(path, trio.Lock())
        async with lock:
            generation = self._pending.get(path)
            with await trio.to_thread.run_sync(self._open, path) as file:
                before = os.fstat(file.fileno())
                ref = await self._objects.write_file(path, file, {"mtime_ns": before.st_mtime_ns})
                after = os.fstat(file.fileno())
            unchanged = (before.st_mtime_ns, before.st_size) == (after.st_mtime_ns, after.st_size)
            if unchanged and self._pending.get(path) == generation:
                self._pending.pop(path, None)
                self.failures.pop(path, None)
                self._keep(path, Copy(after.st_size, after.st_mtime_ns, ref.version or ""))
            return ref

    async def _remember(self, path: str, version: str) -> None:
        status = await trio.to_thread.run_sync(self._status, path)
        self._keep(path, Copy(status.st_size, status.st_mtime_ns, version))

    def _keep(self, path: str, copy: Copy) -> None:
        if copy.size <= self._copies.maxsize:
            self._copies[path] = copy
        else:
            _unlink(self._files, path)

    def _status(self, path: str) -> os.stat_result:
        with self._files.at(path) as place:
            return place.status()

    def _open(self, path: str) -> BinaryIO:
        with self._files.at(path) as place:
            return place.open()

    def _content(self, path: str) -> bytes:
        with self._open(path) as file:
            return file.read()

    def _put(self, path: str, content: bytes) -> None:
        with self._files.at(path, make=True) as place:
            aside = Place(place.directory, f"{ASIDE}{secrets.token_hex(8)}")
            try:
                aside.create(content)
                place.take(aside)
            except BaseException:
                aside.unlink()
                raise

    def _unchanged(self, path: str, copy: Copy) -> bytes | None:
        """The copy's content, unless it is gone or someone changed the file."""
        try:
            with self._open(path) as file:
                status = os.fstat(file.fileno())
                same = (status.st_size, status.st_mtime_ns) == (copy.size, copy.mtime_ns)
                return file.read() if same else None
        except FileNotFoundError:
            return None

    def _scan(self) -> dict[str, os.stat_result]:
        return {path: found for path, found in self._files.files() if not Path(path).name.startswith(ASIDE)}


def _unlink(files: Beneath, path: str) -> None:
    """Delete the file, if it is there. What lies behind a symlink is not ours."""
    try:
        with files.at(path) as place:
            place.unlink()
    except OSError as e:
        if e.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EXDEV):
            raise
