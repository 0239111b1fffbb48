"""`mount-session new`: a new session on the daemon's host."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from mount.client import Client
from mount.commandline import DaemonCommand, bytes_bar, json_option, show, state_option
from mount.commands.up import scope_of
from mount.messages import NewSession
from mount.policyflags import policy_flags, policy_of
from mount.routing import RouteConfig, routes_of
from mount.spawner import PROJECT


@click.command(cls=DaemonCommand)
@click.argument("session", required=False)
@click.option("--storage", help="local, s3://bucket/prefix?..., tigris, file:///dir, module:Class.")
@click.option("--callbacks", help="MODULE:NAME or a URL, in place of a storage.")
@click.option("--scope", help="The first argument of the callbacks, as JSON.")
@click.option(
    "--routes",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    callback=routes_of,
    help="TOML file whose [[route]] tables say which directories are kept elsewhere (docs/callbacks.md).",
)
@click.option("--label", "labels", multiple=True, metavar="NAME=VALUE")
@click.option("--env", "environment", multiple=True, metavar="NAME=VALUE", help="For its worker alone: credentials.")
@click.option("--env-file", type=click.File(), help="The same from a file, one NAME=VALUE a line.")
@click.option("--template", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Copy its files in.")
@click.option("--no-mount", is_flag=True, help="Make it, but do not mount it yet.")
@policy_flags
@state_option
@json_option
def command(
    session: str | None,
    storage: str | None,
    callbacks: str | None,
    scope: str | None,
    routes: tuple[RouteConfig, ...],
    labels: tuple[str, ...],
    environment: tuple[str, ...],
    env_file: io.TextIOBase | None,
    template: Path | None,
    no_mount: bool,
    daemon: Client,
    as_json: bool,
    **flags: Any,
) -> None:
    """Make SESSION, or one with a generated id, and mount it. Prints its id, or with --json its status.

    It is mounted when this returns: real I/O has gone through.
    """
    if template and no_mount:
        raise click.UsageError("--template needs the session mounted")
    variables = [*environment, *(line for line in (env_file or ()) if line.strip() and not line.startswith("#"))]
    status = daemon.new(
        NewSession(
            session=session,
            storage=storage,
            callbacks=callbacks,
            scope=scope_of(scope),
            routes=list(routes),
            policy=policy_of(flags),
            labels=_pairs(labels),
            environment=_pairs(line.rstrip("\n") for line in variables) or None,
            mount=not no_mount,
        )
    )
    if template:
        try:
            with bytes_bar("template", None) as told:
                status = daemon.put(status.session, _tar(template, told))
        except BaseException:
            daemon.remove(status.session, purge=True, force=True)
            raise
    if as_json:
        show(status, True)
    else:
        click.echo(status.session)


def _pairs(given: Any) -> dict[str, str]:
    pairs = {}
    for one in given:
        name, equals, value = one.partition("=")
        if not equals:
            raise click.UsageError(f"{one!r}: NAME=VALUE is needed")
        pairs[name] = value
    return pairs


def _tar(directory: Path, told: Any) -> Iterator[bytes]:
    """The directory's files as the user who runs this command can read them."""
    command = [sys.executable, "-P", "-m", "mount.tarball", "export", str(directory)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, cwd=PROJECT, env={"PYTHONPATH": str(PROJECT)})
    with process:
        assert process.stdout is not None
        while chunk := process.stdout.read(1 << 18):
            told(len(chunk))
            yield chunk
    if process.returncode:
        raise OSError(f"{directory} could not be read")
