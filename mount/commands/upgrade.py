"""`mount-session upgrade`: have a session's supervisor become the program that is installed now."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import click
import trio

from mount import rendezvous
from mount.channel import Answer, Channel
from mount.commands.up import DashedIds
from mount.flagtypes import DIRECTORY
from mount.settings import default_state


async def _supervisor(directory: Path) -> int | None:
    sock = rendezvous.connect(directory)
    if sock is None:
        raise FileNotFoundError(f"{directory.name} has no worker now: it is not mounted, or idle; use it and try again")
    channel = Channel(sock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(channel.serve, _refuse)
        pid, _ = await channel.call("supervisor")
        nursery.cancel_scope.cancel()
    return pid  # type: ignore[no-any-return]


async def _refuse(name: str, arguments: dict[str, object], descriptors: list[int]) -> Answer:
    raise ValueError(f"this command answers nothing, so not {name!r}")


@click.command(cls=DashedIds)
@click.argument("session")
@click.option(
    "--state",
    type=DIRECTORY,
    envvar="MOUNT_SESSION_STATE",
    show_envvar=True,
    help="The state directory that the session was mounted with.",
)
def command(session: str, state: Path | None) -> None:
    """Run SESSION by the program that is installed now.

    Its supervisor replaces itself (as at SIGHUP), and every session that it has gets a worker of the new program. No
    request is refused: what programs ask meanwhile waits some tenths of a second. If what is installed cannot be
    loaded, everything stays as it is, and the supervisor's log says why.
    """
    pid = trio.run(_supervisor, (state or default_state()).absolute() / session)
    if pid is None:
        raise click.ClickException(f"{session} has no supervisor now; `up` it again, which takes it over")
    os.kill(pid, signal.SIGHUP)
    click.echo(f"process {pid} upgrades itself")
