"""From what a mount is asked to be to an open session: its policy, and the persistences that its storage, its callbacks
and its routes are.

Only the worker imports this, for boto3 and the integrator's own code come with it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, cast

import trio

from mount.config import MountConfig
from mount.routing import RouteConfig, keep, kept, open_route
from vfs.callbacks import Context
from vfs.options import Options
from vfs.persisted import PersistedSession
from vfs.persistence import Persistence
from vfs.policy import Policy
from vfs.refresh import Refreshed
from vfs.routes import Route, Routes
from vfs.session import Session
from vfs.storage import Storage, as_persistence, open_storage
from vfs.target import remember

if TYPE_CHECKING:
    from vfs.storage.s3 import S3Storage

__all__ = ["Opened", "open_persistences", "opened"]

log = logging.getLogger(__name__)


class Opened:
    """An open session, and the persistences that it was opened with or was given since. They are closed after it."""

    def __init__(self, config: MountConfig, session: Session, persistences: contextlib.AsyncExitStack) -> None:
        self.session = session
        self._config = config
        self._persistences = persistences

    async def add_route(self, asked: RouteConfig) -> Refreshed | None:
        """One route more, now and at every later start. None: only another worker can, because this session looks up
        no routes. OSError and ValueError say why it cannot be, and nothing has changed."""
        config = self._config
        others = _asked(config)
        if asked.base in {other.base for other in others}:
            raise ValueError(f"{asked.base!r} has a route already")
        route, _ = await open_route(asked, config.session, config.directory)
        found = None
        async with contextlib.AsyncExitStack() as stack:
            if route.persistence is not None:
                stack.push_async_callback(route.persistence.aclose)
            if isinstance(self.session, PersistedSession):
                found = await self.session.add_route(route)
            await trio.to_thread.run_sync(keep, config.directory, asked)
            if route.persistence is not None and asked.callbacks is not None:
                remember(config.directory, asked.callbacks, route.persistence.can)
            if found is not None:
                self._persistences.push_async_callback(stack.pop_all().aclose)
        return found


@contextlib.asynccontextmanager
async def opened(config: MountConfig, *, adopted: bool) -> AsyncIterator[Opened]:
    """The session, as long as the block lasts."""
    policy, reached = config.policy, True
    async with contextlib.AsyncExitStack() as persistences, contextlib.AsyncExitStack() as stack:
        storage = await _storage(config)
        routes, hooks = [], None
        if storage is not None:
            routes.append(Route(persistence=_stored(config, storage)))
            persistences.push_async_callback(cast(Persistence, routes[0].persistence).aclose)
        for asked in _asked(config):
            route, target = await open_route(asked, config.session, config.directory)
            routes.append(route)
            hooks = target if asked.base == "" else hooks
            if route.persistence is not None:
                persistences.push_async_callback(route.persistence.aclose)
        if hasattr(storage, "acquire"):
            reached = await stack.enter_async_context(_leased(cast("S3Storage", storage), config, adopted))
        session = await stack.enter_async_context(
            Session.open(
                config.session,
                config.state_path,
                adopted=adopted,
                policy=policy,
                routes=_routes(routes, policy),
                options=Options(hooks=hooks, behind=not reached),
            )
        )
        for route in routes:
            if route.persistence is not None and not (route.persistence.writes or route.read_only or adopted):
                why = "has no callback that writes: changes there stay in the state directory"
                log.warning("%s: %s %s", config.session, route.persistence.name, why)
            if route.persistence is not None:
                remember(config.directory, route.persistence.name, route.persistence.can)
        yield Opened(config, session, persistences)


def _asked(config: MountConfig) -> list[RouteConfig]:
    """All routes that have callbacks or a policy of their own: what was given wins over what was added once."""
    asked = list(config.routes)
    if config.callbacks is not None:
        asked.insert(0, RouteConfig(callbacks=config.callbacks, scope=config.scope))
    given = {route.base for route in asked}
    return asked + [route for route in kept(config.directory) if route.base not in given]


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


def _routes(routes: list[Route], policy: Policy) -> Routes | None:
    """None where the state directory is the store and every name is there: then nothing is looked up. ValueError for
    two of one base."""
    if not routes and not policy.hidden:
        return None
    return Routes(routes, hidden=policy.hidden, local_only=policy.local_only)


async def open_persistences(config: MountConfig) -> list[Persistence]:
    """What the session is kept in. ValueError if a storage and callbacks are asked for, or one of them is none."""
    storage = await _storage(config)
    found = [] if storage is None else [_stored(config, storage)]
    for asked in _asked(config):
        route, _ = await open_route(asked, config.session, config.directory)
        if route.persistence is not None and not route.read_only:
            found.append(route.persistence)
    return found


async def _storage(config: MountConfig) -> Storage | None:
    storage = open_storage(config.storage)
    if storage is not None and config.callbacks is not None:
        raise ValueError(f"session {config.session!r}: both a storage and callbacks are given; one of them is needed")
    if storage is not None:
        await storage.init(config.session)
    return storage


def _stored(config: MountConfig, storage: Storage) -> Persistence:
    context: Context = {"session_id": config.session}
    return Persistence(as_persistence(storage), name=config.storage.partition("?")[0], context=context, owned=True)
