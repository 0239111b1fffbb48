"""How many operations may be in flight: more while they succeed, half as many when a persistence says that it is too
much (as TCP does: additive increase, multiplicative decrease).

And how many may begin while the session is being changed: each costs the loop that answers requests half a
millisecond, and with 64 of them under way a writer of small files waits for that many before each of its requests. So
they begin at a pace then, and at full speed when the writer pauses or someone waits for them.
"""

from __future__ import annotations

import errno

import trio

__all__ = ["Limit"]

OVERLOAD = frozenset({errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENOBUFS})
LULL = 0.05  # seconds without a change after which nobody is writing
PACE = 200  # operations a second that may begin beside a writer
BURST = 8
LOOK = 0.02  # between two looks at what may begin beside a writer


class Limit:
    def __init__(self, start: int, most: int) -> None:
        if not 1 <= start <= most:
            raise ValueError(f"concurrency {start}, at most {most}: 1 <= concurrency <= max_concurrency")
        self._value = float(start)
        self._most = most
        self._credit = float(BURST)
        self._counted_at = self._changed_at = float("-inf")
        self.in_flight = 0
        self.urgent = 0  # who waits for what is pending

    @property
    def value(self) -> int:
        return int(self._value)

    def changed(self) -> None:
        """A request has changed something."""
        self._changed_at = trio.current_time()

    @property
    def free(self) -> bool:
        """Whether another one may begin now."""
        if self.in_flight >= int(self._value):
            return False
        now = trio.current_time()
        if self.urgent or now >= self._changed_at + LULL:
            return True
        self._credit = min(BURST, self._credit + (now - self._counted_at) * PACE)
        self._counted_at = now
        return self._credit >= 1

    @property
    def again(self) -> float:
        """When to look whether another one may begin."""
        if self.in_flight >= int(self._value):
            return float("inf")  # when one ends
        return float("-inf") if self.free else trio.current_time() + LOOK

    def begin(self) -> None:
        self.in_flight += 1
        self._credit = max(0.0, self._credit - 1)

    def end(self) -> None:
        self.in_flight -= 1

    def succeeded(self) -> None:
        if self.in_flight >= int(self._value) - 1:  # only what was used up is known to be bearable
            self._value = min(self._most, self._value + 1 / self._value)

    def failed(self, number: int | None) -> None:
        if number in OVERLOAD:
            self._value = max(1.0, self._value / 2)
