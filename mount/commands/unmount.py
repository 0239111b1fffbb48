"""`mount-session unmount`: sync a session and take its mount away."""

from __future__ import annotations

import sys

import click

from mount.client import Client
from mount.commandline import DaemonCommand, changes_bar, json_option, show, state_option


@click.command(cls=DaemonCommand)
@click.argument("session")
@click.option("--force", is_flag=True, help="Also when containers still use it; they lose it.")
@state_option
@json_option
def command(session: str, force: bool, daemon: Client, as_json: bool) -> None:
    """Sync SESSION, unmount it, and print the receipt. It stays unmounted until `mount-session mount`.

    The exit status is 0 if nothing is pending.
    """
    with changes_bar("sync", lambda: daemon.status(session).pending):
        receipt = daemon.unmount(session, force=force)
    show(receipt, as_json)
    sys.exit(0 if receipt.pending == 0 else 1)
