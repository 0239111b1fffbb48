"""`mount-session ls`: the sessions of the daemon's host."""

from __future__ import annotations

import click
import msgspec

from mount.client import Client
from mount.commandline import DaemonCommand, json_option, state_option, table


@click.command(cls=DaemonCommand)
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE", help="Only those with this label.")
@click.option("-q", "--quiet", is_flag=True, help="Ids alone.")
@state_option
@json_option
def command(labels: tuple[str, ...], quiet: bool, daemon: Client, as_json: bool) -> None:
    """List the sessions. With --json, one line each."""
    for label in labels:
        if "=" not in label:
            raise click.UsageError(f"--label {label}: NAME=VALUE is needed")
    wanted = dict(label.split("=", 1) for label in labels)
    found = [status for status in daemon.list() if wanted.items() <= status.labels.items()]
    if quiet:
        for status in found:
            click.echo(status.session)
    elif as_json:
        for status in found:
            click.echo(msgspec.json.encode(status).decode())
    else:
        rows = ((s.session, s.state, s.files, s.bytes, s.pending, s.storage, s.mountpoint) for s in found)
        table(("SESSION", "STATE", "FILES", "BYTES", "PENDING", "STORAGE", "MOUNTPOINT"), rows)
