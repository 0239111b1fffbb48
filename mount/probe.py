"""The probe: the first write and read through a new mount, which leave no trace in the session.

`up` says "mounted" only when real I/O has gone the whole way: kernel, worker, a file on the state directory's disk, and
back. The worker answers one look-up of a name that only it and the supervisor know (128 random bits), for one inode
whose number the session never gives out. It is not in the namespace, so it is in no listing, no journal and no event;
its bytes go to a file beside the journal that has no name any more. When the supervisor looks the name up again, it is
gone, and so is everything here: requests then reach `Operations` with nothing in between.

Only the worker imports this; `mount.mounted` does the supervisor's side.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields

INODE: Final = (1 << 63) - 1
CONTENT: Final = b"mount-session probe\n"
_ANSWERED: Final = ("lookup", "getattr", "setattr", "open", "read", "write", "release", "getxattr", "fsync")


def _nameless_file(directory: Path) -> int:
    """CONTENT on the disk that holds the session; in memory where that is full, for then files must be deletable."""
    try:
        with contextlib.ExitStack() as stack:
            fd, path = tempfile.mkstemp(dir=directory)
            stack.callback(os.close, fd)
            os.unlink(path)
            os.write(fd, CONTENT)
            stack.pop_all()
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        fd = os.memfd_create("probe")
        os.write(fd, CONTENT)
    return fd


class Probe:
    """Stands before an `Operations` by instance attributes, until the second look-up of its name."""

    def __init__(self, operations: pyfuse3.Operations, name: bytes, directory: Path) -> None:
        self._operations = operations
        self._name = name
        self._looked_up = False
        self._owner = os.geteuid(), os.getegid()
        self._fd = _nameless_file(directory)
        before = getattr(operations.lookup, "__self__", None)
        if isinstance(before, Probe):  # nobody came to look it up: who asked for it has given up
            os.close(before._fd)
        for handler in (*_ANSWERED, "forget"):
            setattr(operations, handler, getattr(self, handler))

    def _inner(self, handler: str) -> Any:
        return getattr(type(self._operations), handler).__get__(self._operations)

    def _leave(self) -> None:
        for handler in _ANSWERED:
            delattr(self._operations, handler)
        os.close(self._fd)

    def _attributes(self) -> EntryAttributes:
        entry = EntryAttributes()
        entry.st_ino = INODE
        entry.st_mode = stat.S_IFREG | 0o600
        entry.st_nlink = 1
        entry.st_uid, entry.st_gid = self._owner
        entry.st_size = os.fstat(self._fd).st_size
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        if name != self._name or parent_inode != pyfuse3.ROOT_INODE:
            found: EntryAttributes = await self._inner("lookup")(parent_inode, name, ctx)
            return found
        if self._looked_up:
            self._leave()
            raise FUSEError(errno.ENOENT)
        self._looked_up = True
        return self._attributes()

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        if inode != INODE:
            found: EntryAttributes = await self._inner("getattr")(inode, ctx)
            return found
        return self._attributes()

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        if inode != INODE:
            found: EntryAttributes = await self._inner("setattr")(inode, attr, fields, fh, ctx)
            return found
        return self._attributes()

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        if inode != INODE:
            opened: FileInfo = await self._inner("open")(inode, flags, ctx)
            return opened
        return FileInfo(fh=INODE, direct_io=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        if fh != INODE:
            content: bytes = await self._inner("read")(fh, off, size)
            return content
        return os.pread(self._fd, size, off)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        if fh != INODE:
            taken: int = await self._inner("write")(fh, off, buf)
            return taken
        return os.pwrite(self._fd, buf, off)

    async def release(self, fh: int) -> None:
        if fh != INODE:
            await self._inner("release")(fh)

    async def fsync(self, fh: int, datasync: bool) -> None:
        if fh != INODE:
            await self._inner("fsync")(fh, datasync)

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        if inode != INODE:
            value: bytes = await self._inner("getxattr")(inode, name, ctx)
            return value
        raise FUSEError(pyfuse3.ENOATTR)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """The kernel lets go of the probe's inode at some time after the second look-up; then this goes too."""
        if any(inode == INODE for inode, _ in inode_list):
            del self._operations.forget
        rest = [pair for pair in inode_list if pair[0] != INODE]
        if rest:
            await self._inner("forget")(rest)
