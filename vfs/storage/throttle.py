"""Throttle: how many requests are under way at once, and how many bytes of content they hold.

The number adapts: each success of a full house adds a little, each "slow down" halves it (AIMD, as TCP does), so that
a fast endpoint gets 64 requests at once and a throttled one is not beaten further. One throttle serves reads and
another writes, so that a program that waits for a byte never queues behind uploads."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from trio.lowlevel import ParkingLot

__all__ = ["Budget", "Throttle"]


class Throttle:
    """At most `most` requests at once, `start` of them at first. `limiter` is what threads are started with."""

    def __init__(self, most: int = 64, start: int = 16) -> None:
        self.most = most
        self.limiter = trio.CapacityLimiter(min(start, most))
        self._credit = 0.0
        self._halved_at = float("-inf")

    def succeeded(self) -> None:
        now = int(self.limiter.total_tokens)
        if now >= self.most or self.limiter.borrowed_tokens < now - 1:
            return
        self._credit += 1 / now
        if self._credit >= 1:
            self._credit = 0.0
            self.limiter.total_tokens = now + 1

    def slow_down(self) -> None:
        """Halve, at most once a second: one burst of answers is one piece of news."""
        if trio.current_time() - self._halved_at >= 1:
            self._halved_at = trio.current_time()
            self.limiter.total_tokens = max(1, int(self.limiter.total_tokens) // 2)


class Budget:
    """Bytes of content that may be in memory at once. Whoever wants more than all gets all, alone."""

    def __init__(self, total: int) -> None:
        self.total = self.free = total
        self._waiting = ParkingLot()

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        size = min(size, self.total)
        while self.free < size:
            await self._waiting.park()
        self.free -= size
        try:
            yield
        finally:
            self.free += size
            self._waiting.unpark_all()
