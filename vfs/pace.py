"""Pace: when write-back works, so that programs need not wait for it.

One process answers requests and writes back; an untar with its uploads in between takes twice as long. So write-back
works in the lulls: when no request has come for LULL. It begins with a few operations, for many lulls are over at once,
and begins twice as many each time that the lull goes on. Programs that think, compile or wait leave many; a burst
(untar, npm install, git checkout) leaves none until it is over. What has waited for PATIENCE goes out all the same, a
few at a time, until nothing waits any more. A large file that has begun to go out goes on slowly when programs go on.
Who waits for write-back itself (a barrier, an fsync, a full cache) is not kept waiting by this.

`WriteBack` asks before each round.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import trio

__all__ = ["Pace"]

LULL = 0.04  # seconds; on a busy machine programs stand still for 20 ms in the middle of their work
PATIENCE = 10.0  # seconds; as long as the default `max_wait` of an edit
FEW = 8  # operations: at first in a lull; in each LULL when patience is over, some 5 % of a fast persistence's session
ALL = sys.maxsize


class Pace:
    """`requests` counts what was asked of the session so far; `is_urgent`: whether someone waits for write-back."""

    def __init__(self, requests: Callable[[], int], is_urgent: Callable[[], bool]) -> None:
        self._requests = requests
        self._is_urgent = is_urgent
        self._free_at = 0  # requests that had come when a lull was found
        self._next = FEW  # operations that may begin when the lull has gone on
        self.again_at = 0.0
        """When to ask again where nothing that was begun has ended by then; by trio's clock."""
        self._since: float | None = None  # what is due has waited since then

    @property
    def is_lull(self) -> bool:
        """Whether no request has come since a `turn` found a lull, or someone waits for write-back more."""
        return self._is_urgent() or self._requests() == self._free_at

    def more(self) -> int:
        """How many operations write-back may begin now: twice as many as when it asked last, but none where a request
        has come since a `turn` found a lull."""
        if self._is_urgent():
            return ALL
        if not self.is_lull:
            return 0
        most, self._next = self._next, min(2 * self._next, ALL)
        self.again_at = trio.current_time() + LULL
        return most

    async def turn(self) -> int:
        """Returns when it is write-back's turn: how many operations it may begin before it asks again."""
        if most := self.more():
            return most
        if self._since is None:
            self._since = trio.current_time()
        while True:
            before = self._requests()
            await trio.sleep(LULL)
            if self._requests() == before:
                self._free_at, self._next = before, FEW
            if most := self.more():
                return most
            if trio.current_time() > self._since + PATIENCE:
                return FEW

    def way(self) -> Callable[[], None]:
        """What a thread with long work calls every few milliseconds of it to give way: it waits for LULL where requests
        have come since the last time."""
        known = self._requests()

        def give() -> None:
            nonlocal known
            if self._requests() != known and not self._is_urgent():
                time.sleep(LULL)
            known = self._requests()

        return give

    def rest(self) -> None:
        """Nothing is due any more."""
        self._since = None
