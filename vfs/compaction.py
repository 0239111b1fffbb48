"""Compaction: when the journal's segment has grown, it is closed, and the next image is made of it.

By a process of its own (`image`), so the request path never waits for it. What the segment says is in the event log
before it goes. Owned by the session.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import trio

from vfs import image
from vfs.events import Events
from vfs.journal import Journal
from vfs.tree import SEGMENT_BYTES

__all__ = ["Compaction"]

log = logging.getLogger(__name__)


@contextlib.contextmanager
def _held_pipe() -> Iterator[int]:
    """A pipe to read from that ends when this process does, or the block."""
    ends = os.pipe()
    try:
        yield ends[0]
    finally:
        for fd in ends:
            os.close(fd)


class Compaction:
    def __init__(self, directory: Path, journal: Journal, events: Events) -> None:
        self._directory = directory
        self._journal = journal
        self._events = events
        self._running = False
        self._above = 0  # after a failure: not again at the next record

    def begin(self, nursery: trio.Nursery) -> None:
        """The segment is large enough: compact it, unless that is under way or has just failed."""
        if not self._running and self._journal.size > self._above:
            self._running = True
            nursery.start_soon(self.run)

    async def run(self) -> None:
        """Close the segment and have the next image made of it."""
        try:
            self._events.write_all()
            upto = self._journal.rotate()
            await trio.to_thread.run_sync(self._events.log.sync)
            with _held_pipe() as stdin:
                command = [*image.COMMAND, str(self._directory), str(upto)]
                done = await trio.run_process(command, stdin=stdin, check=False, capture_stderr=True)
            if done.returncode != 0:
                said = done.stderr.decode()[-2000:]
                log.error("%s: no new image (status %d): %s", self._directory, done.returncode, said)
        except OSError as e:
            log.error("%s: the journal grows on, for now: %s", self._directory, e)
            self._above = self._journal.size + SEGMENT_BYTES
        else:
            self._above = 0
        finally:
            self._running = False
