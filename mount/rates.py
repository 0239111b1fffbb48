"""Rates: what happened in each session between two looks at its status. `top` shows them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from mount.messages import SessionStatus

__all__ = ["Rate", "Rates"]


class Rate(NamedTuple):
    """Requests and errors a second, the mean latency in seconds, and the operation that most requests were."""

    requests: float = 0.0
    errors: float = 0.0
    mean: float = 0.0
    busiest: str = ""


class _Seen(NamedTuple):
    pid: int | None
    requests: dict[str, int]
    errors: int
    seconds: float


class Rates:
    def __init__(self) -> None:
        self._at: float | None = None
        self._seen: dict[str, _Seen] = {}
        self._rates: dict[str, Rate] = {}

    def of(self, session: str) -> Rate:
        return self._rates.get(session, Rate())

    def update(self, found: Iterable[SessionStatus], now: float) -> None:
        """A worker that was replaced begins at nothing; one that did not answer has no rate this time."""
        seen = {status.session: _counted(status) for status in found if status.worker and status.worker.answers}
        elapsed = now - self._at if self._at is not None else 0.0
        self._rates = {}
        for session, new in seen.items():
            old = self._seen.get(session)
            if elapsed > 0 and old is not None and old.pid == new.pid:
                self._rates[session] = _rate(old, new, elapsed)
        self._seen, self._at = seen, now


def _counted(status: SessionStatus) -> _Seen:
    tallies = status.details.get("operations", {})
    return _Seen(
        status.worker.pid if status.worker else None,
        {name: sum(tally["buckets"]) for name, tally in tallies.items()},
        sum(tally["errors"] for tally in tallies.values()),
        sum(tally["seconds"] for tally in tallies.values()),
    )


def _rate(old: _Seen, new: _Seen, elapsed: float) -> Rate:
    made = {name: count - old.requests.get(name, 0) for name, count in new.requests.items()}
    total = sum(made.values())
    if total <= 0:
        return Rate()
    busiest = max(made, key=lambda name: made[name])
    return Rate(total / elapsed, (new.errors - old.errors) / elapsed, (new.seconds - old.seconds) / total, busiest)
