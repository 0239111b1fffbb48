"""Liveness: by what a supervisor knows that a worker serves, hangs, or has had nothing to do for a while.

A worker is pinged through its request loop, so an answer says that requests are answered, and how many there were.
`mount.mounted` calls `idle` for each worker, and acts on what it says.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

import trio

from mount.channel import BrokenChannel

if TYPE_CHECKING:
    from mount.handle import WorkerHandle
    from mount.mounted import Mounted

log = logging.getLogger(__name__)

PING_EVERY: Final = 5.0


async def idle(mounted: Mounted, worker: WorkerHandle) -> bool:
    """True once nothing was asked of it for as long as its config says, and nothing is pending; False once it is gone:
    by itself, or put down because it hung."""
    requests, since = -1, trio.current_time()
    while not worker.gone.is_set():
        limit, idle_after = mounted.config.hang_limit, mounted.config.idle_after  # the policy may change meanwhile
        with trio.move_on_after(min(limit, idle_after or limit, PING_EVERY)):
            await worker.gone.wait()
            return False
        try:
            taken = await worker.ping(limit)
        except BrokenChannel:
            await worker.gone.wait()
            return False
        if taken is None:
            log.error("%s: no sign of life for %g s; where it hangs follows", mounted.config.session, limit)
            await worker.put_down()
            return False
        if taken != requests:
            requests, since = taken, trio.current_time()
        elif idle_after and trio.current_time() - since >= idle_after and await _has_nothing_to_do(worker):
            return True
    return False


async def _has_nothing_to_do(worker: WorkerHandle) -> bool:
    try:
        status, _ = await worker.channel.call("status")
    except (OSError, ValueError):
        return False
    return not status["pending"]
