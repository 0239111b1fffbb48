"""`mount-session export`: a session's files as tar."""

from __future__ import annotations

import sys

import click
import msgspec

from mount.client import Client
from mount.commandline import DaemonCommand, bytes_bar, state_option


@click.command(cls=DaemonCommand)
@click.argument("session")
@state_option
@click.option("--json", "as_json", is_flag=True, help="One line of JSON on standard error: the archive's bytes.")
def command(session: str, daemon: Client, as_json: bool) -> None:
    """Write SESSION's files to standard output as tar: modes, owners, links, times and user xattrs included.

    \b
    Example:
      mount-session export my-session | zstd > my-session.tar.zst
    """
    if sys.stdout.isatty():
        raise click.UsageError("an archive is not for a terminal; redirect standard output")
    written = 0
    with bytes_bar("export", daemon.status(session).bytes) as told:
        for chunk in daemon.export(session):
            sys.stdout.buffer.write(chunk)
            told(len(chunk))
            written += len(chunk)
    sys.stdout.buffer.flush()
    if as_json:
        click.echo(msgspec.json.encode({"session": session, "bytes": written}).decode(), err=True)
