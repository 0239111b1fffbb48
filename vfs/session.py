"""A session: one tree of files, its journal and its content. What `mount` and the Python API call.

Calls that change names or attributes are synchronous: between the check, the record in the journal and the change
nothing
is awaited, so each is atomic. Calls that move bytes are async. A call answers only when what it promises would survive
the death of this process; `fsync` and `sync` when it would survive power loss.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from pathlib import Path
from typing import Protocol

import msgspec
import trio

from vfs import rules
from vfs.content import Content
from vfs.errors import error
from vfs.fileref import validate_session_id
from vfs.inode import Dentry, Inode
from vfs.journal import Journal
from vfs.namespace import ROOT, Namespace
from vfs.records import Dirty, Make, Reclaim, Record, Setattr
from vfs.recovery import recover
from vfs.rules import Changes
from vfs.state import State

__all__ = ["KERNEL", "Caller", "Observer", "Ownership", "Receipt", "Session"]

log = logging.getLogger(__name__)

_SEGMENT_BYTES = 4 << 20  # replay of a segment of this size takes about 0.3 s


class Caller(Protocol):
    """Who asks: the thread, and the user that new inodes belong to."""

    @property
    def pid(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...


class _Kernel(msgspec.Struct, frozen=True):
    pid: int = 0
    uid: int = os.geteuid()
    gid: int = os.getegid()


KERNEL = _Kernel()
"""The caller for what no program asked for: this process itself."""


class Ownership(msgspec.Struct, frozen=True):
    """One user and group for all that is in the session, or None: as it is."""

    uid: int | None = None
    gid: int | None = None


class Receipt(msgspec.Struct, frozen=True):
    """What a sync or a stop leaves behind: files and bytes in the session, and changes that are not yet persisted."""

    session: str
    files: int
    bytes: int
    pending: int


class Observer(Protocol):
    """Told of every change after it was made, in order; must neither raise nor wait."""

    def committed(self, record: Record, inode: Inode | None) -> None: ...
    def written(self, inode: Inode) -> None: ...
    def released(self, inode: Inode) -> None: ...


class Session:
    """Open one with `Session.open`; it is yours alone until the block ends."""

    def __init__(
        self,
        session_id: str,
        state: State,
        content: Content,
        namespace: Namespace,
        journal: Journal,
        *,
        read_only: bool,
        adopted: bool,
        owner: Ownership,
    ) -> None:
        self.id = session_id
        self.directory = state.directory
        self.namespace = namespace
        self.content = content
        self.journal = journal
        self.read_only = read_only
        self.owner = owner
        self.observers: list[Observer] = []
        self._state = state
        self._adopted = adopted
        self._lookups: dict[int, int] = {}
        self._opens: dict[int, int] = {}
        self._compacting = False
        self._journal_sync = trio.Lock()

    @classmethod
    @contextlib.asynccontextmanager
    async def open(
        cls,
        session_id: str,
        state: Path,
        *,
        read_only: bool = False,
        adopted: bool = False,
        owner: Ownership | None = None,
    ) -> AsyncIterator[Session]:
        """The session `session_id` below the directory `state`, made new where there is none.

        `adopted`: the kernel holds inodes of an earlier process of this mount. Raises StateInUse, UnsupportedState,
        DamagedState, PermissionError, and ValueError for an id that cannot be one.
        """
        validate_session_id(session_id)
        owner = owner or Ownership()
        held = State(state / session_id, session_id)
        content = Content(held.directory / "content")
        try:
            namespace, journal = recover(held.directory, content, crashed=held.crashed)
            session = cls(
                session_id, held, content, namespace, journal, read_only=read_only, adopted=adopted, owner=owner
            )
            session._begin()
            async with trio.open_nursery() as nursery:
                session._nursery = nursery
                yield session
                nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(session._flush)
        except BaseException:
            held.close(clean=False)
            raise
        else:
            journal.close()
            held.close(clean=True)
        finally:
            content.close()

    _nursery: trio.Nursery

    def _begin(self) -> None:
        root = self.namespace.root
        if root.ctime_ns == 0:
            uid = self.owner.uid if self.owner.uid is not None else os.geteuid()
            gid = self.owner.gid if self.owner.gid is not None else os.getegid()
            now = time.time_ns()
            self._commit(Setattr(ROOT, now, uid=uid, gid=gid, atime_ns=now, mtime_ns=now))
        if self.namespace.orphans and not self._adopted:
            self._reclaim(list(self.namespace.orphans))

    def _flush(self) -> None:
        self.content.sync_all()
        self.journal.sync()

    # ---- records

    def _commit(self, record: Record) -> Inode | None:
        """The record into the journal, then into the namespace."""
        self.journal.append(record)
        inode = self.namespace.apply(record)
        for observer in self.observers:
            observer.committed(record, inode)
        if self.journal.size > _SEGMENT_BYTES and not self._compacting:
            self._compacting = True
            self._nursery.start_soon(self._compact)
        return inode

    async def _compact(self) -> None:
        """Close the segment and have the next image made of it, by a process of its own."""
        try:
            upto = self.journal.rotate()
            command = [sys.executable, "-m", "vfs.image", str(self.directory), str(upto)]
            done = await trio.run_process(command, check=False, capture_stderr=True)
            if done.returncode != 0:
                log.error("%s: no new image (status %d): %s", self.id, done.returncode, done.stderr.decode()[-2000:])
        finally:
            self._compacting = False

    def _writable(self) -> None:
        if self.read_only:
            raise error(errno.EROFS, self.id)

    # ---- names

    def lookup(self, parent: int, name: bytes) -> Inode:
        """The inode that `name` means in the directory; ENOENT, ENOTDIR, ENAMETOOLONG."""
        return rules.child(self.namespace, parent, name)

    def getattr(self, ino: int) -> Inode:
        return self.namespace.inode(ino)

    def blocks(self, inode: Inode) -> int:
        """Units of 512 bytes that the file takes, holes not counted."""
        if not inode.size or inode.remote or not inode.is_file:
            return (inode.size + 511) // 512
        return self.content.allocated(inode.ino)

    def mknod(
        self, parent: int, name: bytes, mode: int, caller: Caller, *, rdev: int = 0, target: bytes = b""
    ) -> Inode:
        """A new inode of the kind in `mode`: mknod(2), mkdir(2), symlink(2), or open(2) with O_CREAT."""
        self._writable()
        uid = caller.uid if self.owner.uid is None else self.owner.uid
        gid = caller.gid if self.owner.gid is None else self.owner.gid
        record = rules.make(
            self.namespace, parent, name, mode, uid, gid, time.time_ns(), pid=caller.pid, rdev=rdev, target=target
        )
        return self._made(record)

    def _made(self, record: Make) -> Inode:
        inode = self._commit(record)
        assert inode is not None
        return inode

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Inode:
        return self.mknod(parent, name, stat.S_IFDIR | stat.S_IMODE(mode), caller)

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Inode:
        return self.mknod(parent, name, stat.S_IFLNK | 0o777, caller, target=target)

    def readlink(self, ino: int) -> bytes:
        inode = self.namespace.inode(ino)
        if not inode.is_symlink:
            raise error(errno.EINVAL, f"inode {ino}")
        return inode.target

    def link(self, ino: int, parent: int, name: bytes, caller: Caller) -> Inode:
        self._writable()
        self._commit(rules.link(self.namespace, ino, parent, name, time.time_ns(), pid=caller.pid))
        return self.namespace.inode(ino)

    def unlink(self, parent: int, name: bytes, caller: Caller) -> None:
        """The name goes; the file stays readable and writable for those who have it open."""
        self._writable()
        inode = self._commit(rules.unlink(self.namespace, parent, name, time.time_ns(), pid=caller.pid))
        self._let_go(inode)

    def rmdir(self, parent: int, name: bytes, caller: Caller) -> None:
        self._writable()
        inode = self._commit(rules.rmdir(self.namespace, parent, name, time.time_ns(), pid=caller.pid))
        self._let_go(inode)

    def rename(
        self, old_parent: int, old_name: bytes, new_parent: int, new_name: bytes, flags: int, caller: Caller
    ) -> None:
        """rename(2); `flags` as for renameat2(2): RENAME_NOREPLACE, RENAME_EXCHANGE."""
        self._writable()
        record = rules.rename(
            self.namespace, old_parent, old_name, new_parent, new_name, flags, time.time_ns(), pid=caller.pid
        )
        if record is None:
            return
        directory = self.namespace.directory(new_parent)
        assert directory.entries is not None
        replaced = directory.entries.get(new_name)
        before = replaced.inode if replaced else None
        self._commit(record)
        self._let_go(before)

    def readdir(self, ino: int, after: int) -> Iterator[Dentry]:
        """Entries in the order of their cookies, from the first above `after`; `.` and `..` are not among them."""
        return self.namespace.list(self.namespace.directory(ino), after)

    # ---- attributes

    async def setattr(self, ino: int, changes: Changes, caller: Caller) -> Inode:
        """chmod, chown, truncate, utimens; times to the nanosecond."""
        self._writable()
        inode = self.namespace.inode(ino)
        if self.owner.uid is not None:
            changes.uid = None
        if self.owner.gid is not None:
            changes.gid = None
        now = time.time_ns()
        if changes.size is not None and inode.is_file:
            self._begin_write(inode)
        self._commit(rules.setattr(inode, changes, now, pid=caller.pid))
        if changes.size is not None:
            self.content.truncate(ino, changes.size)
            for observer in self.observers:
                observer.written(inode)
        if changes.mtime_ns is not None or changes.size is not None:
            self.content.touch(ino, inode.mtime_ns)
        return inode

    def setxattr(self, ino: int, name: bytes, value: bytes, caller: Caller) -> None:
        self._writable()
        inode = self.namespace.inode(ino)
        self._commit(rules.setxattr(inode, name, value, time.time_ns(), pid=caller.pid))

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """ENODATA if there is none of that name."""
        xattrs = self.namespace.inode(ino).xattrs
        if xattrs is None or name not in xattrs:
            raise error(errno.ENODATA, name)
        return xattrs[name]

    def listxattr(self, ino: int) -> list[bytes]:
        return list(self.namespace.inode(ino).xattrs or ())

    def removexattr(self, ino: int, name: bytes, caller: Caller) -> None:
        self._writable()
        self._commit(rules.removexattr(self.namespace.inode(ino), name, time.time_ns(), pid=caller.pid))

    # ---- bytes

    def _file(self, ino: int) -> Inode:
        inode = self.namespace.inode(ino)
        if not inode.is_file:
            raise error(errno.EISDIR if inode.is_dir else errno.EINVAL, f"inode {ino}")
        return inode

    async def open_file(self, ino: int, flags: int, caller: Caller) -> None:
        """open(2) of a file that exists: O_TRUNC is carried out here; each open is ended by one `release`."""
        inode = self._file(ino)
        if flags & os.O_TRUNC:
            if inode.size or inode.unsettled:
                await self.setattr(ino, Changes(size=0), caller)
        elif self.read_only and flags & os.O_ACCMODE != os.O_RDONLY:
            raise error(errno.EROFS, self.id)
        self._opens[ino] = self._opens.get(ino, 0) + 1

    def create(self, parent: int, name: bytes, mode: int, caller: Caller) -> Inode:
        """A new regular file, open; EEXIST if the name is taken."""
        inode = self.mknod(parent, name, stat.S_IFREG | stat.S_IMODE(mode), caller)
        self._opens[inode.ino] = 1
        return inode

    def release(self, ino: int) -> None:
        """One open less; after the last, the file's changes may be persisted at once."""
        opens = self._opens.pop(ino, 1) - 1
        if opens > 0:
            self._opens[ino] = opens
            return
        inode = self.namespace.inodes.get(ino)
        if inode is not None:
            for observer in self.observers:
                observer.released(inode)

    async def read(self, ino: int, offset: int, size: int) -> bytes:
        """Up to `size` bytes; fewer only at the end of the file."""
        inode = self._file(ino)
        size = min(size, inode.size - offset)
        if size <= 0:
            return b""
        content = self.content.read(ino, offset, size)
        if content is None:
            with self.content.lease(ino) as fd:
                content = await trio.to_thread.run_sync(os.pread, fd, size, offset)
        if len(content) < size:
            content = content.ljust(min(size, inode.size - offset), b"\0")
        return content

    def _begin_write(self, inode: Inode) -> None:
        if not inode.unsettled or inode.sealed:
            self._commit(Dirty(inode.ino, inode.generation + 1))

    async def write(self, ino: int, offset: int, data: bytes) -> int:
        """Bytes taken: all, or fewer on a disk that is full; ENOSPC if none. Beyond the end, what is between is a
        hole."""
        self._writable()
        inode = self._file(ino)
        self._begin_write(inode)
        taken, mtime_ns = self.content.write(ino, offset, data)
        if offset + taken > inode.size:
            inode.size = offset + taken
        inode.mtime_ns = mtime_ns
        if inode.ctime_ns < mtime_ns:
            inode.ctime_ns = mtime_ns
        for observer in self.observers:
            observer.written(inode)
        return taken

    # ---- durability

    async def fsync(self, ino: int) -> None:
        """The file's bytes and attributes, its name, and all that was done to names before, are on disk."""
        if self.namespace.inode(ino).is_file:
            with contextlib.suppress(FileNotFoundError), self.content.lease(ino) as fd:
                await trio.to_thread.run_sync(os.fdatasync, fd)
            if not self.content.is_durable(ino):
                await trio.to_thread.run_sync(self.content.sync_directory)
        if self.journal.needs_sync:
            async with self._journal_sync:
                if self.journal.needs_sync:
                    await trio.to_thread.run_sync(self.journal.sync)

    async def sync(self) -> Receipt:
        """A barrier: all that was done before it is on disk, and persisted where there is a persistence."""
        await trio.to_thread.run_sync(self._flush)
        return self.receipt()

    def receipt(self) -> Receipt:
        files = [inode for inode in self.namespace.inodes.values() if inode.is_file and inode.nlink]
        return Receipt(self.id, len(files), sum(inode.size for inode in files), 0)

    def statvfs(self) -> os.statvfs_result:
        """Of the disk that the session is on: what is left there is what is left here."""
        return self.content.statvfs()

    # ---- what the kernel holds

    def remember(self, ino: int) -> None:
        """The kernel has been told of the inode once more."""
        self._lookups[ino] = self._lookups.get(ino, 0) + 1

    def forget(self, forgotten: Iterable[tuple[int, int]]) -> None:
        """The kernel lets go of (inode, count) each; an inode without a name that it holds no more is reclaimed.

        Counts do not survive a worker, so one that begins with a mounted kernel takes a FORGET that brings its own
        count to nothing, or that it knows nothing of, as the last: the kernel sends it when it evicts the inode.
        """
        gone = []
        for ino, count in forgotten:
            left = self._lookups.pop(ino, 0) - count
            if left > 0:
                self._lookups[ino] = left
            elif ino in self.namespace.orphans:
                gone.append(ino)
        if gone:
            self._reclaim(gone)

    def _let_go(self, inode: Inode | None) -> None:
        """Reclaim an inode that has lost its last name, if nobody holds it."""
        if inode is None or inode.nlink or inode.ino in self._lookups or self._adopted or self._opens.get(inode.ino):
            return
        self._reclaim([inode.ino])

    def _reclaim(self, inos: list[int]) -> None:
        self._commit(Reclaim(inos))
        for ino in inos:
            self.content.remove(ino)
