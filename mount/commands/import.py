"""`mount-session import`: files from tar into a session."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import click

from mount.client import Client
from mount.commandline import DaemonCommand, bytes_bar, json_option, show, state_option


@click.command(cls=DaemonCommand)
@click.argument("session")
@state_option
@json_option
def command(session: str, daemon: Client, as_json: bool) -> None:
    """Take a tar archive from standard input (plain, gzip, bzip2 or xz) into SESSION.

    Files of the same names are replaced, others stay. Nothing is written outside the session, whatever the archive
    says.
    """
    if sys.stdin.isatty():
        raise click.UsageError("an archive is needed on standard input")
    with bytes_bar("import", None) as told:
        status = daemon.put(session, _chunks(told))
    show(status, as_json)


def _chunks(told: Callable[[int], object]) -> Iterator[bytes]:
    while chunk := sys.stdin.buffer.read(1 << 18):
        told(len(chunk))
        yield chunk
