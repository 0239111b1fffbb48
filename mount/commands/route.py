"""`mount-session route`: one directory of a mounted session is kept elsewhere from now on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click
import msgspec
import trio

from mount import rendezvous
from mount.channel import Answer, Channel
from mount.client import Client, NoDaemon, Refused
from mount.commandline import DaemonCommand, json_option, show
from mount.commands.up import scope_of
from mount.flagtypes import DIRECTORY
from mount.routing import RouteConfig, parse
from mount.settings import STATE_VARIABLE, default_state
from vfs.fileref import validate_session_id


@click.command(cls=DaemonCommand)
@click.argument("session")
@click.argument("base", metavar="DIRECTORY")
@click.option("--callbacks", help="MODULE:NAME or a URL; without, what is there stays in the session.")
@click.option("--scope", metavar="JSON", help="The first argument of the callbacks.")
@click.option("--strip-base", is_flag=True, help="The callbacks see paths from DIRECTORY on.")
@click.option("--read-only", is_flag=True, help="Nothing in it can be changed (EROFS).")
@click.option("--debounce", type=float, help="Seconds without a write after which an edit goes out; 1.")
@click.option("--max-wait", type=float, help="Seconds after which it goes out however often it is written; 10.")
@click.option("--local-only", multiple=True, metavar="GLOB", help="What of it is never persisted.")
@click.option("--hidden", multiple=True, metavar="GLOB", help="Names that do not exist in it.")
@click.option("--max-file-size", metavar="SIZE", help="EFBIG beyond it where the callbacks do not stream; 64MiB.")
@click.option("--timeout", type=float, help="Seconds that a call of a callback may take; 30.")
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="For the callbacks, in context.")
@click.option("--state", type=DIRECTORY, envvar=STATE_VARIABLE, show_envvar=True, help="As of `up` or `serve`.")
@json_option
def command(session: str, base: str, scope: str | None, state: Path | None, as_json: bool, **flags: Any) -> None:
    """Keep DIRECTORY of SESSION, which is mounted by `up` or the daemon, in a store of its own.

    What is there goes to it, what it has appears, and so it stays at every later start. DIRECTORY is a path in the
    session; it is made if it is not there. Routes that a session shall have from its start: `--routes` of `up` and
    `new`.
    """
    validate_session_id(session)
    fields = {name: value for name, value in flags.items() if value not in (None, False, ())}
    if "options" in fields:
        fields["options"] = dict(option.partition("=")[::2] for option in fields["options"])
    if scope is not None:
        fields["scope"] = scope_of(scope)
    route = parse({**fields, "base": base})
    show(_add(state or default_state(), session, route), as_json)


def _add(state: Path, session: str, route: RouteConfig) -> dict[str, int]:
    """By the daemon, where that has the session; else by the worker itself."""
    try:
        with Client(state) as daemon:
            return daemon.add_route(session, route)
    except (NoDaemon, Refused) as e:
        if isinstance(e, Refused) and e.status != 404:
            raise
        sock = rendezvous.connect(state / session)
        if sock is None:
            raise FileNotFoundError(f"session {session!r} is not mounted with the state in {os.fspath(state)}") from e
    channel = Channel(sock)

    async def ask() -> Any:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(channel.serve, _no_questions)
            answer, _ = await channel.call("route", {"route": msgspec.to_builtins(route)})
            nursery.cancel_scope.cancel()
        return answer

    return msgspec.convert(trio.run(ask), dict[str, int])


async def _no_questions(name: str, arguments: dict[str, Any], descriptors: list[int]) -> Answer:
    raise ValueError(f"a command is asked to {name!r}")
