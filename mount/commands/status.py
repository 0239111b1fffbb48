"""`mount-session status`: how one session is."""

from __future__ import annotations

import click

from mount.client import Client
from mount.commandline import DaemonCommand, json_option, show, state_option


@click.command(cls=DaemonCommand)
@click.argument("session")
@state_option
@json_option
def command(session: str, daemon: Client, as_json: bool) -> None:
    """Show how SESSION is."""
    show(daemon.status(session), as_json)
