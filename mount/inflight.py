"""The in-flight table: the places in the journal of the records whose requests have not been answered yet.

It is a shared mapping of the file `inflight` in the state directory, so a store into it survives the death of the
process like a write(2) does, and costs no system call. A slot is taken before the record is appended: if the process
dies between the two, there is no record at that place, and nothing was done. It is given back when the request's task
asks for its next request or ends, for by then pyfuse3 has answered; nothing else is taken from the kernel between the
answer and that (both are one step of one thread), so a request that the kernel will send again never meets the note of
an answered one.

After power loss the table means nothing, as no kernel is left that waits for answers: only a worker that takes a live
mount over reads it (`mount.repeated`).
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio

from mount.reserved import open_reserved
from vfs import failpoints
from vfs.journal import HEADER_SIZE, frames, segment_path
from vfs.records import Link, Make, Record, Removexattr, Rename, Setattr, Setxattr, Unlink, decode
from vfs.session import Session

NAME: Final = "inflight"
SLOTS: Final = 256  # pyfuse3 works on 99 requests at most, and as many may be left over from a worker before
_SLOT: Final = struct.Struct("=QQ")  # segment + 1, offset; zero: free
SIZE: Final = SLOTS * _SLOT.size
# The records by which a request does what it asks for; others (Dirty, Reclaim) go with them.
_DECIDING: Final = frozenset({Make, Link, Unlink, Rename, Setattr, Setxattr, Removexattr})


class Place(NamedTuple):
    segment: int
    offset: int


class InFlight(trio.abc.Instrument):
    def __init__(self, directory: Path, adopted: bool) -> None:
        """`adopted`: the mount has had a worker before, whose notes count; those of another mount do not."""
        fd = open_reserved(directory / NAME, SIZE, cleared=not adopted)  # a store into a hole could be a SIGBUS
        try:
            self._table = mmap.mmap(fd, SIZE)
        finally:
            os.close(fd)
        self._free = [slot for slot in range(SLOTS) if self._read(slot) is None]
        self._tasks: dict[Any, int] = {}

    def _read(self, slot: int) -> Place | None:
        segment, offset = _SLOT.unpack_from(self._table, slot * _SLOT.size)
        return Place(segment - 1, offset) if segment else None

    def follow(self, session: Session) -> None:
        """Note every record of `session` that a request is about to append."""

        def before(record: Record) -> None:
            if type(record) not in _DECIDING:
                return
            task = trio.lowlevel.current_task()
            if task.name.startswith("pyfuse-"):  # so pyfuse3 names the tasks of its loop
                self.begin(task, Place(session.journal.segment, session.journal.size))

        session.before_record = before
        trio.lowlevel.add_instrument(self)

    def give_up(self) -> None:
        """Tasks will be ended that have not answered: what is noted of them stays."""
        trio.lowlevel.remove_instrument(self)

    def begin(self, task: Any, place: Place) -> None:
        """The request of this task is about to append the record that decides it there."""
        slot = self._tasks.get(task)
        if slot is None:
            slot = self._tasks[task] = self._free.pop()
        _SLOT.pack_into(self._table, slot * _SLOT.size, place.segment + 1, place.offset)

    def answered(self) -> None:
        """The current task's request has been answered: it asks for another."""
        if self._tasks:
            self.task_exited(trio.lowlevel.current_task())

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        """The task's request has been answered. Trio calls this in the step in which a task ends: pyfuse3 ends one that
        has answered, rather than have it ask for more, when enough others do."""
        slot = self._tasks.pop(task, None)
        if slot is not None:
            failpoints.reach("answer.sent")
            self.drop(slot)

    def drop(self, slot: int) -> None:
        if self._read(slot) is not None:
            _SLOT.pack_into(self._table, slot * _SLOT.size, 0, 0)
            self._free.append(slot)

    def keep_only(self, slots: set[int]) -> None:
        """All others were answered: the kernel does not send their requests again."""
        for slot in set(range(SLOTS)) - slots:
            self.drop(slot)

    def keep(self, slot: int) -> None:
        """The current task answers now what the record in this slot did: the slot is free once it has."""
        self._tasks[trio.lowlevel.current_task()] = slot

    def left_over(self, directory: Path) -> dict[int, Record]:
        """The records in flight when the worker before died, by slot. One that is not there was never carried out.

        A segment that is gone went into an image meanwhile: then the request was in hand for the seconds that takes, so
        it is one that waits for something after its record, and those (a truncation) may be done twice.
        """
        places = {slot: place for slot in range(SLOTS) if (place := self._read(slot)) is not None}
        found: dict[int, Record] = {}
        for segment in {place.segment for place in places.values()}:
            path = segment_path(directory, segment)
            if not path.exists():
                continue
            wanted = {place.offset: slot for slot, place in places.items() if place.segment == segment}
            for end, payload in frames(path, torn_ok=True):
                slot = wanted.get(end - len(payload) - HEADER_SIZE)
                if slot is not None:
                    found[slot] = decode(payload)
        for slot in places.keys() - found.keys():
            self.drop(slot)
        return found

    def close(self) -> None:
        self._table.close()
