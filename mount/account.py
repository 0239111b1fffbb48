"""The account that a worker gives of its session when it is asked for its status: counts, and of files only the names
of those that something is wrong with, a few of each kind.

Cheap however large the session is, for whoever watches asks often: what grows with it is counted as it changes, and
only what is not persisted yet is looked through. All counters begin with the worker. `metrics` makes Prometheus' of
them, `hosted` the session's status, `rates` what `top` shows. Called by the worker.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import islice
from typing import Any

import msgspec

from mount.quietlog import masked
from mount.tally import Tally
from vfs.errors import LONGEST, brief
from vfs.persisted import PersistedSession
from vfs.session import Session
from vfs.stats import backlog

__all__ = ["account", "printable"]

NAMED = 20  # names of a kind


def printable(path: str) -> str:
    """Messages are UTF-8, which names need not be."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _named(path: str) -> str:
    """Of a path that is too long to be told, the end says most."""
    name = printable(path)
    return name if len(name) <= LONGEST else "…" + name[1 - LONGEST :]


def account(session: Session, tallies: Mapping[str, Tally]) -> dict[str, Any]:
    files, size = session.namespace.named()
    told: dict[str, Any] = {
        "files": files,
        "bytes": size,
        "pending": 0,
        "read_bytes": tallies["read"].bytes,
        "written_bytes": tallies["write"].bytes,
        "operations": {name: tally.told() for name, tally in tallies.items() if tally.seconds},
    }
    if isinstance(session, PersistedSession):
        told |= _persisted(session)
    return told


def _persisted(session: PersistedSession) -> dict[str, Any]:
    left, traffic = backlog(session), session.traffic
    left_out = dict(session.listing.refused)
    persistences = [route.persistence for route in session.routes if route.persistence is not None]
    for persistence in persistences:
        left_out |= persistence.left_out
    stuck = [pending for pending in session.writeback.queue if pending.stuck]
    return {
        "left_out": {_named(name): brief(why) for name, why in islice(left_out.items(), NAMED)},
        "left_out_in_all": len(left_out),
        "stuck": {_named(os.fsdecode(pending.path)): brief(str(pending.error)) for pending in stuck[:NAMED]},
        "stuck_in_all": len(stuck),
        "pending": left.changes,
        "dirty_bytes": left.dirty,
        "pending_bytes": left.pending,
        "unwritten": [masked(p.name) for p in persistences if not p.writes],
        "cache_bytes": None if session.cache.limit is None else session.cache.used_now,
        "cache_hits": traffic.hits,
        "cache_misses": traffic.misses,
        "uploads": traffic.uploads,
        "uploaded_bytes": traffic.bytes,
        "retries": traffic.retries + sum(persistence.retried for persistence in persistences),
        "conflicts": traffic.conflicts,
        "calls": [
            {"persistence": masked(persistence.name), "callback": callback, **msgspec.structs.asdict(tally)}
            for persistence in persistences
            for callback, tally in persistence.telemetry.tallies.items()
        ],
    }
