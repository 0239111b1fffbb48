"""A target: the object that `--callbacks` names, ready for `vfs.persistence`.

app.files:Callbacks     a class, an instance, or a dict of functions, in a module that can be imported
app.files               the module itself
http://..., https://..., http+unix:///socket      a program at the other end of HTTP (docs/callbacks.md)
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from vfs import callbacks

__all__ = ["Target", "is_remote", "open_target"]


class Target(NamedTuple):
    """`owned`: nobody else has it, so who is done with it closes it. `can`: the callbacks that it has, to be
    remembered with the session, because the next start may come while the other end is down."""

    callbacks: object
    owned: bool
    can: frozenset[str]


def is_remote(spec: str) -> bool:
    return "://" in spec


async def open_target(
    spec: str, *, token: str | None = None, seconds: float = 30.0, can: Iterable[str] | None = None
) -> Target:
    """What `spec` names. `token`, `seconds` (of silence that are waited for) and `can` (what it had the last time)
    are for HTTP. ValueError and TypeError say what is wrong with it, OSError why it cannot be reached."""
    if is_remote(spec):
        from vfs.http.client import connect  # httpx costs 40 ms, and most sessions do without

        remote = await connect(spec, token=token, seconds=seconds, can=can)
        return Target(remote, True, remote.can)
    target = callbacks.load(spec)
    return Target(target, False, frozenset(callbacks.discover(target)))
