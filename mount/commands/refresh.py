"""`mount-session refresh`: take up others' changes."""

from __future__ import annotations

import click

from mount.client import Client
from mount.commandline import DaemonCommand, json_option, show, state_option


@click.command(cls=DaemonCommand)
@click.argument("session")
@state_option
@json_option
def command(session: str, daemon: Client, as_json: bool) -> None:
    """Take up now what others changed in SESSION's storage: how many files are new, changed and gone."""
    show(daemon.refresh(session), as_json)
