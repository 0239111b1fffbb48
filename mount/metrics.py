"""Prometheus metrics: every name that this project exposes is in this module, and nowhere else.

Counters live in the workers, which tell them with their status; the daemon adds what it knows and writes them out
when asked. A worker that was replaced starts at zero, which Prometheus takes for the reset that it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

import trio
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mount.messages import SessionStatus
from mount.tally import bounds

if TYPE_CHECKING:
    from mount.daemon import Daemon

__all__ = ["CONTENT_TYPE", "exposition", "metrics_application"]

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4

# Of the host
SESSIONS: Final = ("mount_session_sessions", "Sessions by state", ("state",))
WEBHOOK_PENDING: Final = ("mount_session_webhook_pending", "Events that a receiver has not taken yet", ("webhook",))
WEBHOOK_FAILURES: Final = ("mount_session_webhook_failures", "Attempts that a receiver did not take", ("webhook",))
WEBHOOK_DROPPED: Final = ("mount_session_webhook_dropped", "Events that no longer fitted the queue", ("webhook",))
AUDIT_LINES: Final = ("mount_session_audit_lines", "Lines of the audit log", ())
REFUSED: Final = ("mount_session_refused_connections", "Connections of users that the control socket rejects", ())

# Of each session
UP: Final = ("mount_session_up", "1 if the session is mounted, and its worker answers or is not needed", ("session",))
FILES: Final = ("mount_session_files", "Files in the session", ("session",))
BYTES: Final = ("mount_session_bytes", "Bytes in the session, as the sizes of its files", ("session",))
PENDING: Final = ("mount_session_pending", "Changes that are not persisted yet", ("session",))
REQUESTS: Final = ("mount_session_requests", "Requests from the kernel, since the worker began", ("session",))
RESTARTS: Final = ("mount_session_worker_restarts", "Workers that were replaced", ("session",))
SECONDS: Final = ("mount_session_operation_seconds", "Requests by operation and latency", ("session", "operation"))
ERRORS: Final = (
    "mount_session_operation_errors",
    "Requests that were answered with an error",
    ("session", "operation"),
)
DETAIL: Final = {
    "dirty_bytes": ("mount_session_dirty_bytes", "Bytes of files that are not persisted as they are", ("session",)),
    "pending_bytes": ("mount_session_pending_bytes", "Of those, bytes of files that nobody writes now", ("session",)),
    "cache_bytes": ("mount_session_cache_bytes", "Bytes here, where the policy limits them", ("session",)),
}
COUNTED: Final = {
    "read_bytes": ("mount_session_read_bytes", "Bytes that the kernel's page cache did not have", ("session",)),
    "written_bytes": ("mount_session_written_bytes", "Bytes that programs wrote", ("session",)),
    "cache_hits": ("mount_session_cache_hits", "Reads from the kernel that found their bytes here", ("session",)),
    "cache_misses": ("mount_session_cache_misses", "Reads that had to wait for the persistence", ("session",)),
    "uploads": ("mount_session_uploads", "Files that reached the persistence", ("session",)),
    "uploaded_bytes": ("mount_session_uploaded_bytes", "Bytes that reached the persistence", ("session",)),
    "retries": ("mount_session_upload_retries", "Attempts to write that the persistence did not take", ("session",)),
    "conflicts": ("mount_session_conflicts", "Files that someone else had changed, now kept twice", ("session",)),
}
_CALL: Final = ("session", "persistence", "callback")
CALLS: Final = {
    "calls": ("mount_session_persistence_calls", "Calls of a persistence", _CALL),
    "failures": ("mount_session_persistence_failures", "Calls that failed", _CALL),
    "seconds": ("mount_session_persistence_seconds", "Seconds that the successful ones took", _CALL),
    "bytes": ("mount_session_persistence_bytes", "Bytes of content that they moved", _CALL),
}


class _Snapshot(Collector):
    """One moment, as Prometheus wants it."""

    def __init__(self, daemon: Daemon, statuses: list[SessionStatus]) -> None:
        self._daemon = daemon
        self._statuses = statuses

    def collect(self) -> Iterator[Metric]:
        yield from self._host()
        statuses = self._statuses
        yield _gauge(UP, {(s.session,): float(_is_up(s)) for s in statuses})
        yield _gauge(FILES, {(s.session,): s.files for s in statuses})
        yield _gauge(BYTES, {(s.session,): s.bytes for s in statuses})
        yield _gauge(PENDING, {(s.session,): s.pending for s in statuses})
        yield _counter(REQUESTS, {(s.session,): s.requests for s in statuses})
        yield _counter(RESTARTS, {(s.session,): s.worker.restarts for s in statuses if s.worker})
        latencies = HistogramMetricFamily(*SECONDS[:2], labels=SECONDS[2])
        errors: dict[tuple[str, ...], float | None] = {}
        for status in statuses:
            for operation, tally in _operations(status).items():
                labels = (status.session, operation)
                counted = list(zip(bounds(), accumulate(tally["buckets"]), strict=True))
                latencies.add_metric(labels, counted, tally["seconds"])
                errors[labels] = tally["errors"]
        yield latencies
        yield _counter(ERRORS, errors)
        for key, gauge in DETAIL.items():
            yield _gauge(gauge, {(s.session,): s.details.get(key) for s in statuses})
        for key, counter in COUNTED.items():
            yield _counter(counter, {(s.session,): s.details.get(key) for s in statuses})
        calls = [(s.session, call) for s in statuses for call in s.details.get("calls", ())]
        for key, name in CALLS.items():
            found = {(session, call["persistence"], call["callback"]): call[key] for session, call in calls}
            yield _counter(name, found)

    def _host(self) -> Iterator[Metric]:
        states: dict[tuple[str, ...], float] = {}
        for status in self._statuses:
            states[(status.state,)] = states.get((status.state,), 0) + 1
        yield _gauge(SESSIONS, states)
        receivers = self._daemon.webhooks.receivers
        yield _gauge(WEBHOOK_PENDING, {(r.webhook.name,): r.pending for r in receivers})
        yield _counter(WEBHOOK_FAILURES, {(r.webhook.name,): r.failures for r in receivers})
        yield _counter(WEBHOOK_DROPPED, {(r.webhook.name,): r.dropped for r in receivers})
        yield _counter(AUDIT_LINES, {(): self._daemon.audit.head.seq})
        yield _counter(REFUSED, {(): self._daemon.refused()})


def _is_up(status: SessionStatus) -> bool:
    return status.worker is not None and (status.worker.answers or status.worker.phase == "idle")


def _operations(status: SessionStatus) -> dict[str, Any]:
    found = status.details.get("operations", {})
    return found if isinstance(found, dict) else {}


_Name = tuple[str, str, tuple[str, ...]]


def _gauge(name: _Name, values: Any) -> Metric:
    return _filled(GaugeMetricFamily(name[0], name[1], labels=name[2]), values)


def _counter(name: _Name, values: Any) -> Metric:
    return _filled(CounterMetricFamily(name[0], name[1], labels=name[2]), values)


def _filled(family: Any, values: dict[tuple[str, ...], float | None]) -> Metric:
    """What is not known is left out, not told as zero."""
    for labels, value in values.items():
        if value is not None:
            family.add_metric(labels, value)
    assert isinstance(family, Metric)
    return family


async def exposition(daemon: Daemon) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(daemon, await daemon.statuses()))
    return await trio.to_thread.run_sync(generate_latest, registry)


def metrics_application(daemon: Daemon) -> Starlette:
    """`/metrics` alone, for an address that anybody on the network may reach: it shows ids and counts, no names of
    files."""

    async def metrics(request: Request) -> Response:
        return Response(await exposition(daemon), media_type=CONTENT_TYPE)

    return Starlette(routes=[Route("/metrics", metrics)])
