"""`mount-session sync`: a barrier."""

from __future__ import annotations

import sys

import click

from mount.client import Client
from mount.commandline import DaemonCommand, changes_bar, json_option, show, state_option


@click.command(cls=DaemonCommand)
@click.argument("session")
@state_option
@json_option
def command(session: str, daemon: Client, as_json: bool) -> None:
    """Return when all that was written to SESSION before is persisted, and print the receipt.

    The exit status is 0 if nothing is pending.
    """
    with changes_bar("sync", lambda: daemon.status(session).pending):
        receipt = daemon.sync(session)
    show(receipt, as_json)
    sys.exit(0 if receipt.pending == 0 else 1)
