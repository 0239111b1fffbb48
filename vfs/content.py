"""Backing files: the bytes of regular files, one file a inode, named by its number.

A file that was never written has none. While an inode is unsettled, its size and mtime are those of its backing file.
Open descriptors are a least-recently-used few hundred, because the hard limit can be low; `lease` gives a duplicate to
a thread, so that closing the cached one cannot pull it away.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import resource
import time
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import trio

from vfs.errors import error

__all__ = ["Content"]

_libc = ctypes.CDLL(None, use_errno=True)
_BUFFER = 1 << 20  # one for all reads: a new MiB each time costs 0.8 ms, this and a copy 0.05
_STEP = 4 << 20  # who reads on has twice that ahead of it on its way from the disk
_FAST_DISK_NS = 250_000  # a read through a thread costs about 200 us more than the read itself
_MOST_OPEN = 256
_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW


def _grow_table(fd: int, size: int) -> None:
    """Have the kernel's table of our descriptors hold `size` of them from now on.

    Where a process has threads each doubling waits for RCU: open(2) takes 8 to 33 ms then (measured), and with it all
    requests.
    """
    os.close(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, size - 1))


class Content:
    def __init__(self, directory: Path, *, max_open: int | None = None) -> None:
        directory.mkdir(mode=0o700, exist_ok=True)
        self.directory = directory
        self._dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._fds: OrderedDict[int, int] = OrderedDict()
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._max_open = max_open or min(_MOST_OPEN, allowed // 4)  # the rest is for leases and everything else
        _grow_table(self._dir_fd, min(2 * self._max_open, allowed))
        self._buffer = memoryview(mmap.mmap(-1, _BUFFER))
        self._disk_ns = 0
        self._read_to = (0, 0)
        self._undurable: set[int] = set()  # may have been made since the directory was last synced

    # ---- descriptors

    def _fd(self, ino: int, flags: int = 0) -> int:
        fd = self._fds.get(ino)
        if fd is not None:
            self._fds.move_to_end(ino)
            return fd
        fd = os.open(str(ino), _FLAGS | flags, 0o600, dir_fd=self._dir_fd)
        if len(self._fds) >= self._max_open:
            os.close(self._fds.popitem(last=False)[1])
        self._fds[ino] = fd
        return fd

    def _fd_or_new(self, ino: int) -> int:
        """The descriptor for writing. One open(2) whether the file is there or not: it may be new, so it counts as
        that."""
        if ino not in self._fds:
            self._undurable.add(ino)
        return self._fd(ino, os.O_CREAT)

    @contextlib.contextmanager
    def lease(self, ino: int) -> Iterator[int]:
        """A descriptor of the caller's own, for use in a thread; FileNotFoundError if there is no backing file."""
        fd = os.dup(self._fd(ino))
        try:
            yield fd
        finally:
            os.close(fd)

    # ---- bytes

    def read(self, ino: int, offset: int, size: int) -> bytes | None:
        """Up to `size` bytes, or None where the disk would keep the loop waiting: use `read_waiting` in a thread then.

        From a disk that has been answering faster than a thread can be had, bytes that are not cached are read at once.
        """
        try:
            fd = self._fd(ino)
        except FileNotFoundError:
            return b""
        end = offset + size
        if self._read_to == (ino, offset) and end % _STEP < size:
            os.posix_fadvise(fd, end, 2 * _STEP, os.POSIX_FADV_WILLNEED)
        self._read_to = (ino, end)
        buffer = self._buffer[:size]
        if len(buffer) < size:
            return None
        try:
            got = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            got = 0
        except OSError as e:
            if e.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            return os.pread(fd, size, offset)
        if got < size and offset + got < os.fstat(fd).st_size:
            return self.read_waiting(fd, offset, size) if self._disk_ns < _FAST_DISK_NS else None
        return bytes(buffer[:got])

    def read_waiting(self, fd: int, offset: int, size: int) -> bytes:
        """Read from the disk, and note how long that took (the mean of about the last eight)."""
        start = time.perf_counter_ns()
        content = os.pread(fd, size, offset)
        self._disk_ns += (time.perf_counter_ns() - start - self._disk_ns) // 8
        return content

    def write(self, ino: int, offset: int, data: bytes) -> tuple[int, int]:
        """Bytes taken (fewer on a disk that is getting full) and the new mtime; ENOSPC if none were taken.

        mtime is set from the clock that the namespace uses: the disk's own stamps come from a coarser one, and a file
        written after another was made would seem older.
        """
        fd = self._fd_or_new(ino)
        taken = os.pwrite(fd, data, offset)
        now = time.time_ns()
        os.utime(fd, ns=(now, now))
        return taken, now

    def truncate(self, ino: int, size: int) -> None:
        os.ftruncate(self._fd_or_new(ino), size)

    def touch(self, ino: int, mtime_ns: int) -> None:
        """The backing file, if there is one, has this mtime."""
        fd = self._fds.get(ino)
        if fd is not None:
            os.utime(fd, ns=(mtime_ns, mtime_ns))
            return
        with contextlib.suppress(FileNotFoundError):
            os.utime(str(ino), ns=(mtime_ns, mtime_ns), dir_fd=self._dir_fd)

    def stat(self, ino: int) -> os.stat_result | None:
        try:
            return os.stat(str(ino), dir_fd=self._dir_fd)
        except FileNotFoundError:
            return None

    def allocated(self, ino: int) -> int:
        """Blocks of 512 bytes that the backing file takes on disk."""
        stat = self.stat(ino)
        return 0 if stat is None else stat.st_blocks

    def remove(self, ino: int) -> None:
        fd = self._fds.pop(ino, None)
        if fd is not None:
            os.close(fd)
        self._undurable.discard(ino)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(str(ino), dir_fd=self._dir_fd)

    def inos(self) -> set[int]:
        """The inodes that have a backing file."""
        return {int(name) for name in os.listdir(self._dir_fd) if name.isdecimal()}

    # ---- durability

    def is_durable(self, ino: int) -> bool:
        """Whether the backing file's being there would survive power loss; its bytes are the caller's to sync."""
        return ino not in self._undurable

    async def sync(self, ino: int, *, datasync: bool = False) -> None:
        """The backing file, if there is one, is durably there, and so are its bytes."""
        with contextlib.suppress(FileNotFoundError), self.lease(ino) as fd:
            await trio.to_thread.run_sync(os.fdatasync if datasync else os.fsync, fd)
        if not self.is_durable(ino):
            await trio.to_thread.run_sync(self.sync_directory)

    def sync_directory(self) -> None:
        """All backing files are durably there. Blocks: call it in a thread."""
        durable = set(self._undurable)
        os.fsync(self._dir_fd)
        self._undurable -= durable

    def sync_all(self) -> None:
        """All backing files are on disk. Blocks: call it in a thread. One syncfs(2): 10,000 fsyncs would take 10 s."""
        durable = set(self._undurable)
        if _libc.syncfs(self._dir_fd) != 0:
            number = ctypes.get_errno()
            raise error(number, self.directory)
        self._undurable -= durable

    def statvfs(self) -> os.statvfs_result:
        return os.fstatvfs(self._dir_fd)

    def close(self) -> None:
        """Whoever still calls has EBADF: the numbers are soon another session's."""
        fds = [*self._fds.values(), self._dir_fd]
        self._fds.clear()
        self._dir_fd = -1
        for fd in fds:
            os.close(fd)
