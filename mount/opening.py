"""From what a mount is asked to be to an open session: its policy, and the persistence that its storage or
callbacks are.

Only the worker imports this, for boto3 and the integrator's own code come with it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator

from mount.config import MountConfig
from vfs.callbacks import Context
from vfs.persistence import Persistence
from vfs.policy import Policy
from vfs.routes import Route, Routes
from vfs.session import Session
from vfs.storage import as_persistence, open_storage
from vfs.target import open_target, remember

__all__ = ["open_persistence", "opened"]

TOKEN = "MOUNT_SESSION_CALLBACKS_TOKEN"  # what callbacks over HTTP are shown; a command line is visible to everyone


@contextlib.asynccontextmanager
async def opened(config: MountConfig, *, adopted: bool) -> AsyncIterator[Session]:
    """The session, as long as the block lasts; its persistence is closed after it."""
    policy = config.policy
    persistence = await open_persistence(config)
    try:
        async with Session.open(
            config.session, config.state_path, adopted=adopted, policy=policy, routes=_routes(persistence, policy)
        ) as session:
            if persistence is not None and config.callbacks is not None:
                remember(config.directory, config.callbacks, persistence.can)
            yield session
    finally:
        if persistence is not None:
            await persistence.aclose()


def _routes(persistence: Persistence | None, policy: Policy) -> Routes | None:
    """None where the state directory is the store and every name is there: then nothing is looked up."""
    if persistence is None and not policy.hidden:
        return None
    routes = [] if persistence is None else [Route(persistence=persistence)]
    return Routes(routes, hidden=policy.hidden, local_only=policy.local_only)


async def open_persistence(config: MountConfig) -> Persistence | None:
    """ValueError if two are asked for, or what is asked for is none."""
    storage = open_storage(config.storage)
    context: Context = {"session_id": config.session}
    if config.callbacks is None:
        if storage is None:
            return None
        await storage.init(config.session)
        name = config.storage.partition("?")[0]
        return Persistence(as_persistence(storage), name=name, context=context, owned=True)
    if storage is not None:
        raise ValueError(f"session {config.session!r}: both a storage and callbacks are given; one of them is needed")
    target = await open_target(config.callbacks, token=os.environ.get(TOKEN), directory=config.directory)
    return Persistence(target.callbacks, config.scope, config.callbacks, context=context, owned=target.owned)
