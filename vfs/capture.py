"""A capture: one generation of a file's content, standing still while it is uploaded and the file is written on.

Small files are read at once. A large one is read from its backing file while it is uploaded, and every piece is
checked: a write makes a new generation before it changes a byte, so bytes that were read while the generation was still
the same are that generation's. If it is not, the read fails with `Torn`, and no half-old, half-new content ever looks
whole. For a file that is never left in peace `copy` holds its writers while it is copied.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, BinaryIO, cast

import trio

from vfs.inode import Inode
from vfs.pace import Pace

if TYPE_CHECKING:
    from vfs.persisted import PersistedSession

__all__ = ["SMALL", "Capture", "Torn", "capture", "capture_small"]

SMALL = 1 << 20
_PIECE = 1 << 20
_WAY = 8 << 20  # bytes after which a reader gives way to requests


class Torn(OSError):
    """The file was written while it was read (errno EAGAIN): a later generation will be uploaded instead."""

    def __init__(self, ino: int) -> None:
        super().__init__(errno.EAGAIN, "written meanwhile", f"inode {ino}")


class _Reader(io.RawIOBase):
    """The content of a large capture, as long as the inode's generation is the one captured."""

    def __init__(self, fd: int, captured: Capture, give_way: Callable[[], None]) -> None:
        super().__init__()
        self._fd = fd
        self._capture = captured
        self._size = captured.size
        self._at = 0
        self._give_way = give_way
        self._read = 0  # bytes since it gave way

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer)).cast("B")
        view = view[: min(_WAY, max(0, self._size - self._at))]
        if not view:
            return 0
        if self._read >= _WAY:
            self._give_way()
            self._read = 0
        got = os.preadv(self._fd, [view], self._at)
        if got == 0:  # a hole at the end that the backing file does not have
            view[:] = bytes(len(view))
            got = len(view)
        inode = self._capture.inode
        if inode is not None and inode.generation != self._capture.generation:
            self._capture.torn = True
            raise Torn(inode.ino)
        self._at += got
        self._read += got
        return got


class _File(io.BufferedReader):
    """All of it is read at once into the one place where it is wanted: else by 8 KiB, each a call from C to Python, in
    all of which requests wait for the interpreter."""

    def __init__(self, raw: _Reader, size: int) -> None:
        super().__init__(raw, _PIECE)
        self._size = size

    def read(self, size: int | None = -1) -> bytes:
        return super().read(max(0, self._size - self.tell()) if size is None or size < 0 else size)


class Capture:
    """`checksum` is lower-case hex SHA-256 of the whole; `content` is there for small files; `torn`: a read failed as
    the file was written meanwhile. `inode` is there while it has to be watched."""

    def __init__(
        self,
        inode: Inode,
        pace: Pace,
        *,
        content: bytes | None = None,
        fd: int = -1,
        watch: bool = False,
    ) -> None:
        self.inode = inode if watch else None
        self.generation = inode.generation
        self.mtime_ns = inode.mtime_ns
        self.size = inode.size if content is None else len(content)
        self.content = content
        self.checksum = "" if content is None else hashlib.sha256(content).hexdigest()
        self.torn = False
        self._fd = fd
        self._pace = pace

    def file(self) -> BinaryIO:
        """A new file object at the beginning of the content."""
        if self.content is not None:
            return io.BytesIO(self.content)
        return cast(BinaryIO, _File(_Reader(self._fd, self, self._pace.way()), self.size))


@contextlib.asynccontextmanager
async def capture(session: PersistedSession, inode: Inode, *, copy: bool = False) -> AsyncIterator[Capture]:
    """The file's content as it is now, all of which must be here. Raises Torn.

    From here on the generation is sealed: the next write begins another one. With `copy` a large file's writers wait
    while it is copied.
    """
    if inode.size <= SMALL:
        yield await capture_small(session, inode)
        return
    if copy:
        async with session.frozen(inode.ino):
            inode.sealed = True
            with session.content.lease(inode.ino) as source:
                fd = await trio.to_thread.run_sync(_copy, source, session.content.directory)
            captured = Capture(inode, session.writeback.pace, fd=fd)
        try:
            captured.checksum = await trio.to_thread.run_sync(_checksum, captured.file())
            yield captured
        finally:
            os.close(fd)
        return
    inode.sealed = True
    with session.content.lease(inode.ino) as fd:
        captured = Capture(inode, session.writeback.pace, fd=fd, watch=True)
        captured.checksum = await trio.to_thread.run_sync(_checksum, captured.file())
        yield captured


async def capture_small(session: PersistedSession, inode: Inode) -> Capture:
    """As `capture`, of a file of at most SMALL bytes."""
    for _ in range(8):
        inode.sealed = True
        generation, size = inode.generation, inode.size
        content = session.content.read(inode.ino, 0, size)
        if content is None:
            with session.content.lease(inode.ino) as fd:
                content = await trio.to_thread.run_sync(os.pread, fd, size, 0)
        if inode.generation == generation:
            return Capture(inode, session.writeback.pace, content=content.ljust(size, b"\0"))
    raise Torn(inode.ino)


def _checksum(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while piece := file.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()


def _copy(source: int, directory: os.PathLike[str]) -> int:
    """A descriptor of a nameless copy: shared blocks where the file system can, so that it takes no time."""
    copy = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        left, at = os.fstat(source).st_size, 0
        while left > 0:
            done = os.copy_file_range(source, copy, min(left, 1 << 30), at, at)
            if done == 0:
                break
            at += done
            left -= done
    except BaseException:
        os.close(copy)
        raise
    return copy
