"""A feed: the events of one hosted session from a number on, page by page, whatever becomes of its worker meanwhile.

The worker is asked while there is one; between workers, and of a session that is not mounted or asleep, the log in its
state directory is read. Whoever reads on is therefore never told that a worker was replaced. Nothing is kept between
pages but a number. Of what is in the directory nothing is trusted (`vfs.eventlog`): a worker's user can write there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import trio

from vfs.event import read_events
from vfs.eventlog import BATCH, Place, last_number

if TYPE_CHECKING:
    from mount.hosted import Hosted
    from mount.mounted import Mounted

__all__ = ["Feed", "Line"]

WAIT: Final = 15.0  # seconds after which a page is answered though it is empty: who listens may be gone
_LOOK: Final = 0.5  # seconds between looks for a worker, where there is none
_RARELY: Final = 4.0  # after some looks in vain: the session sleeps, or is not mounted
_PATIENCE: Final = 10.0  # seconds beyond WAIT for a worker's answer


class Line(NamedTuple):
    seq: int
    kind: str
    json: bytes


_encode = msgspec.json.Encoder().encode


class Feed:
    """`since`: the number of the last event that was given out (None: of the last one that there is)."""

    def __init__(self, hosted: Hosted, state: Path, since: int | None) -> None:
        self._hosted = hosted
        self._directory = state / hosted.session / "events"
        self._place: Place | None = None
        self.since = since

    async def page(self, wait: float = WAIT) -> list[Line]:
        """The next events; empty if there are none within `wait` seconds."""
        end, pause = trio.current_time() + wait, _LOOK
        while True:
            left = max(0.0, end - trio.current_time())
            mounted = self._hosted.mounted
            told = await self._ask(mounted, left) if mounted is not None else None
            if told is None:
                told = await trio.to_thread.run_sync(self._read)
                if not told and left:
                    await trio.sleep(min(pause, left))
                    pause = min(pause * 2, _RARELY)
                    continue
            return told

    async def pages(self, *, follow: bool) -> AsyncIterator[list[Line]]:
        """Until there are no more; with `follow` without end, and some of them empty."""
        while True:
            told = await self.page(WAIT if follow else 0.0)
            if not told and not follow:
                return
            yield told

    async def _ask(self, mounted: Mounted, wait: float) -> list[Line] | None:
        """What the worker says; None where there is none, or it does not answer."""
        worker = mounted.worker
        if worker is None or worker.gone.is_set():
            return None
        with trio.move_on_after(wait + _PATIENCE):
            try:
                answer, _ = await worker.channel.call("events", {"since": self.since, "wait": wait})
            except (OSError, ValueError):  # it is gone, or cannot say
                return None
            self.since, self._place = answer["since"], None
            return [Line(*line) for line in answer["lines"]]
        return None

    def _read(self) -> list[Line]:
        directory, session = self._directory, self._hosted.session
        if self.since is None:
            self.since = last_number(directory)
        found, self._place = read_events(session, directory, self.since, place=self._place, most=BATCH)
        if found:
            self.since = found[-1].seq
        return [Line(event.seq, event.kind, _encode(event)) for event in found]
