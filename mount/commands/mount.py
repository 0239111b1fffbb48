"""`mount-session mount`: mount a session that was unmounted."""

from __future__ import annotations

import click

from mount.client import Client
from mount.commandline import DaemonCommand, json_option, show, state_option


@click.command(cls=DaemonCommand)
@click.argument("session")
@state_option
@json_option
def command(session: str, daemon: Client, as_json: bool) -> None:
    """Mount SESSION again, on its place below the daemon's root."""
    show(daemon.mount(session), as_json)
