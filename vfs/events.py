"""Events: what happened in a session, in one order, for whoever wants to know.

The session tells of each change after it was made (`tree.Observer`); what a request pays for that is a tuple in a
list. Beside the requests, 20 ms later, the list goes into the log (`eventlog`) with one write(2), and gets its numbers
there. Whatever is lost of the list by kill -9 is made anew at the next start from the journal behind the log's mark
(`replayed`), and from the files that were written since their last event; nobody has seen its numbers by then.

A file that is written is one `modified` event at its last close; one that stays open has one a minute, one that is
changed without being open (truncate(2), chmod(2)) has one when it has not been for a second. What the persistence
holds comes from the records `Stored` and `Removed`, failures and conflicts from write-back.

A reader reads the log from a number on (`subscribe`, `page`), so a slow one costs no memory, and resumes anywhere.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import msgspec
import trio

from vfs.event import Event, read_events
from vfs.eventlog import BATCH, EventLog, Mark, Place
from vfs.hooks import Hooks
from vfs.inode import Inode
from vfs.namespace import Namespace
from vfs.options import Options
from vfs.records import Record
from vfs.rows import NOBODY, Row, Rows, Told

__all__ = ["Events"]

log = logging.getLogger(__name__)

GATHER = 0.02  # seconds in which events are gathered for one write(2)
RETRY = 1.0  # seconds after a failure to write the log
QUIET = 1.0  # a file that was changed without being open has its event when it has not been for so long
LONG_OPEN = 60.0  # a file that stays open and is written has an event so often
HOOKS_AT_END = 5.0  # seconds that the end of a session waits for its hooks
_MOST = 20_000  # events kept while the log cannot be written; more are dropped, and counted
_READERS = 256  # whose place in the log is remembered


_json = msgspec.json.Encoder()


class Events(Rows):
    """Owned by the session."""

    def __init__(self, session_id: str, directory: Path, options: Options, *, powered_off: bool) -> None:
        super().__init__()
        self.session_id = session_id
        self.log = EventLog(directory / "events", options.event_bytes, powered_off=powered_off)
        self.hooks = Hooks(options.hooks)
        self._starting = self.log.mark is not None and self.log.mark.starting
        self._hooked = self.log.last
        self._dropped = 0
        self._more = trio.Event()
        self._places: dict[int, Place] = {}

    # ---- recovery

    def replayed(self, namespace: Namespace, segment: int, end: int, record: Record, inode: Inode | None) -> None:
        """A record that recovery has applied; `end`: where it ends in its segment."""
        mark = self.log.mark
        if mark is not None and (segment, end) > (mark.segment, mark.offset):
            self.namespace = namespace
            self.committed(record, inode)

    def attach(self, tree: Told, *, adopted: bool) -> None:
        """Go on with the recovered session. What was lost of the list is in the log when this returns.

        `adopted`: files may still be open, and have their event when they are closed.
        """
        namespace = self.namespace = tree.namespace
        self._tree = tree
        mark = self.log.mark
        if mark is not None:
            written = [i for i in namespace.inodes.values() if i.unsettled and i.mtime_ns > mark.time_ns]
            for inode in [*written, *(namespace.inodes[ino] for ino in mark.writing if ino in namespace.inodes)]:
                self._change(inode, True, NOBODY)
            self._paths.clear()
        if adopted:
            for pid in {row[8] for row in self._rows if row[8]}:  # those that wait for an answer are still there
                self._origins.look(pid)
        else:
            self._sweep(all_of_them=True)
        self._starting = True
        self.write()
        self._recovered = False

    def started(self) -> None:
        """What is found in a persistence from now on is news."""
        self._starting = False
        self.write()

    def _sweep(self, *, all_of_them: bool = False) -> None:
        """Events of files that are not going to be closed, or not soon."""
        assert self._tree is not None
        now, is_open = trio.current_time(), self._tree.is_open
        for ino, change in list(self._changed.items()):
            due = change.since + LONG_OPEN if is_open(ino) else change.last + QUIET
            if all_of_them or now >= due:
                del self._changed[ino]
                inode = self.namespace.inodes.get(ino)
                if inode is not None:
                    self._modified(inode, change)

    # ---- into the log

    def run(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self._gather)
        if self.hooks:
            nursery.start_soon(self.hooks.run, self.subscribe(self._hooked), self._hook_told)

    async def _gather(self) -> None:
        while True:
            with trio.move_on_after(QUIET if self._changed else float("inf")):
                await self._flush_soon.wait()
            await trio.sleep(RETRY if self._failed is not None else GATHER)
            self._flush_soon = trio.Event()
            self._sweep()
            mark = self.log.mark
            if self._rows or mark is None or mark.writing != list(self._changed):
                self.write()

    def write_all(self) -> None:
        """All events so far are in the log when this returns; else the OSError."""
        if not self.write() and self._failed is not None:
            raise self._failed

    def write(self) -> bool:
        """All events so far are in the log when this returns true; otherwise they are kept."""
        rows, origins = self._rows, self._origins
        if self._dropped:
            rows = [self._drop_row(), *rows]
        assert self._tree is not None
        journal = self._tree.journal
        mark = Mark(journal.segment, journal.size, time.time_ns(), list(self._changed), self._starting)
        told = {pid: origins.get(pid) for pid in {row[8] for row in rows} if pid}
        try:
            self.log.append(rows, mark, told, recovered=self._recovered)
        except OSError as e:
            self._not_written(e)
            return False
        self._rows = []
        self._dropped, self._failed = 0, None
        if rows:
            self._more.set()
            self._more = trio.Event()
        return True

    def _drop_row(self) -> Row:
        return ("lost", time.time_ns(), b"", None, None, 0, 0, 0, 0, None, None, {"missed": self._dropped})

    def _not_written(self, e: OSError) -> None:
        if self._failed is None:
            log.error("%s: the event log cannot be written: %s; events are kept in memory", self.session_id, e)
        self._failed = e
        excess = len(self._rows) - _MOST
        if excess > 0:
            del self._rows[:excess]
            self._dropped += excess
        self._flush_soon.set()

    async def finish(self) -> None:
        """The last events are in the log, and the hooks have been told, or their time is over."""
        self._sweep(all_of_them=True)
        self.write()
        if self.hooks:
            with trio.move_on_after(HOOKS_AT_END):
                while self._hooked < self.log.last:
                    await self._more.wait()
            if self._hooked < self.log.last:
                left = self.log.last - self._hooked
                log.warning("%s: hooks were not told of the last %d events", self.session_id, left)
            await self.hooks.aclose()

    def _hook_told(self, seq: int) -> None:
        self._hooked = seq
        if seq == self.log.last:
            self._more.set()
            self._more = trio.Event()

    # ---- readers

    async def page(self, since: int) -> list[Event]:
        """Some of the events above `since`, oldest first; none only if there are none (yet)."""
        found, place, _ = await self._read(since)
        if found and place is not None:
            self._remember(found[-1].seq, place)
        return found

    async def lines(self, since: int, max_bytes: int) -> list[tuple[int, str, bytes]]:
        """As `page`, each as its number, its kind and its JSON: as many as fit into `max_bytes`, and at least one."""
        found, place, begin = await self._read(since)
        told: list[tuple[int, str, bytes]] = []
        for event in found:
            line = _json.encode(event)
            max_bytes -= len(line) + 32
            if told and max_bytes < 0:
                place = begin
                break
            told.append((event.seq, event.kind, line))
        if told and place is not None:
            self._remember(told[-1][0], place)
        return told

    async def _read(self, since: int) -> tuple[list[Event], Place | None, Place | None]:
        """Events, the place behind them in the log, and the place that they were searched from."""
        last, begin = self.log.last, self._places.pop(since, None)
        if since == last:
            return [], begin, begin
        read = partial(read_events, self.session_id, self.log.directory, since, last=last, place=begin, most=BATCH)
        found, place = await trio.to_thread.run_sync(read)
        if not found:  # the log is damaged there
            missed = last - since
            found = [Event(seq=last, time_ns=time.time_ns(), session=self.session_id, kind="lost", missed=missed)]
        return found, place, begin

    def _remember(self, since: int, place: Place) -> None:
        if len(self._places) >= _READERS:
            del self._places[next(iter(self._places))]
        self._places[since] = place

    async def more(self, since: int) -> None:
        """Returns when there are events above `since`."""
        while self.log.last <= since:
            await self._more.wait()

    async def subscribe(self, since: int | None = 0, *, follow: bool = True) -> AsyncIterator[Event]:
        """The events above `since` (None: those to come), then, with `follow`, those that come, without end."""
        since = self.log.last if since is None else since
        while True:
            for event in await self.page(since):
                yield event
                since = event.seq
            if since == self.log.last:
                if not follow:
                    return
                await self.more(since)
