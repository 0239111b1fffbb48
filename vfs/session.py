"""A session: one tree of files, its journal and its content. What `mount` and the Python API call.

What changes names or attributes is synchronous (see `tree`); what moves bytes is async. A call answers only when what
it promises would survive the death of this process; `fsync` and `sync` when it would survive power loss.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from vfs import rules
from vfs.compaction import Compaction
from vfs.content import Content
from vfs.errors import error
from vfs.event import Event
from vfs.events import Events
from vfs.fileref import validate_session_id
from vfs.files import Files
from vfs.inode import Inode
from vfs.journal import Journal
from vfs.namespace import ROOT, Namespace
from vfs.options import Options
from vfs.policy import Policy
from vfs.receipt import Receipt
from vfs.records import Dirty, Reclaim, Setattr
from vfs.recovery import recover
from vfs.routes import Routes
from vfs.rules import Changes
from vfs.state import State
from vfs.tree import KERNEL, Caller, Ownership, Tree

__all__ = ["KERNEL", "Caller", "Ownership", "Receipt", "Session"]


class Session(Tree):
    """Open one with `Session.open`; it is yours alone until the block ends."""

    def __init__(
        self,
        session_id: str,
        state: State,
        content: Content,
        namespace: Namespace,
        journal: Journal,
        policy: Policy,
        *,
        adopted: bool,
    ) -> None:
        super().__init__(session_id, namespace, journal, policy)
        self.directory = state.directory
        self.content = content
        self._adopted = adopted
        self._lookups: dict[int, int] = {}
        self._opens: dict[int, int] = {}
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
        policy: Policy | None = None,
        routes: Routes | None = None,
        options: Options | None = None,
    ) -> AsyncIterator[Session]:
        """The session `session_id` below the directory `state`, made new where there is none.

        `read_only`, `owner`: short for a policy that says no more. With `routes` it is a `persisted.PersistedSession`.

        `adopted`: the kernel holds inodes of an earlier process of this mount. Raises StateInUse, UnsupportedState,
        DamagedState, PermissionError, and ValueError for an id that cannot be one.
        """
        validate_session_id(session_id)
        owner = owner or Ownership()
        policy = policy or Policy(uid=owner.uid, gid=owner.gid, read_only=read_only)
        make = cls._maker(routes, options)
        held = State(state / session_id, session_id)
        clean = False
        try:
            with contextlib.closing(Content(held.directory / "content")) as content:
                told = Events(session_id, held.directory, options or Options(), powered_off=held.powered_off)
                with contextlib.closing(told.log):
                    namespace, journal = recover(
                        held.directory,
                        content,
                        crashed=held.crashed,
                        powered_off=held.powered_off,
                        replayed=told.replayed,
                    )
                    with contextlib.closing(journal):
                        session = make(session_id, held, content, namespace, journal, policy, adopted=adopted)
                        session._tell(told)
                        async with session._running():
                            yield session
                        with trio.CancelScope(shield=True):
                            await trio.to_thread.run_sync(session._flush)
            clean = True
        finally:
            held.close(clean=clean)

    _nursery: trio.Nursery
    happened: Events

    def _tell(self, events: Events) -> None:
        self.happened = events
        self.compaction = Compaction(self.directory, self.journal, events)
        self.on_soft_limit = events.passed
        events.attach(self, adopted=self._adopted)
        self.observers.insert(0, events)

    def events(self, since: int | None = 0, *, follow: bool = True) -> AsyncIterator[Event]:
        """What happens here, from the event after number `since` on (None: from now on); see docs/events.md.

        Without `follow` it ends with the last one.
        """
        return self.happened.subscribe(since, follow=follow)

    @classmethod
    def _maker(cls, routes: Routes | None, options: Options | None) -> Callable[..., Session]:
        if routes is None:
            return cls
        from vfs.persisted import PersistedSession  # a Session itself, and of no concern to one without routes

        return partial(PersistedSession, routes=routes, options=options or Options())

    @contextlib.asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        """The session's own tasks run until the block ends. What the block raises comes out as it is, in no group."""
        failure: Exception | None = None
        async with trio.open_nursery() as self._nursery:
            try:
                self._begin()
                self.happened.run(self._nursery)
                await self._start()
                self.happened.started()
                yield
                await self._stop()
                await self.happened.finish()
            except Exception as e:
                failure = e
            self._nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _start(self) -> None:
        """Before the session is used: what needs its tasks."""

    async def _stop(self) -> None:
        """After it was used: its tasks still run."""

    def _begin(self) -> None:
        root = self.namespace.root
        if root.ctime_ns == 0:
            uid = os.geteuid() if self.owner.uid is None else self.owner.uid
            gid = os.getegid() if self.owner.gid is None else self.owner.gid
            now = time.time_ns()
            mode = 0o755 & ~self.policy.umask
            self._commit(Setattr(ROOT, now, mode=mode, uid=uid, gid=gid, atime_ns=now, mtime_ns=now))
        if self.namespace.orphans and not self._adopted:
            self._reclaim(list(self.namespace.orphans))

    def _flush(self) -> None:
        self.content.sync_all()
        self.journal.sync()
        self.happened.log.sync()

    def _segment_full(self) -> None:
        self.compaction.begin(self._nursery)

    def spawn(self, task: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        """Run beside the requests, until the session ends."""
        self._nursery.start_soon(task, *arguments)

    @cached_property
    def files(self) -> Files:
        """The session by paths, for the program that has it open."""
        return Files(self)

    @property
    def unlisted(self) -> bool:
        return False  # whether a persistence may hold names that are not here, which only `find` finds

    async def find(self, parent: int, name: bytes) -> Inode | None:
        return None

    async def settle(self, inode: Inode) -> None:
        """For an inode with `remote`: its attributes are true when this returns."""

    async def settle_directory(self, ino: int) -> None:
        """So for all inodes in a directory, except where the persistence does not answer: see `is_settled`."""

    def is_settled(self, inode: Inode) -> bool:
        return True

    def blocks(self, inode: Inode) -> int:
        """Units of 512 bytes that the file takes, holes not counted."""
        if not inode.size or inode.remote or not inode.is_file:
            return (inode.size + 511) // 512
        return self.content.allocated(inode.ino)

    # ---- attributes

    async def setattr(self, ino: int, changes: Changes, caller: Caller) -> Inode:
        """chmod, chown, truncate, utimens; times to the nanosecond."""
        self._writable()
        self.actor = caller
        inode = self.namespace.inode(ino)
        if self.owner.uid is not None or self.owner.gid is not None:
            changes = msgspec.structs.replace(
                changes,
                uid=None if self.owner.uid is not None else changes.uid,
                gid=None if self.owner.gid is not None else changes.gid,
            )
        record = rules.setattr(inode, changes, time.time_ns(), pid=caller.pid)
        if changes.size is not None:
            self._resize(inode, changes.size, record)
        else:
            self._commit(record)
        if record.mtime_ns is not None:
            self.content.touch(ino, inode.mtime_ns)
        return inode

    def _resize(self, inode: Inode, size: int, record: Setattr) -> None:
        """A file grows before its record and shrinks after it: growing can fail, what was cut off cannot come back."""
        if self.quota is not None:
            self.quota.admit_size(inode, size)
        before = inode.size
        self._begin_write(inode, frees=size <= before)
        if size > before:
            self.content.truncate(inode.ino, size)
        try:
            self._commit(record, frees=size <= before)
        finally:
            if inode.size <= before:
                self.content.truncate(inode.ino, inode.size)
        for observer in self.observers:
            observer.written(inode)

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
            await self.setattr(ino, Changes(size=0, mode=rules.mode_after_write(inode, caller.uid)), caller)
        elif self.read_only and flags & os.O_ACCMODE != os.O_RDONLY:
            raise error(errno.EROFS, self.id)
        self._opens[ino] = self._opens.get(ino, 0) + 1
        if flags & os.O_ACCMODE:
            self.happened.opened(ino, caller)

    def create(self, parent: int, name: bytes, mode: int, caller: Caller) -> Inode:
        """A new regular file, open; EEXIST if the name is taken."""
        inode = self.mknod(parent, name, stat.S_IFREG | stat.S_IMODE(mode), caller)
        self._opens[inode.ino] = 1
        self.happened.opened(inode.ino, caller)
        return inode

    def is_open(self, ino: int) -> bool:
        return ino in self._opens

    def release(self, ino: int) -> None:
        """One open less; after the last, the file's changes may be persisted at once."""
        opens = self._opens.pop(ino, 1) - 1
        if opens > 0:
            self._opens[ino] = opens
            return
        inode = self.namespace.inodes.get(ino)
        if inode is None:
            return
        for observer in self.observers:
            observer.released(inode)
        self._let_go(inode)

    async def read(self, ino: int, offset: int, size: int) -> bytes:
        """Up to `size` bytes; fewer only at the end of the file."""
        inode = self._file(ino)
        size = min(size, inode.size - offset)
        if size <= 0:
            return b""
        content = self.content.read(ino, offset, size)
        if content is None:
            with self.content.lease(ino) as fd:
                content = await trio.to_thread.run_sync(self.content.read_waiting, fd, offset, size)
        if len(content) < size:
            content = content.ljust(min(size, inode.size - offset), b"\0")
        return content

    def _begin_write(self, inode: Inode, *, frees: bool = False) -> None:
        if not inode.unsettled or inode.sealed:
            self._commit(Dirty(inode.ino, inode.generation + 1), frees=frees)

    async def write(self, ino: int, offset: int, data: bytes) -> int:
        """Bytes taken: all, or fewer on a disk that is full; ENOSPC if none. Beyond the end, what is between is a
        hole."""
        self._writable()
        inode = self._file(ino)
        if self.quota is not None:
            data = data[: self.quota.admit_write(inode, offset, len(data))]
        self._begin_write(inode)
        taken, mtime_ns = self.content.write(ino, offset, data)
        if offset + taken > inode.size:
            self.namespace.resize(inode, offset + taken)
        inode.mtime_ns = mtime_ns
        if inode.ctime_ns < mtime_ns:
            inode.ctime_ns = mtime_ns
        for observer in self.observers:
            observer.written(inode)
        return taken

    # ---- durability

    async def fsync(self, ino: int, *, datasync: bool = False) -> None:
        """The file's bytes and attributes, its name, and all that was done to names before, are on disk.

        `datasync`: the mtime of a file that was only overwritten may come later (fdatasync(2)).
        """
        if self.namespace.inode(ino).is_file:
            await self.content.sync(ino, datasync=datasync)
        await self.sync_journal()

    async def sync_journal(self) -> None:
        """All records so far are on disk. One fdatasync(2) is for all who came before it began."""
        end = self.journal.end
        async with self._journal_sync:
            if not self.journal.is_synced(end):
                await trio.to_thread.run_sync(self.journal.sync)

    async def sync(self) -> Receipt:
        """A barrier: all that was done before it is on disk, and persisted where there is a persistence."""
        async with self._journal_sync:
            await trio.to_thread.run_sync(self._flush)
        return self.receipt()

    def receipt(self) -> Receipt:
        return Receipt(self.id, *self.namespace.named(), 0)

    def statvfs(self) -> os.statvfs_result:
        """Of the disk that the session is on: what is left there is what is left here, or less by the quota."""
        disk = self.content.statvfs()
        return disk if self.quota is None else self.quota.statvfs(disk)

    # ---- what the kernel holds

    def remember(self, ino: int) -> None:
        """The kernel has been told of the inode once more."""
        self._lookups[ino] = self._lookups.get(ino, 0) + 1

    def held(self) -> list[int]:
        """The inodes that the kernel may hold: at least the root, and after a worker's death all."""
        return list(self.namespace.inodes) if self._adopted else [ROOT, *self._lookups]

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
