"""`mount-session flush`: try what is pending."""

from __future__ import annotations

import click

from mount.client import Client
from mount.commandline import DaemonCommand, json_option, show, state_option


@click.command(cls=DaemonCommand)
@click.argument("session")
@state_option
@json_option
def command(session: str, daemon: Client, as_json: bool) -> None:
    """Have everything that is pending in SESSION tried now, whatever pauses were left. `sync` also waits for it."""
    show(daemon.flush(session), as_json)
