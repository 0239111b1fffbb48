"""`mount-session wait`: until real I/O works."""

from __future__ import annotations

import click

from mount.client import Client
from mount.commandline import DaemonCommand, json_option, show, state_option


@click.command(cls=DaemonCommand)
@click.argument("session")
@click.option("--timeout", type=click.FloatRange(0, 3600), default=30.0, show_default=True, help="Seconds.")
@state_option
@json_option
def command(session: str, timeout: float, daemon: Client, as_json: bool) -> None:
    """Return when a real write and read have gone through SESSION's mount. Status 6 if they do not in time."""
    show(daemon.wait(session, timeout), as_json)
