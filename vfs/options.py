"""Options of a session with a persistence, as one value. Times in seconds, sizes in bytes."""

from __future__ import annotations

from typing import Any

import msgspec

__all__ = ["Options"]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What may be set for a session that has routes.

    concurrency       operations in flight at the start; it adapts between 1 and max_concurrency
    stop_timeout      how long the end of the session waits for what is pending; what is left goes on at the next start
    read_timeout      how long a reader waits for content that is elsewhere, before EIO
    refresh_interval  between two listings, where there is an on_list; None: only when asked
    cache_wait        how long a writer waits when only dirty data is left in a full cache, before ENOSPC
    behind            a persistence that the session knows already is listed when it answers: opening does not wait
    event_bytes       of the event log; older events are dropped
    hooks             object with any of on_file_created, on_file_modified, on_file_deleted, on_file_synced
    """

    concurrency: int = 16
    max_concurrency: int = 64
    stop_timeout: float = 60.0
    read_timeout: float = 60.0
    refresh_interval: float | None = 30.0
    cache_wait: float = 30.0
    behind: bool = False
    event_bytes: int = 64 << 20
    hooks: Any = None
