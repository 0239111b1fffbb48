"""pyfuse3's requests -> vfs.Session, and back: the one place where an OSError becomes a FUSEError.

Every number that the kernel is given is an inode number: node ids, file handles and directory handles alike, so that
the next worker of this mount understands what this one answered. Time-outs are a year: the session is changed through
this mount only, and whatever changes it otherwise invalidates by name (see `invalidate`). Where others may change it
while it sleeps they are shorter (`lasting`).
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext, SetattrFields, StatvfsData

from mount.tally import Tally
from vfs.errors import errno_of
from vfs.inode import Inode
from vfs.persisted import PersistedSession
from vfs.rules import Changes
from vfs.session import Session

__all__ = ["Operations"]

log = logging.getLogger(__name__)

YEAR = 365 * 24 * 3600.0
TALLIES: dict[str, Tally] = {}
"""By operation. A process serves one session."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_LETTING_GO = 0.1  # seconds
_FIRST = 2  # readdir: `.` has cookie 1, `..` 2, and an entry its dentry's cookie and 2

P = ParamSpec("P")
R = TypeVar("R")
_Handler = Callable[Concatenate["Operations", P], Coroutine[Any, Any, R]]


def _answered(handler: _Handler[P, R]) -> _Handler[P, R]:
    """OSError -> FUSEError with its errno; anything else is a defect of ours: EIO, logged, and the mount goes on."""

    tally = TALLIES[handler.__name__] = Tally()
    clock, add = time.perf_counter, tally.add

    @wraps(handler)
    async def answer(self: Operations, /, *args: P.args, **kwargs: P.kwargs) -> R:
        began = clock()
        try:
            try:
                return await handler(self, *args, **kwargs)
            except OSError as e:
                if e.errno not in _FULL or not await self._room_comes():
                    raise
            return await handler(self, *args, **kwargs)
        except FUSEError:
            tally.errors += 1
            raise
        except OSError as e:
            tally.errors += 1
            raise FUSEError(errno_of(e) or errno.EIO) from None
        except Exception:
            tally.errors += 1
            log.exception("%s failed", handler.__name__)
            raise FUSEError(errno.EIO) from None
        finally:
            add(clock() - began)

    return answer


def _forget_pages(inos: list[int]) -> None:
    for ino in inos:
        with contextlib.suppress(FileNotFoundError):  # the kernel does not know the inode
            pyfuse3.invalidate_inode(ino)


class Operations(pyfuse3.Operations):
    supports_dot_lookup = True
    enable_writeback_cache = False

    def __init__(self, session: Session, lasting: float = YEAR) -> None:
        """`lasting`: the seconds for which the kernel may answer by itself what it was told."""
        super().__init__()
        self.session = session
        self.lasting = lasting
        self._absent = EntryAttributes()
        self._absent.st_ino = 0
        self._absent_now = EntryAttributes()
        self._absent_now.st_ino = 0
        self._absent_now.entry_timeout = 1  # someone else may make it, and no listing would tell
        self._outdated: dict[int, trio.Event] = {}  # inodes whose pages the kernel is about to forget
        self._read = session.read_view if isinstance(session, PersistedSession) else session.read
        session.invalidate = self._changed_elsewhere

    def _changed_elsewhere(self, names: list[tuple[int, bytes]], inos: list[int]) -> None:
        """Someone else changed these, in the persistence: the kernel forgets what it has cached of them.

        Never in the request loop: the kernel may hold a page's lock until the read of it is answered.
        """
        for parent, name in names:
            pyfuse3.invalidate_entry_async(parent, name, ignore_enoent=True)
        if inos:
            forgotten = trio.Event()
            self._outdated.update(dict.fromkeys(inos, forgotten))
            self.session.spawn(self._forget, inos, forgotten)

    async def _forget(self, inos: list[int], forgotten: trio.Event) -> None:
        try:
            await trio.to_thread.run_sync(_forget_pages, inos)
        finally:
            for ino in inos:
                if self._outdated.get(ino) is forgotten:
                    del self._outdated[ino]
            forgotten.set()

    async def _forgotten(self, ino: int) -> None:
        """Before the kernel is told a file's new size, or opens it, it has no old pages: it would show both as one."""
        while ino in self._outdated:
            await self._outdated[ino].wait()

    async def _room_comes(self) -> bool:
        """Was an inode without a name given back just now? The kernel lets go of a deleted file a moment after its
        unlink(2) has returned, and `rm` followed by a write must do on a full disk."""
        orphans = self.session.namespace.orphans
        before = len(orphans)
        with trio.move_on_after(_LETTING_GO if before else 0):
            while len(orphans) >= before:  # noqa: ASYNC110 - an event would cost something at every FORGET
                await trio.sleep(0.002)
        return len(orphans) < before

    def _attributes(self, inode: Inode) -> EntryAttributes:
        session = self.session
        entry = EntryAttributes()
        entry.st_ino = inode.ino
        entry.st_mode = inode.mode
        entry.st_nlink = inode.nlink
        entry.st_uid = inode.uid if session.owner.uid is None else session.owner.uid
        entry.st_gid = inode.gid if session.owner.gid is None else session.owner.gid
        entry.st_rdev = inode.rdev
        entry.st_size = inode.size
        entry.st_blksize = 4096
        entry.st_blocks = session.blocks(inode) if inode.size else 0
        entry.st_atime_ns = inode.atime_ns
        entry.st_mtime_ns = inode.mtime_ns
        entry.st_ctime_ns = inode.ctime_ns
        entry.entry_timeout = self.lasting
        entry.attr_timeout = self.lasting if not inode.remote or session.is_settled(inode) else 0
        return entry

    def _entry(self, inode: Inode) -> EntryAttributes:
        """Attributes for an answer that makes the kernel hold the inode once more."""
        self.session.remember(inode.ino)
        return self._attributes(inode)

    async def forget_attributes(self) -> None:
        """The kernel asks anew for the attributes of every inode: they are all others now."""
        for count, ino in enumerate(self.session.held()):
            try:
                pyfuse3.invalidate_inode(ino, attr_only=True)
            except FileNotFoundError:  # let go of since
                continue
            if count % 100 == 99:
                await trio.lowlevel.checkpoint()

    async def forget_names(self) -> None:
        """The kernel looks every name up anew: what is hidden is another now."""
        for count, inode in enumerate(list(self.session.namespace.inodes.values())):
            for dentry in inode.dentries:
                pyfuse3.invalidate_entry_async(dentry.parent.ino, dentry.name, ignore_enoent=True)
            if count % 100 == 99:
                await trio.lowlevel.checkpoint()

    # ---- names

    @_answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """ENOENT is answered with an entry without an inode, which the kernel keeps as a negative dentry."""
        try:
            inode = self.session.lookup(parent_inode, name)
        except FileNotFoundError:
            if not self.session.unlisted:
                self._absent.entry_timeout = self.lasting
                return self._absent
            found = await self.session.find(parent_inode, name)
            if found is None:
                return self._absent_now
            inode = found
        if inode.remote:
            await self.session.settle(inode)
        if self._outdated:
            await self._forgotten(inode.ino)
        return self._entry(inode)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        try:
            self.session.forget(inode_list)
        except Exception:
            log.exception("forget failed")  # the kernel waits for no answer; the inodes go at the next start

    @_answered
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(self.session.mkdir(parent_inode, name, mode, ctx))

    @_answered
    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        return self._entry(self.session.mknod(parent_inode, name, mode, ctx, rdev=rdev))

    @_answered
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._entry(self.session.symlink(parent_inode, name, target, ctx))

    @_answered
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self.session.readlink(inode)

    @_answered
    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._entry(self.session.link(inode, new_parent_inode, new_name, ctx))

    @_answered
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self.session.unlink(parent_inode, name, ctx)

    @_answered
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self.session.rmdir(parent_inode, name, ctx)

    @_answered
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        self.session.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx)

    # ---- attributes

    @_answered
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        found = self.session.getattr(inode)
        if found.remote:
            await self.session.settle(found)
        if self._outdated:
            await self._forgotten(inode)
        return self._attributes(found)

    @_answered
    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        changes = Changes(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        return self._attributes(await self.session.setattr(inode, changes, ctx))

    @_answered
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        """The kernel decides (`default_permissions`); it asks only whether the inode is still there."""
        self.session.getattr(inode)
        return True

    @_answered
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        return self.session.getxattr(inode, name)

    @_answered
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return self.session.listxattr(inode)

    @_answered
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        self.session.setxattr(inode, name, value, ctx)

    @_answered
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        self.session.removexattr(inode, name, ctx)

    @_answered
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        of = self.session.statvfs()
        data = StatvfsData()
        for field in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail"):
            setattr(data, field, getattr(of, field))
        data.f_namemax = 255
        return data

    # ---- directories

    @_answered
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return self.session.namespace.directory(inode).ino

    @_answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        directory = self.session.namespace.directory(fh)
        if start_id < 1 and not pyfuse3.readdir_reply(token, b".", self._attributes(directory), 1):
            return
        parent = directory.dentries[0].parent if directory.dentries else directory
        await self.session.settle_directory(fh)
        if start_id < _FIRST and not pyfuse3.readdir_reply(token, b"..", self._attributes(parent), _FIRST):
            return
        for dentry in self.session.readdir(fh, max(0, start_id - _FIRST)):
            attributes = self._attributes(dentry.inode)
            if not pyfuse3.readdir_reply(token, dentry.name, attributes, dentry.cookie + _FIRST):
                return
            self.session.remember(dentry.inode.ino)

    async def releasedir(self, fh: int) -> None:
        """A directory handle is an inode number: there is nothing to let go of."""

    @_answered
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self.session.fsync(fh)

    # ---- files

    @_answered
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        if self._outdated:
            await self._forgotten(inode)
        await self.session.open_file(inode, flags, ctx)
        return FileInfo(fh=inode, keep_cache=True)

    @_answered
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        """The kernel asks for this when it knows of no such entry; if there is one all the same, O_EXCL decides."""
        try:
            inode = self.session.create(parent_inode, name, mode, ctx)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            inode = self.session.lookup(parent_inode, name)
            await self.session.open_file(inode.ino, flags, ctx)
        return FileInfo(fh=inode.ino, keep_cache=True), self._entry(inode)

    @_answered
    async def read(self, fh: int, off: int, size: int) -> bytes | memoryview:  # type: ignore[override] # any buffer does
        content = await self._read(fh, off, size)
        _read.bytes += len(content)
        return content

    @_answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        taken = await self.session.write(fh, off, buf)
        _written.bytes += taken
        return taken

    async def flush(self, fh: int) -> None:
        """ENOSYS, which the kernel takes as "never ask again": every write was answered when it was safe, and locks
        are the kernel's own. Measured: open+read+close 127 -> 70 microseconds."""
        raise FUSEError(errno.ENOSYS)

    @_answered
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self.session.fsync(fh, datasync=datasync)

    @_answered
    async def release(self, fh: int) -> None:
        self.session.release(fh)


_read, _written = TALLIES["read"], TALLIES["write"]
