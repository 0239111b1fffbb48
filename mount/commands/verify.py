"""`mount-session verify`: check the audit log."""

from __future__ import annotations

import click

from mount.client import Client
from mount.commandline import DaemonCommand, json_option, show, state_option


@click.command(cls=DaemonCommand)
@state_option
@json_option
def command(daemon: Client, as_json: bool) -> None:
    """Check that no line of the audit log was changed, moved or removed; prints its head.

    Note the head somewhere else: a later log that does not contain it has been made anew.
    """
    show(daemon.verify(), as_json)
