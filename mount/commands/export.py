"""`mount-session export`: a session's files as tar."""

from __future__ import annotations

import sys

import click

from mount.client import Client
from mount.commandline import DaemonCommand, bytes_bar, state_option


@click.command(cls=DaemonCommand)
@click.argument("session")
@state_option
def command(session: str, daemon: Client) -> None:
    """Write SESSION's files to standard output as tar: modes, owners, links, times and user xattrs included.

    \b
    Example:
      mount-session export my-session | zstd > my-session.tar.zst
    """
    if sys.stdout.isatty():
        raise click.UsageError("an archive is not for a terminal; redirect standard output")
    with bytes_bar("export", daemon.status(session).bytes) as told:
        for chunk in daemon.export(session):
            sys.stdout.buffer.write(chunk)
            told(len(chunk))
    sys.stdout.buffer.flush()
