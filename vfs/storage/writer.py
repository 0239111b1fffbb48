"""The one writer of a session in S3: the lease is held as long as the session is open for writing.

Who is refused the lease does not get to open the session (`LeaseHeld` says who has it). Who loses it, to one that stole
it or after being out of reach for longer than its time, may write nothing more: each attempt fails with `LeaseLost`, so
what was not stored stays pending in the state directory, and goes there when the session is opened from it again, or
its next worker finds that the new holder has given the lease up; what that one changed meanwhile is then a conflict,
and both versions are kept.

A state directory that knows the session needs no endpoint to be opened: programs work in it, and the lease is taken up
as soon as the endpoint answers. Nothing is written there before.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import math
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import trio

from vfs.describe import REMEMBERED
from vfs.durable import write_durably
from vfs.errors import error
from vfs.storage.lease import Lease, LeaseHeld, LeaseLost
from vfs.storage.s3 import S3Storage

__all__ = ["only_reading", "sole_writer"]

log = logging.getLogger(__name__)

PAUSE = 2.0  # seconds between tries to take the lease up
FIRST_TRY = 5.0  # seconds that opening a session waits for an endpoint it can do without


def only_reading(storage: S3Storage) -> None:
    """Nothing is written, so no lease is needed."""
    storage.refusal = error(errno.EROFS, storage.bucket.name, "the session is open read-only")


@contextlib.asynccontextmanager
async def sole_writer(
    storage: S3Storage, directory: Path, *, steal: bool = False, adopted: bool = False
) -> AsyncIterator[bool]:
    """The storage may be written as long as the block lasts, by this holder only. Yields whether it has the lease now.

    `directory`: the session's state directory, which is the holder: a worker that follows another one on the same state
    has the same lease. `adopted`: programs wait for that worker, so the lease is taken up behind them. `steal`: take it
    from another holder, who is fenced.
    """
    who = f"{socket.gethostname()}, process {os.getpid()}, state {directory}"
    acquire = functools.partial(storage.acquire, _holder(directory), who, steal=steal)
    lease = None if adopted else await _first(storage, acquire, known=(directory / REMEMBERED).exists())
    if lease is None:
        storage.taking_up = trio.Event()
    async with trio.open_nursery() as nursery:
        if lease is None:
            nursery.start_soon(_take_up, storage, acquire)
        else:
            nursery.start_soon(_keep, storage, lease)
        try:
            yield lease is not None
        finally:
            nursery.cancel_scope.cancel()
            if storage.lease is not None:
                with trio.CancelScope(shield=True):
                    await _release(storage.lease)


async def _first(storage: S3Storage, acquire: Callable[[], Awaitable[Lease]], *, known: bool) -> Lease | None:
    """The lease; None where the endpoint cannot be asked for it and the session is `known` here."""
    try:
        with trio.move_on_after(FIRST_TRY if known else math.inf):
            return await acquire()
        why: object = f"no answer within {FIRST_TRY:g} s"
    except LeaseHeld:
        raise
    except OSError as e:
        if not known:
            raise
        why = e
    log.warning("%s: %s; the session begins with what is here", storage.bucket.name, why)
    return None


async def _take_up(storage: S3Storage, acquire: Callable[[], Awaitable[Lease]]) -> None:
    """Have the lease as soon as the endpoint answers, and let writes go on. Who took it while this session slept is
    waited for; until then writes are refused."""
    assert storage.taking_up is not None
    told: LeaseHeld | None = None
    while True:
        try:
            lease = await acquire()
        except LeaseHeld as e:
            if told is None or told.held.epoch != e.held.epoch:
                log.error("%s; until then nothing is written there, and what is new stays in the state directory", e)
            told = storage.refusal = e
            storage.taking_up.set()
        except OSError as e:
            log.warning("%s: the lease cannot be taken up: %s; it is tried again", storage.bucket.name, e)
        else:
            storage.taking_up.set()
            if told is not None:
                log.info("%s: the lease is ours again", lease.key)
            await _keep(storage, lease)
            return
        await trio.sleep(PAUSE)


async def _keep(storage: S3Storage, lease: Lease) -> None:
    try:
        await lease.keep()
    except LeaseLost as e:
        log.error("%s: %s; nothing more is written there, and what was not stays in the state directory", lease.key, e)
        storage.refusal = e


async def _release(lease: Lease) -> None:
    try:
        with trio.fail_after(lease.ttl / 3):
            await lease.release()
    except (OSError, trio.TooSlowError) as e:
        log.warning("%s could not be given up and lapses in %g s: %s", lease.key, lease.ttl, e)


def _holder(directory: Path) -> str:
    """The state directory's name as a holder, made once."""
    path = directory / "holder"
    with contextlib.suppress(FileNotFoundError):
        return path.read_text()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    holder = secrets.token_hex(16)
    write_durably(path, holder.encode())
    return holder
