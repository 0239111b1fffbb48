"""`mount-session events`: what happened in a session, as lines of JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click
import msgspec

from mount.client import Client, NoDaemon
from mount.commandline import DaemonCommand
from mount.flagtypes import DIRECTORY
from mount.settings import STATE_VARIABLE, default_state
from vfs.event import read_events
from vfs.eventlog import BATCH, Place, last_number
from vfs.fileref import validate_session_id

LOOK: Final = 0.2  # seconds between looks into the log of a session that no daemon has


@click.command(cls=DaemonCommand)
@click.argument("session")
@click.option("--since", metavar="SEQ", help="The number of the last event that is known; `now`: only what comes.")
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until interrupted.")
@click.option(
    "--state",
    type=DIRECTORY,
    envvar=STATE_VARIABLE,
    show_envvar=True,
    help="The state directory, of a daemon or of `up`.",
)
def command(session: str, since: str | None, follow: bool, state: Path | None) -> None:
    """Print what happened in SESSION, in order, one JSON object a line; docs/events.md says what is in it.

    Each has a number, `seq`. To go on where an earlier run ended, give its last one as --since. Works too for a
    session that `up` has mounted, or that is not mounted.
    """
    if since not in (None, "now") and not since.isdecimal():
        raise click.BadParameter(f"{since!r} is neither a number nor `now`", param_hint="--since")
    begin = None if since == "now" else int(since or 0)
    state = state or default_state()
    try:
        with Client(state) as daemon:
            for line in daemon.events(session, begin, follow=follow):
                click.echo(line)
    except NoDaemon:
        directory = state / validate_session_id(session) / "events"
        if not directory.is_dir():
            raise
        for line in _from_directory(session, directory, begin, follow):
            click.echo(line)


def _from_directory(session: str, directory: Path, since: int | None, follow: bool) -> Iterator[bytes]:
    since = last_number(directory) if since is None else since
    place: Place | None = None
    while True:
        found, place = read_events(session, directory, since, place=place, most=BATCH)
        for event in found:
            yield msgspec.json.encode(event)
            since = event.seq
        if not found:
            if not follow:
                return
            time.sleep(LOOK)
