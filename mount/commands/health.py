"""`mount-session health`: real I/O through every mount."""

from __future__ import annotations

import sys

import click

from mount.client import Client
from mount.commandline import DaemonCommand, json_option, show, state_option


@click.command(cls=DaemonCommand)
@state_option
@json_option
def command(daemon: Client, as_json: bool) -> None:
    """Write and read through every mount that should be there. Status 0 if all of them work."""
    health = daemon.health()
    show(health, as_json)
    sys.exit(0 if health.ready else 1)
