"""Tallies: how many requests of each operation a worker has answered, how long they took, how many failed.

Latencies are counted in buckets of powers of two of a microsecond, which is what Prometheus gets as a histogram; it
costs a request two looks at the clock and a list item. Kept by `operations`, told with the worker's status.
"""

from __future__ import annotations

from typing import Any, Final

__all__ = ["BUCKETS", "Tally", "bounds"]

BUCKETS: Final = 25  # up to 16 s; the last one counts all above


class Tally:
    __slots__ = ("buckets", "bytes", "errors", "seconds")

    def __init__(self) -> None:
        self.errors = 0
        self.bytes = 0  # of content, where the operation moves some
        self.seconds = 0.0
        self.buckets = [0] * 64  # of any time that there is, so that none needs a comparison

    def add(self, seconds: float) -> None:
        self.seconds += seconds
        self.buckets[int(seconds * 1e6).bit_length()] += 1

    def told(self) -> dict[str, Any]:
        kept = [*self.buckets[: BUCKETS - 1], sum(self.buckets[BUCKETS - 1 :])]
        return {"errors": self.errors, "seconds": self.seconds, "buckets": kept}


def bounds() -> list[str]:
    """Each bucket's upper bound in seconds, as Prometheus writes it."""
    return [f"{(1 << n) / 1e6:g}" for n in range(BUCKETS - 1)] + ["+Inf"]
