"""From what a mount is asked to be to an open session: its policy, and the persistence that its storage or
callbacks are.

Only the worker imports this, for boto3 and the integrator's own code come with it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, cast

from mount.config import MountConfig
from vfs.callbacks import Context
from vfs.options import Options
from vfs.persistence import Persistence
from vfs.policy import Policy
from vfs.routes import Route, Routes
from vfs.session import Session
from vfs.storage import Storage, as_persistence, open_storage
from vfs.target import open_target, remember

if TYPE_CHECKING:
    from vfs.storage.s3 import S3Storage

__all__ = ["open_persistence", "opened"]

TOKEN = "MOUNT_SESSION_CALLBACKS_TOKEN"  # what callbacks over HTTP are shown; a command line is visible to everyone


@contextlib.asynccontextmanager
async def opened(config: MountConfig, *, adopted: bool) -> AsyncIterator[Session]:
    """The session, as long as the block lasts; its persistence is closed after it."""
    policy = config.policy
    async with contextlib.AsyncExitStack() as stack:
        storage = await _storage(config)
        persistence, hooks = await _persistence(config, storage)
        if persistence is not None:
            stack.push_async_callback(persistence.aclose)
        reached = True
        if hasattr(storage, "acquire"):
            reached = await stack.enter_async_context(_leased(cast("S3Storage", storage), config, adopted))
        session = await stack.enter_async_context(
            Session.open(
                config.session,
                config.state_path,
                adopted=adopted,
                policy=policy,
                routes=_routes(persistence, policy),
                options=Options(hooks=hooks, behind=not reached),
            )
        )
        if persistence is not None and config.callbacks is not None:
            remember(config.directory, config.callbacks, persistence.can)
        yield session


@contextlib.asynccontextmanager
async def _leased(storage: S3Storage, config: MountConfig, adopted: bool) -> AsyncIterator[bool]:
    """A session has one writer; whether it is this one by now. Stealing is for the first worker of a mount: a later
    one lost the lease itself."""
    from vfs.storage.writer import only_reading, sole_writer

    if config.policy.read_only:
        only_reading(storage)
        yield True
    else:
        steal = config.steal and not adopted
        async with sole_writer(storage, config.directory, steal=steal, adopted=adopted) as reached:
            yield reached


def _routes(persistence: Persistence | None, policy: Policy) -> Routes | None:
    """None where the state directory is the store and every name is there: then nothing is looked up."""
    if persistence is None and not policy.hidden:
        return None
    routes = [] if persistence is None else [Route(persistence=persistence)]
    return Routes(routes, hidden=policy.hidden, local_only=policy.local_only)


async def open_persistence(config: MountConfig) -> Persistence | None:
    """ValueError if two are asked for, or what is asked for is none."""
    return (await _persistence(config, await _storage(config)))[0]


async def _storage(config: MountConfig) -> Storage | None:
    storage = open_storage(config.storage)
    if storage is not None and config.callbacks is not None:
        raise ValueError(f"session {config.session!r}: both a storage and callbacks are given; one of them is needed")
    if storage is not None:
        await storage.init(config.session)
    return storage


async def _persistence(config: MountConfig, storage: Storage | None) -> tuple[Persistence | None, object]:
    """The persistence, and the object that may have hooks beside its callbacks (`vfs.hooks`)."""
    context: Context = {"session_id": config.session}
    if storage is not None:
        name = config.storage.partition("?")[0]
        return Persistence(as_persistence(storage), name=name, context=context, owned=True), None
    if config.callbacks is None:
        return None, None
    target = await open_target(config.callbacks, token=os.environ.get(TOKEN), directory=config.directory)
    persistence = Persistence(target.callbacks, config.scope, config.callbacks, context=context, owned=target.owned)
    return persistence, target.callbacks
