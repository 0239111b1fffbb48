"""Joining: a route is added to a session in use.

What the new persistence has appears, and what is in the directory goes to it. Files of the directory that another
persistence keeps, or is just given, would count as the new one's, and its listing would then say that they are gone:
such a directory is refused, by a check after which nothing is awaited before the route is in force.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from vfs.adoption import make_base
from vfs.describe import describe
from vfs.errors import error
from vfs.refresh import Refreshed
from vfs.routes import Route

if TYPE_CHECKING:
    from vfs.persisted import PersistedSession

__all__ = ["join"]


async def join(session: PersistedSession, route: Route) -> Refreshed:
    """See `PersistedSession.add_route`."""
    _check(session, route)
    if route.persistence is not None and "on_list" in route.persistence.can:
        await route.persistence.list()
    description = describe(session, route)
    before = frozenset(session.namespace.inodes)
    if description is not None:
        await description.begin(fresh=True)
    while _is_worked_on(session, os.fsencode(route.base)):
        await session.writeback.progressed.wait()
    _check(session, route)
    session.routes.add(route)
    make_base(session, route)
    session.writeback.notes.note_all()
    if description is not None:
        session.descriptions.append(description)
    found = await session.listing.once()
    if description is not None:
        await description.take_up(before)
        description.listening = True
        session.spawn(description.run)
    return found


def _check(session: PersistedSession, route: Route) -> None:
    if route.base in (other.base for other in session.routes):
        raise ValueError(f"base directory {route.base!r} has a route already")
    held = [session.place(path) for path in session.namespace.remote.under(os.fsencode(route.base))]
    elsewhere = [p for p in held if p.persistence is not None and len(p.route.base) < len(route.base)]
    if elsewhere:
        why = f"it has {len(elsewhere)} files that are kept elsewhere; move them away first, and back afterwards"
        raise error(errno.ENOTEMPTY, route.base or "/", why)


def _is_worked_on(session: PersistedSession, base: bytes) -> bool:
    return any(path == base or path.startswith(base + b"/") for path in session.writeback.transfer.busy)
