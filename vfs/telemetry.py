"""Telemetry: each call of a persistence, how long it took, what it moved, and whether it failed.

A `Persistence` counts its calls by callback, for who asks now and then, and tells observers of each one. An observer is
a function that does not wait; that one raises is logged once, and the call goes on. What a session with persistences
makes of them is its `Traffic`.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

__all__ = ["Call", "Tally", "Telemetry", "Traffic"]

log = logging.getLogger(__name__)


class Call(msgspec.Struct):
    """`seconds` it took, threads and retries by the callback included; `bytes` of content that were moved; `error` as
    errno, None where it succeeded. `path` is the session's, "/" for a listing."""

    persistence: str
    callback: str
    path: str
    bytes: int = 0
    seconds: float = 0.0
    error: int | None = None


class Tally(msgspec.Struct):
    """All calls of one callback; `seconds` and `bytes` of those that succeeded."""

    calls: int = 0
    failures: int = 0
    seconds: float = 0.0
    bytes: int = 0


class Traffic(msgspec.Struct):
    """Since the session was opened.

    hits, misses    reads that found all their bytes here, and reads that had to wait for a persistence
    uploads, bytes  files that a persistence has acknowledged, and the bytes in them; moves are not counted
    retries         attempts to write back that a persistence did not take, so that another had to follow
    conflicts       files that someone else had changed meanwhile: both versions are kept
    """

    hits: int = 0
    misses: int = 0
    uploads: int = 0
    bytes: int = 0
    retries: int = 0
    conflicts: int = 0


class Telemetry:
    def __init__(self) -> None:
        self.tallies: dict[str, Tally] = {}
        self.observers: list[Callable[[Call], None]] = []
        self._failed: set[int] = set()  # observers, by id

    @contextmanager
    def measured(self, call: Call) -> Iterator[Call]:
        """Counts what the block does; a block that is cancelled is not counted."""
        began = time.perf_counter()
        try:
            yield call
        except Exception as e:
            call.error = e.errno or errno.EIO if isinstance(e, OSError) else errno.EIO
            call.seconds = time.perf_counter() - began
            self.count(call)
            raise
        call.seconds = time.perf_counter() - began
        self.count(call)

    def count(self, call: Call) -> None:
        tally = self.tallies.setdefault(call.callback, Tally())
        tally.calls += 1
        if call.error is None:
            tally.seconds += call.seconds
            tally.bytes += call.bytes
        else:
            tally.failures += 1
        for observer in self.observers:
            try:
                observer(call)
            except Exception:
                if id(observer) not in self._failed:
                    self._failed.add(id(observer))
                    log.exception("%s: an observer of its calls failed; not said again", call.persistence)
