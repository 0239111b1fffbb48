"""Write-back: brings the persistences to what the namespace says, behind the requests.

The session tells of every change by noting a directory entry or an inode, which is all that a request pays; a task
turns notes into pending paths by comparing the namespace, as it is by then, with `namespace.remote`. That is enough:
for any path whose meaning has changed, the highest entry on it that was changed is noted, and its directory's own path
is the same before and after. At the start of a session everything is compared, so what was pending at a crash is found.

New files go out when they are closed; edits when they have not been written for the route's `debounce`, or after its
`max_wait`; deletes and renames at once. Failures are retried for ever (`pending`). `barrier` waits for all that was
done before it.
"""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

import trio

from vfs.batch import LITTLE, MANY, commit, delete_many, write_many
from vfs.capture import Torn
from vfs.errors import Conflict, error
from vfs.limit import Limit
from vfs.notes import Notes
from vfs.options import Options
from vfs.pace import Pace
from vfs.pending import Pending, Queue
from vfs.persistence import Persistence
from vfs.transfer import Blocked, Transfer

if TYPE_CHECKING:
    from vfs.persisted import PersistedSession

__all__ = ["WriteBack"]

log = logging.getLogger(__name__)

TICK = 0.01  # after a wake-up: what a burst of requests changes is looked at together
BATCH = 500  # paths in one transaction at most
DETOURS = 20  # steps in a row that something else took, before there are pauses between them
PATIENCE = 3  # uploads of a large file torn by its writers before they have to wait for a copy

_CarryOut: TypeAlias = Callable[["PersistedSession", Persistence, set[bytes]], Awaitable[set[bytes]]]
"""Carries out what it can of these claimed paths in one call, and answers which."""


class WriteBack:
    def __init__(self, session: PersistedSession, options: Options) -> None:
        self.session = session
        self.namespace = session.namespace
        self.queue = Queue()
        self.transfer = Transfer(session, self._claim_ended)
        self.limit = Limit(options.concurrency, options.max_concurrency)
        self.progressed = trio.Event()
        self.epoch = 0  # counts barriers
        self.notes = Notes(session, lambda: self._wake.set())
        self.pace = Pace(lambda: session.requests() + self.notes.count, lambda: self.limit.urgent > 0)
        self._blocked: dict[bytes, set[bytes]] = {}
        self._expanding = False
        self._wake = trio.Event()

    def note_path(self, path: bytes) -> None:
        """Compare this path."""
        self._mark(path)
        self._wake.set()

    # ---- from notes to pending paths

    async def expand(self) -> None:
        """Turn what was noted so far into pending paths."""
        while self._expanding:
            await self.progressed.wait()
        self._expanding = True
        try:
            await self.notes.compare(self._mark)
        finally:
            self._expanding = False
            self._report()

    def _mark(self, path: bytes) -> None:
        """Pending or not, from what the namespace and the persistence hold now."""
        pending = self.queue.get(path)
        if pending is not None and pending.busy:
            return  # looked at again when the operation ends
        if not self.transfer.differs(path):
            if pending is not None:
                self._finish(pending)
            return
        now = trio.current_time()
        pending = pending or Pending(path, now)
        self.queue.schedule(pending, self._due(pending, now))

    def _finish(self, pending: Pending) -> None:
        self.queue.remove(pending.path)
        self.transfer.errors.pop(pending.path, None)
        self._unblock(pending.path)

    def _due(self, pending: Pending, now: float) -> float:
        """When the path may be carried out."""
        inode = self.transfer.desired(pending.path)
        if inode is None or self.limit.urgent:
            return max(now, pending.not_before)
        due = now
        route = self.session.place(pending.path).route
        writes = self.notes.writes.get(inode.ino)
        is_open = self.session.is_open(inode.ino)
        if inode.ino in self.notes.fresh and not is_open:
            pass
        elif writes is not None:
            due = min(writes.last + route.debounce, writes.first + route.max_wait)
        elif inode.ino in self.notes.fresh:
            due = pending.since + route.debounce
        return max(due, now, pending.not_before)

    # ---- carrying out

    async def run(self) -> None:
        """Write back until cancelled."""
        while True:
            self._wake = trio.Event()
            due = self.queue.next_due()
            if self.notes or (due is not None and due <= trio.current_time()):
                most = await self.pace.turn()
                await self.expand()
                self._start_due(most)
            else:
                self.pace.rest()
            with trio.move_on_at(self._next()):
                await self._wake.wait()
                await trio.sleep(TICK)

    def _next(self) -> float:
        due = self.queue.next_due() if self.limit.free else None
        if due is None:
            return math.inf
        return due if self.limit.urgent else max(due, self.pace.again_at)

    def _start_due(self, most: int) -> None:
        """Begin operations that are due, at most so many."""
        now = trio.current_time()
        batches: dict[tuple[Persistence, _CarryOut], list[Pending]] = {}
        crowd = min(most, len(self.queue))
        if self.pace.is_lull:
            crowd //= self.limit.value  # for each operation that may be in flight; beside requests the fewest are best
        while most > 0 and self.limit.free and (pending := self.queue.pop(now)) is not None:
            if not self.transfer.differs(pending.path):
                self._finish(pending)
                continue
            due = self._due(pending, now)
            if due > now:
                self.queue.schedule(pending, due)
                continue
            if pending.path in self.transfer.busy:
                self._blocked.setdefault(pending.path, set()).add(pending.path)
                continue
            most -= 1
            if (found := self._batched(pending, crowd)) is None:
                self._start(pending)
            else:
                kind, together = found
                batch = batches.setdefault(kind, [])
                batch.append(pending)
                self._begin(pending)
                if len(batch) >= together:
                    self._start_batch(*kind, batches.pop(kind))
        for kind, batch in batches.items():
            self._start_batch(*kind, batch)
        self._report()

    def _batched(self, pending: Pending, crowd: int) -> tuple[tuple[Persistence, _CarryOut], int] | None:
        """How the path can be carried out in a batch with others, and with how many."""
        persistence = self.session.place(pending.path).persistence
        if persistence is None or pending.alone:
            return None
        if "on_commit" in persistence.can:
            return (persistence, commit), BATCH
        if crowd > 1:
            inode = self.transfer.desired(pending.path)
            if inode is None and persistence.deletes_many:
                return (persistence, delete_many), min(crowd, MANY)
            if inode is not None and inode.size <= LITTLE and persistence.takes_many:
                return (persistence, write_many), min(crowd, MANY)
        return None

    def _start_batch(self, persistence: Persistence, carry_out: _CarryOut, batch: list[Pending]) -> None:
        self.limit.begin()
        self.session.spawn(self._carry_out_batch, persistence, carry_out, batch)

    def _start(self, pending: Pending) -> None:
        self._begin(pending)
        self.limit.begin()
        self.session.spawn(self._carry_out, pending)

    async def _carry_out(self, pending: Pending) -> None:
        try:
            await self._try(pending)
        finally:
            self.limit.end()
            self._end(pending)
        self._go_on()

    def _begin(self, pending: Pending) -> None:
        pending.busy = True
        pending.not_before = 0.0
        self.transfer.busy.add(pending.path)

    def _end(self, pending: Pending) -> None:
        pending.busy = False
        self.transfer.busy.discard(pending.path)
        self._claim_ended(pending.path)
        inode, held = self.session.at(pending.path), self.namespace.remote.get(pending.path)
        if inode is not None and held is not None and held.ino == inode.ino:
            self.notes.fresh.discard(inode.ino)

    async def _carry_out_batch(self, persistence: Persistence, carry_out: _CarryOut, batch: list[Pending]) -> None:
        """Many paths in one call; what does not fit into one, or was in one that failed, goes alone."""
        epoch = self.epoch
        try:
            for pending in batch:
                inode = self.transfer.desired(pending.path)
                if inode is not None:
                    self.notes.writes.pop(inode.ino, None)
            done = await carry_out(self.session, persistence, {pending.path for pending in batch})
            for pending in batch:
                if pending.path in done:
                    self._succeeded(pending, epoch)
                else:
                    pending.alone = True
        except OSError as e:
            self._batch_failed(batch, e)
        except Exception as e:
            log.exception("%s: writing back a batch failed", self.session.id)
            self._batch_failed(batch, OSError(errno.EIO, f"{type(e).__name__}: {e}"))
        finally:
            self.limit.end()
            for pending in batch:
                self._end(pending)
        self._go_on()

    def _go_on(self) -> None:
        if most := self.pace.more():
            self._start_due(most)
        self._wake.set()  # for the time of the next one

    async def _try(self, pending: Pending) -> None:
        epoch = self.epoch
        inode = self.transfer.desired(pending.path)
        if inode is not None:
            self.notes.writes.pop(inode.ino, None)
        alone, pending.alone = pending.alone, False
        try:
            finished = await self.transfer.step(pending.path, copy=pending.torn >= PATIENCE)
        except Blocked as e:
            pending.alone = alone  # a batch could fail for ever where one path waits for the other
            self._block(pending, e.on)
        except Torn:
            pending.torn += 1
        except OSError as e:
            self._failed(pending, e)
        except Exception as e:
            log.exception("%s: writing back %r failed", self.session.id, pending.path)
            self._failed(pending, OSError(errno.EIO, f"{type(e).__name__}: {e}"))
        else:
            pending.detours = 0 if finished else pending.detours + 1
            if pending.detours < DETOURS:
                self._succeeded(pending, epoch if finished else -1)
            else:
                why = "something else comes first each time: is it changed there all the time?"
                self._failed(pending, error(errno.EIO, pending.path, why))

    def _succeeded(self, pending: Pending, epoch: int) -> None:
        pending.succeeded(epoch)
        self.transfer.errors.pop(pending.path, None)
        self.limit.succeeded()

    def _batch_failed(self, batch: list[Pending], e: OSError) -> None:
        """Each goes alone now, which tells whose fault it was; a conflict is dealt with there too."""
        self.session.traffic.retries += len(batch) > 1
        for pending in batch:
            pending.alone = True
            if len(batch) == 1 and not isinstance(e, Conflict):
                self._failed(pending, e)

    def _claim_ended(self, path: bytes) -> None:
        """Nobody works on the path any more: is there more to do for it, and who waited for it?"""
        self._mark(path)
        self._unblock(path)
        self._report()

    def _failed(self, pending: Pending, e: OSError) -> None:
        self.session.traffic.retries += 1
        first = pending.error is None or pending.error.errno != e.errno
        pending.failed(e, trio.current_time())
        self.transfer.errors[pending.path] = e
        self.limit.failed(e.errno)
        if first:
            log.warning("%s: %r is not written back: %s; it is tried again", self.session.id, pending.path, e)
            self.session.failed(pending.path, e)

    def _block(self, pending: Pending, on: bytes) -> None:
        """Wait until something was done to `on`; where nothing is going to be, look again soon."""
        if self.queue.get(on) is None and on not in self.transfer.busy:
            pending.not_before = trio.current_time() + 5 * TICK
        else:
            self._blocked.setdefault(on, set()).add(pending.path)
            pending.not_before = math.inf

    def _unblock(self, path: bytes) -> None:
        for waiting in self._blocked.pop(path, ()):
            pending = self.queue.get(waiting)
            if pending is not None and not pending.busy:
                pending.not_before = 0.0 if pending.not_before == math.inf else pending.not_before
                self.queue.schedule(pending, max(trio.current_time(), pending.not_before))
                self._wake.set()

    # ---- who waits

    def _report(self) -> None:
        self.progressed.set()
        self.progressed = trio.Event()

    def hurry(self) -> None:
        """Everything pending is tried now, whatever pauses were left."""
        now = trio.current_time()
        for pending in list(self.queue):
            if not pending.busy and pending.not_before != math.inf:
                pending.not_before = 0.0
                self.queue.schedule(pending, now)
        self._wake.set()
