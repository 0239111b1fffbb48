"""`mount-session rm`: take a session off the host."""

from __future__ import annotations

import click
import msgspec

from mount.client import Client
from mount.commandline import DaemonCommand, changes_bar, json_option, state_option


@click.command(cls=DaemonCommand)
@click.argument("sessions", nargs=-1, required=True, metavar="SESSION...")
@click.option("--purge", is_flag=True, help="Also what its storage holds: nothing of it is left.")
@click.option("--force", is_flag=True, help="Also with changes that are not persisted, or used by containers.")
@state_option
@json_option
def command(sessions: tuple[str, ...], purge: bool, force: bool, daemon: Client, as_json: bool) -> None:
    """Sync and unmount each SESSION, then remove its state from this host.

    What its storage holds stays, and `new` with the same id and storage brings it back, unless --purge is given. A
    session with local storage has no other copy, so it needs --purge. Nothing is removed if one of them is not there.
    With --json, one line for each that was removed.
    """
    for session in sessions:
        daemon.status(session)
    for session in sessions:
        with changes_bar(f"rm {session}", lambda session=session: daemon.status(session).pending):  # type: ignore[misc]
            daemon.remove(session, purge=purge, force=force)
        if as_json:
            click.echo(msgspec.json.encode({"session": session, "removed": True, "purged": purge}).decode())
