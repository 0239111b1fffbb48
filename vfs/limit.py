"""How many operations may be in flight: more while they succeed, half as many when a persistence says that it is too
much (as TCP does: additive increase, multiplicative decrease). When they may begin at all, `pace` says."""

from __future__ import annotations

import errno

__all__ = ["Limit"]

OVERLOAD = frozenset({errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENOBUFS})


class Limit:
    def __init__(self, start: int, most: int) -> None:
        if not 1 <= start <= most:
            raise ValueError(f"concurrency {start}, at most {most}: 1 <= concurrency <= max_concurrency")
        self._value = float(start)
        self._most = most
        self.in_flight = 0
        self.urgent = 0  # who waits for what is pending

    @property
    def value(self) -> int:
        return int(self._value)

    @property
    def free(self) -> bool:
        return self.in_flight < int(self._value)

    def begin(self) -> None:
        self.in_flight += 1

    def end(self) -> None:
        self.in_flight -= 1

    def succeeded(self) -> None:
        if self.in_flight >= int(self._value) - 1:  # only what was used up is known to be bearable
            self._value = min(self._most, self._value + 1 / self._value)

    def failed(self, number: int | None) -> None:
        if number in OVERLOAD:
            self._value = max(1.0, self._value / 2)
