"""Routing: the routes of a mounted session, as they are asked for, opened, and remembered.

A `RouteConfig` comes from a TOML file (`--routes`), over the API, or with `mount-session route` while the session is
mounted. What was added while mounted is kept in the session's own directory (`routes.json`), so whoever serves the
session next has it too: the next worker, the next `up`, a daemon. The worker opens routes, and writes that file.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import msgspec

from vfs.durable import write_durably
from vfs.policy import parse_size
from vfs.routes import Route, parse_base

__all__ = ["FILE", "TOKEN", "RouteConfig", "checked", "keep", "kept", "load", "open_route", "parse", "routes_of"]

FILE = "routes.json"
TOKEN = "MOUNT_SESSION_CALLBACKS_TOKEN"  # what callbacks over HTTP are shown; a command line is visible to everyone

_Seconds = Annotated[float, msgspec.Meta(ge=0)]
_Bytes = Annotated[int, msgspec.Meta(gt=0)]


class RouteConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One route. See `vfs.routes.Route` for what its policy means.

    base           the directory, "" for all that no other route has
    callbacks      `MODULE:NAME` or a URL; None: what is there stays in the session
    scope          the first argument of the callbacks
    strip_base     the callbacks see paths from the base on
    max_file_size  bytes that may be held in memory where ranges or files are not streamed: EFBIG beyond it
    timeout        seconds that a call may take, or go on without progress
    options        for the callbacks, in `context["options"]`
    """

    base: str = ""
    callbacks: str | None = None
    scope: Any = None
    strip_base: bool = False
    read_only: bool = False
    debounce: _Seconds = 1.0
    max_wait: _Seconds = 10.0
    local_only: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    max_file_size: _Bytes = 64 << 20
    timeout: Annotated[float, msgspec.Meta(gt=0)] = 30.0
    options: dict[str, Any] = {}

    def __post_init__(self) -> None:
        Route(self.base, None, self.read_only, self.debounce, self.max_wait)
        if self.base != parse_base(self.base):
            raise ValueError(f"base {self.base!r}: without slashes at its ends")


def parse(fields: dict[str, Any]) -> RouteConfig:
    """A route from what a person wrote: sizes may be like "1GiB". ValueError says what is wrong."""
    known = dict(fields)
    if isinstance(size := known.get("max_file_size"), str):
        known["max_file_size"] = parse_size(size)
    if isinstance(base := known.get("base"), str):
        known["base"] = base.strip("/")
    return msgspec.convert(known, RouteConfig)


def load(file: Path) -> tuple[RouteConfig, ...]:
    """The `[[route]]` tables of a TOML file. ValueError names the file and what is wrong."""
    try:
        found = tomllib.loads(file.read_text())
        if unknown := sorted(found.keys() - {"route"}):
            raise ValueError(f"{', '.join(unknown)}: only [[route]] tables are expected")
        routes = tuple(parse(fields) for fields in found.get("route", ()))
    except ValueError as e:  # a syntax error of TOML is one, too
        raise ValueError(f"{file}: {e}") from None
    return checked(routes, str(file))


def checked(routes: Iterable[RouteConfig], subject: str) -> tuple[RouteConfig, ...]:
    """The same. ValueError where two have one base."""
    found = tuple(routes)
    bases = [route.base for route in found]
    if doubled := sorted({base for base in bases if bases.count(base) > 1}):
        raise ValueError(f"{subject}: two routes for {doubled[0]!r}")
    return found


async def open_route(config: RouteConfig, session: str, directory: Path) -> tuple[Route, object]:
    """The route, with its callbacks found, and the object that they are of, which may have hooks. ValueError and
    OSError say why it cannot be. Its persistence is the caller's to close."""
    # Imported here: the command line and the daemon know routes too, and have no use for callbacks.
    from vfs.callbacks import Context
    from vfs.persistence import Persistence
    from vfs.target import open_target

    persistence, hooks = None, None
    if config.callbacks is not None:
        target = await open_target(
            config.callbacks,
            token=os.environ.get(TOKEN),
            seconds=config.timeout,
            directory=directory,
            max_file_size=config.max_file_size,
        )
        hooks = target.callbacks
        context: Context = {"session_id": session}
        if config.options:
            context["options"] = config.options
        persistence = Persistence(
            target.callbacks,
            config.scope,
            config.callbacks,
            context=context,
            base_directory=config.base,
            strip_base=config.strip_base,
            timeout=config.timeout,
            max_file_size=config.max_file_size,
            owned=target.owned,
        )
    policy = (config.read_only, config.debounce, config.max_wait, config.local_only, config.hidden)
    return Route(config.base, persistence, *policy), hooks


def kept(directory: Path) -> tuple[RouteConfig, ...]:
    """What was added while the session was mounted. ValueError names a file that is not as it was written."""
    file = directory / FILE
    try:
        return msgspec.json.decode(file.read_bytes(), type=tuple[RouteConfig, ...])
    except FileNotFoundError:
        return ()
    except ValueError as e:
        raise ValueError(f"{file}: {e}") from None


def keep(directory: Path, route: RouteConfig) -> None:
    """It is there after a restart, too. Blocks for an fsync."""
    others = tuple(other for other in kept(directory) if other.base != route.base)
    write_durably(directory / FILE, msgspec.json.encode((*others, route)))


def routes_of(context: Any, parameter: Any, file: Path | None) -> tuple[RouteConfig, ...]:
    """For click: the routes of the file that was given."""
    return () if file is None else load(file)
