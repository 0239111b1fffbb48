"""Hooked: the hooks of an object in this program, for a session that a worker, another process, serves.

The worker keeps the log of events; this reads on in it, from what there was at the beginning, and calls the hooks that
the object has. What happens while nobody reads is in the log, and told when reading goes on. `embed` runs it beside the
mount.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from vfs.event import Event
from vfs.hooks import Hooks

if TYPE_CHECKING:
    from mount.mounted import Mounted

__all__ = ["Hooked"]

WAIT = 20.0  # seconds that the worker waits with an answer for something to happen
AT_END = 5.0  # seconds that the end of the session waits for its hooks


class Hooked:
    def __init__(self, hooks: Hooks, mounted: Mounted) -> None:
        self._hooks = hooks
        self._mounted = mounted
        self._told = 0
        self._more = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self._told = (await self._mounted.ask("events", since=None, wait=0.0))["since"]
        task_status.started()
        await self._hooks.run(self._events(self._told), self._done)

    async def _events(self, since: int) -> AsyncIterator[Event]:
        while True:
            found = await self._mounted.ask("events", since=since, wait=WAIT)
            for seq, _, line in found["lines"]:
                yield msgspec.json.decode(line, type=Event)
                since = seq

    def _done(self, seq: int) -> None:
        self._told = seq
        self._more.set()
        self._more = trio.Event()

    async def finish(self) -> None:
        """The hooks have been told of all that is there by now, what was synced included, or their time is over."""
        await self._mounted.ask("sync")
        last: dict[str, Any] = await self._mounted.ask("events", since=None, wait=0.0)
        with trio.move_on_after(AT_END):
            while self._told < last["since"]:
                await self._more.wait()
        await self._hooks.aclose()
