"""A worker as its supervisor holds it: the process, the channel to it, and what it has said."""

from __future__ import annotations

import contextlib
import errno
import logging
import signal
from typing import Any, Final

import msgspec
import trio

from mount.channel import Answer, BrokenChannel, Channel
from mount.config import Failure, Receipt
from mount.spawner import Child

log = logging.getLogger(__name__)

DUMP_SIGNAL: Final = signal.SIGUSR2
NUDGE_SIGNAL: Final = signal.SIGUSR1
NUDGE_AFTER: Final = 1.0
DUMP_TIME: Final = 1.0  # seconds to write down where it hangs


class WorkerHandle:
    """One worker process and the channel to it."""

    def __init__(self, child: Child, channel: Channel) -> None:
        self.child = child
        self.channel = channel
        self.ready = trio.Event()
        self.gone = trio.Event()
        self.failure: Exception | None = None
        self.receipt: Receipt | None = None
        self.since = trio.current_time()
        self._hung = False
        self.progressed = False  # has it answered a request?

    async def handle(self, name: str, arguments: dict[str, Any], descriptors: list[int]) -> Answer:
        """What the worker says by itself."""
        if name == "ready":
            self.ready.set()
        elif name == "progress":
            self.progressed = True
        elif name == "unmounted":
            self.receipt = msgspec.convert(arguments["receipt"], Receipt)
        elif name == "failed":
            self.failure = msgspec.convert(arguments["failure"], Failure).error()
        else:
            raise ValueError(f"a supervisor is asked to {name!r}, which it does not know")
        return Answer()

    @property
    def crashed(self) -> bool:
        """Did it die by its own doing, rather than because somebody killed it?"""
        return self._hung or self.child.status not in (None, -signal.SIGKILL)

    async def attend(self) -> None:
        """Read what the worker says until it is dead. One that sends what is no message is killed."""
        await self.channel.serve(self.handle)
        if self.channel.garbled:
            log.error("worker %d sent what is no message, and is killed", self.child.pid)
            self.child.kill(signal.SIGKILL)
        await self.child.wait()
        self.child.close()
        self.gone.set()

    async def wait_ready(self, limit: float) -> None:
        """Until it serves; raises what it failed with."""
        with trio.move_on_after(limit) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(cancel_after, self.gone, nursery.cancel_scope)
                await self.ready.wait()
                nursery.cancel_scope.cancel()
        if scope.cancelled_caught:
            self.child.kill(signal.SIGKILL)
            raise TimeoutError(errno.ETIMEDOUT, f"worker {self.child.pid} was not ready after {limit:g} s")
        if not self.ready.is_set():
            raise self.failure or OSError(errno.EIO, f"the worker {self.child.death} before it was ready; see the log")

    async def ping(self, limit: float) -> int | None:
        """How many requests it has taken; None without a sign of life of its request loop within `limit` seconds.

        A worker that read a request which was withdrawn at that very moment waits in read(2) for the next one: the
        nudge ends that.
        """
        with trio.move_on_after(limit):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._nudge)
                result, _ = await self.channel.call("ping")
                nursery.cancel_scope.cancel()
            requests: int = result["requests"]
            return requests
        return None

    async def _nudge(self) -> None:
        await trio.sleep(NUDGE_AFTER)
        self.child.kill(NUDGE_SIGNAL)

    async def put_down(self) -> None:
        """Have it write to the log where it hangs, and end it."""
        self._hung = True
        self.child.kill(DUMP_SIGNAL)
        await trio.sleep(DUMP_TIME)
        self.child.kill(signal.SIGKILL)
        await self.gone.wait()

    async def retire(self) -> bool:
        """It answers what it has in hand, closes the session and ends; what comes meanwhile waits in the kernel.

        Whether the next worker has something to do at once: what is not persisted, or requests that were not answered.
        """
        left = True
        try:
            left, _ = await self.channel.call("retire")
        except BrokenChannel:
            log.warning("worker %d died as it was to retire", self.child.pid)
        await self.gone.wait()
        return bool(left)

    async def see_off(self, limit: float, session: str) -> None:
        """Its mount is gone, so it is about to end: BrokenChannel when it has. What it waits for stays pending, for the
        next worker."""
        with trio.move_on_after(limit):
            with contextlib.suppress(BrokenChannel):
                await self.channel.call("hurry")
            await self.gone.wait()
            raise BrokenChannel("the session was being unmounted")
        raise OSError(errno.EBUSY, "programs still use its last mount, which is on no directory", session)


async def cancel_after(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()
