"""A session whose files are also somewhere else: in the persistences that its routes say.

It is a `Session` in every respect; what it adds to a request is a look at whether content is still there rather than
here, and at read-only and hidden places where a route has such. `Session.open` makes one when it is given routes, and
nothing of this is paid for without. `writeback` brings changes there, `hydration` content here, `refresh` what others
changed there.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping
from typing import Any

import trio

from vfs.adoption import adopt, make_base
from vfs.annotated import Annotated
from vfs.barrier import barrier, persisted
from vfs.cache import Cache
from vfs.content import Content
from vfs.describe import describe
from vfs.description import Row
from vfs.fileref import FileRef
from vfs.hydrate import Hydration
from vfs.inode import Inode
from vfs.joining import join
from vfs.journal import Journal
from vfs.namespace import ROOT, Namespace
from vfs.options import Options
from vfs.parts import Parts
from vfs.policy import Policy
from vfs.receipt import Pending, Receipt, StoredFile
from vfs.records import Record, Unlink
from vfs.refresh import Refresh, Refreshed
from vfs.routes import Route, Routes
from vfs.rules import Changes
from vfs.sizes import Sizes
from vfs.state import State
from vfs.telemetry import Traffic
from vfs.tree import Caller
from vfs.writeback import WriteBack

__all__ = ["PersistedSession"]

log = logging.getLogger(__name__)

LEFT = "left"  # a file in the state directory: the process before ended with the descriptions of the tree saved


class PersistedSession(Annotated):
    # Python finds an attribute of an object with more than 30 of them in a slower way.
    __slots__ = (
        *("_frozen", "_sizes", "_stored", "cache", "descriptions", "hydration"),
        *("leaving", "listing", "options", "traffic", "writeback"),
    )

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
        routes: Routes,
        options: Options,
    ) -> None:
        super().__init__(session_id, state, content, namespace, journal, policy, adopted=adopted, routes=routes)
        self.options = options
        self.traffic = Traffic()
        self.hydration = Hydration(self, powered_off=state.powered_off)
        self.writeback = WriteBack(self, options)
        self.cache = Cache(self)
        self.listing = Refresh(self)
        self._sizes = Sizes(self)
        self.observers.append(Parts(self))
        self.descriptions = [found for route in routes if (found := describe(self, route)) is not None]
        self.leaving = False
        self._frozen: dict[int, trio.Event] = {}
        self._stored: dict[bytes, StoredFile] = {}

    async def _start(self) -> None:
        self.hydration.begin()
        left = self._adopted and (self.directory / LEFT).exists()
        (self.directory / LEFT).unlink(missing_ok=True)  # a crash that comes now leaves nothing like it
        if self._adopted or self.options.behind:  # who waits for an answer does not wait for a listing
            for description in self.descriptions:
                description.resume(saved=left)
            self._make_bases()
            self.spawn(self._catch_up, frozenset(self.namespace.inodes))
        else:
            await self._take_up()
        for description in self.descriptions:
            self.spawn(description.run)
        self.writeback.notes.note_all()
        self._nursery.start_soon(self.writeback.run)
        self._nursery.start_soon(self.listing.run)

    def _make_bases(self) -> None:
        for route in self.routes:
            make_base(self, route)

    async def _take_up(self) -> None:
        """What the persistences hold, before the session is used."""
        before = frozenset(self.namespace.inodes) if self.namespace.next_ino > ROOT + 1 else frozenset()
        for description in self.descriptions:
            await description.begin(fresh=not before)
        await self.listing.begin()
        self._make_bases()
        for description in self.descriptions:
            await description.take_up(before)
            description.listening = True

    async def _catch_up(self, before: frozenset[int]) -> None:
        """What others did in the persistences while no process looked after this session."""
        await self.listing.attempt()
        for description in self.descriptions:
            if not description.pending:  # else its save finds out
                await description.catch_up(before)

    async def leave(self) -> None:
        """The session is about to end without waiting for what is pending: another process goes on with it."""
        self.leaving = True
        await self.writeback.expand()
        if not any(description.pending for description in self.descriptions):
            try:
                (self.directory / LEFT).touch()
            except OSError as e:  # a full disk: the next process saves once more than it would have to
                log.warning("%s: %s", self.id, e)

    async def _stop(self) -> None:
        if not self.leaving:
            await self.sync(within=self.options.stop_timeout)

    async def refresh(self) -> Refreshed:
        """Take up now what others changed in the persistences."""
        return await self.listing.once(reread=True)

    def apply(self, policy: Policy) -> None:
        """What is persisted may be others now, and what is kept here too: see `Cache.shrink`."""
        before = self.policy
        super().apply(policy)
        if (policy.hidden, policy.local_only) != (before.hidden, before.local_only):
            self.writeback.notes.note_all()
        if policy.cache_bytes != before.cache_bytes:
            self.cache.limited()
        self.listing.interval_changed.set()

    @property
    def refresh_interval(self) -> float | None:
        """Seconds between two listings; None: only when asked."""
        seconds = self.policy.refresh_seconds
        return (self.options.refresh_interval if seconds is None else seconds) or None

    async def add_route(self, route: Route) -> Refreshed:
        """A persistence for a directory, in a session that is in use: what it has appears, what is there goes to it.

        Nothing has changed when it raises: ValueError if the directory has a route already, ENOTEMPTY where it has
        files that are kept elsewhere, or what listing the persistence raises.
        """
        return await join(self, route)

    # ---- for the parts of this session

    def commit(self, record: Record) -> None:
        self._commit(record)

    def commit_foreign(self, record: Record) -> None:
        """A change that someone else made, in the persistence."""
        self.foreign = True
        try:
            self._commit(record)
        finally:
            self.foreign = False

    def described(self, route: Route) -> Mapping[bytes, Row]:
        """What is known of the route's files beside the listing."""
        return next((found.rows for found in self.descriptions if found.route is route), {})

    def changed(self, route: Route) -> None:
        """What the route's persistence keeps of the tree's description is not what it was given."""
        for description in self.descriptions:
            if description.route is route:
                description.changed()

    def let_go(self, inode: Inode) -> None:
        self._let_go(inode)

    def drop_name(self, record: Unlink) -> None:
        """A file that someone else deleted in the persistence."""
        inode = self.namespace.inodes[record.parent]
        assert inode.entries is not None
        before = inode.entries[record.name].inode
        self.commit_foreign(record)
        self.outdated([(record.parent, record.name)], ())
        self._let_go(before)

    def outdated(self, names: Iterable[tuple[int, bytes]], inos: Iterable[int]) -> None:
        """What the kernel has cached of these is not true any more."""
        self.invalidate(list(names), list(inos))

    @contextlib.asynccontextmanager
    async def frozen(self, ino: int) -> AsyncIterator[None]:
        """Nobody writes the file meanwhile."""
        while ino in self._frozen:
            await self._frozen[ino].wait()
        self._frozen[ino] = trio.Event()
        try:
            yield
        finally:
            self._frozen.pop(ino).set()

    # ---- what write-back tells

    def synced(self, path: bytes, size: int, ref: FileRef) -> None:
        self._stored[path] = StoredFile(size, ref.version)

    def removed(self, path: bytes) -> None:
        self._stored.pop(path, None)

    def failed(self, path: bytes, e: OSError) -> None:
        self.happened.failed(path, e)

    def conflicted(self, path: bytes, beside: bytes | None, ref: FileRef) -> None:
        self.traffic.conflicts += 1
        self.happened.conflicted(path, beside)

    # ---- requests

    async def find(self, parent: int, name: bytes) -> Inode | None:
        """A name that is not here: a persistence that cannot be listed is asked for it."""
        if not self.unlisted:
            return None
        path = self.namespace.path(self.namespace.directory(parent))
        path = path + b"/" + name if path else name
        persistence = self.place(path).persistence
        if persistence is None or self.namespace.remote.get(path) is not None or not persistence.is_asked_by_name:
            return None
        ref = await self.writeback.transfer.conflicts.current(persistence, path)
        if ref is not None and self.namespace.remote.get(path) is None and self.at(path) is None:
            adopt(self, [ref])
        return self.at(path)

    async def settle(self, inode: Inode) -> None:
        await self.hydration.settle(inode)

    async def settle_directory(self, ino: int) -> None:
        unsized = self.hydration.unsized
        if unsized:
            directory = self.namespace.directory(ino)
            waiting = [d.inode for d in (directory.entries or {}).values() if d.inode.ino in unsized]
            await self._sizes.settle(waiting)

    def is_settled(self, inode: Inode) -> bool:
        return inode.ino not in self.hydration.unsized

    async def read(self, ino: int, offset: int, size: int) -> bytes:
        return bytes(await self.read_view(ino, offset, size))

    def read_view(self, ino: int, offset: int, size: int) -> Coroutine[Any, Any, bytes | memoryview]:
        """As `read`; bytes that are in memory are not copied."""
        inode = self.namespace.inodes.get(ino)
        cached = self.cache.limit is not None or self.hydration.fresh.bytes
        if inode is not None and (cached or (inode.remote and inode.is_file)):
            return self._read_cached(inode, offset, size)
        self.traffic.hits += 1
        return super().read(ino, offset, size)  # each frame on the way would cost a request a microsecond

    async def _read_cached(self, inode: Inode, offset: int, size: int) -> bytes | memoryview:
        if inode.remote and inode.is_file:
            await self.cache.admit(0)
            if await self.hydration.before_read(inode, offset, size):
                self.traffic.misses += 1
            else:
                self.traffic.hits += 1
        else:
            self.traffic.hits += 1
        if self.cache.limit is not None:
            self.cache.touch(inode)
        fresh = self.hydration.fresh.read(inode, offset, size)
        return await super().read(inode.ino, offset, size) if fresh is None else fresh

    def write(self, ino: int, offset: int, data: bytes) -> Coroutine[Any, Any, int]:
        inode = self.namespace.inodes.get(ino)
        if inode is not None and (inode.remote or self._frozen or self.routes.guards or self.cache.limit is not None):
            return self._write_carefully(inode, offset, data)
        return super().write(ino, offset, data)

    async def _write_carefully(self, inode: Inode, offset: int, data: bytes) -> int:
        ino = inode.ino
        self.check_writable(ino)
        if self.cache.limit is not None:
            await self.cache.admit(len(data))
        while ino in self._frozen:
            await self._frozen[ino].wait()
        if inode.remote and inode.is_file and not self.read_only:
            await self.hydration.before_write(inode, offset, len(data))
            taken = await super().write(ino, offset, data)
            taken = self.hydration.after_write(inode, offset, len(data), taken)
        else:
            taken = await super().write(ino, offset, data)
        if self.cache.limit is not None:
            self.cache.touch(inode)
        return taken

    def setattr(self, ino: int, changes: Changes, caller: Caller) -> Coroutine[Any, Any, Inode]:
        if changes.size is not None or self.routes.guards:
            return self._setattr_carefully(ino, changes, caller)
        return super().setattr(ino, changes, caller)

    async def _setattr_carefully(self, ino: int, changes: Changes, caller: Caller) -> Inode:
        self.check_writable(ino)
        if changes.size is None:
            return await super().setattr(ino, changes, caller)
        while ino in self._frozen:
            await self._frozen[ino].wait()
        await self.hydration.fills.over(ino)
        inode = self.namespace.inode(ino)
        if inode.remote and inode.is_file and not self.read_only:
            self.hydration.before_truncate(inode)
        inode = await super().setattr(ino, changes, caller)
        if inode.remote:
            self.hydration.truncated(inode)
        if self.cache.limit is not None:
            self.cache.touch(inode)
        return inode

    # ---- durability

    async def sync(self, within: float | None = None) -> Receipt:
        """A barrier: all that was done before it is in the persistence; the receipt says what, and what is not.

        Without `within` (seconds) it waits as long as that takes, but not for errors that will not pass by themselves.
        """
        async with self.hydration.lasting(self.hydration.written()):
            await super().sync()
        with trio.move_on_after(math.inf if within is None else within) as scope:
            await barrier(self)
            for description in self.descriptions:
                await description.settle()
        if scope.cancelled_caught:
            with trio.CancelScope(shield=True):
                await self.writeback.expand()  # or the receipt would not say all that is pending
        receipt = self.receipt()
        self._stored = {}
        return receipt

    async def fsync(self, ino: int, *, datasync: bool = False) -> None:
        """As the policy's durability has it: on this disk, or in the persistence too."""
        async with self.hydration.lasting([self.namespace.inode(ino)]):
            await super().fsync(ino, datasync=datasync)
        if self.policy.durability == "remote" and self.namespace.inode(ino).is_file:
            await persisted(self, ino)

    def receipt(self) -> Receipt:
        """Beside what there is: what was stored since the last sync, and what is pending, and why."""
        plain = super().receipt()
        pending = [pending for pending in self.writeback.queue if self.writeback.transfer.differs(pending.path)]
        reasons = [
            Pending(os.fsdecode(p.path), str(p.error) if p.error else "not answered yet", p.tries)
            for p in pending[:1000]
        ]
        unsaved = [description for description in self.descriptions if description.pending]
        reasons += [Pending("", f"description of the tree: {found.error or 'no answer yet'}", 0) for found in unsaved]
        return Receipt(
            plain.session,
            plain.files,
            plain.bytes,
            len(pending) + len(unsaved),
            {os.fsdecode(path): file for path, file in self._stored.items()},
            reasons,
        )
