"""What is pending: paths whose persistence does not hold what the namespace says, and when each is next tried.

A pending path is waiting (due at a time), or busy (an operation on it is in flight; never two). Failures are retried
for ever: after a pause that doubles up to a minute, with full jitter, so that a persistence that comes back is not met
by all at once; slowly, up to five minutes, when the error looks as if it would not pass by itself.
"""

from __future__ import annotations

import errno
import heapq
import random
from collections.abc import Iterator

__all__ = ["PERMANENT", "Pending", "Queue"]

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0
FIRST_SLOW_PAUSE, LONGEST_SLOW_PAUSE = 30.0, 300.0

PERMANENT = frozenset(
    {
        errno.E2BIG,
        errno.EACCES,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EILSEQ,
        errno.EINVAL,
        errno.EMSGSIZE,
        errno.ENAMETOOLONG,
        errno.ENOSPC,
        errno.ENOSYS,
        errno.ENOTSUP,
        errno.EPERM,
        errno.EROFS,
        errno.ESTALE,  # the lease is another's; a Conflict does not come this far
    }
)
"""Errors that someone has to do something about; they are tried again all the same."""


class Pending:
    """One path. `since`: when it became pending; times are trio's clock."""

    __slots__ = ("alone", "busy", "detours", "done", "due", "error", "not_before", "path", "since", "torn", "tries")

    def __init__(self, path: bytes, now: float) -> None:
        self.path = path
        self.since = now
        self.due = now
        self.not_before = 0.0
        self.busy = False
        self.alone = False  # not in a batch, the next time
        self.tries = 0
        self.torn = 0
        self.detours = 0  # steps in a row that something else took
        self.done = -1
        self.error: OSError | None = None

    def succeeded(self, epoch: int) -> None:
        self.done = epoch
        self.tries = self.torn = 0
        self.error = None

    def failed(self, error: OSError, now: float) -> None:
        self.error = error
        first, longest = (FIRST_PAUSE, LONGEST_PAUSE) if not self.stuck else (FIRST_SLOW_PAUSE, LONGEST_SLOW_PAUSE)
        pause = min(longest, first * 2 ** min(self.tries, 20))
        self.tries += 1
        self.not_before = now + random.uniform(pause / 10, pause)

    @property
    def stuck(self) -> bool:
        return self.error is not None and self.error.errno in PERMANENT


class Queue:
    """Pending paths by the time at which they are due."""

    def __init__(self) -> None:
        self.paths: dict[bytes, Pending] = {}
        self._heap: list[tuple[float, bytes]] = []

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Pending]:
        return iter(self.paths.values())

    def get(self, path: bytes) -> Pending | None:
        return self.paths.get(path)

    def schedule(self, pending: Pending, due: float) -> None:
        """Look at it again at `due`."""
        pending.due = due
        self.paths[pending.path] = pending
        heapq.heappush(self._heap, (due, pending.path))

    def remove(self, path: bytes) -> None:
        self.paths.pop(path, None)

    def next_due(self) -> float | None:
        """When the first of them is due; None: never."""
        while self._heap:
            due, path = self._heap[0]
            pending = self.paths.get(path)
            if pending is not None and not pending.busy and pending.due == due:
                return due
            heapq.heappop(self._heap)
        return None

    def pop(self, now: float) -> Pending | None:
        """The first one that is due at `now`; it stays pending."""
        due = self.next_due()
        if due is None or due > now:
            return None
        return self.paths[heapq.heappop(self._heap)[1]]
