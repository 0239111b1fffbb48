"""`mount-session serve`: the daemon."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
import trio

from mount import descriptors, quietlog, title
from mount.flagtypes import DIRECTORY
from mount.service import serve
from mount.settings import STATE_VARIABLE, load


@click.command
@click.option("--root", type=DIRECTORY, help="ROOT/<session> is each session's mount.")
@click.option("--config", type=click.Path(path_type=Path, exists=True), help="TOML; see docs/operations.md.")
@click.option(
    "--state",
    type=DIRECTORY,
    envvar=STATE_VARIABLE,
    show_envvar=True,
    help="Directory for the state of all sessions. [default: /var/lib/mount-session for root]",
)
@click.option("--group", help="Whose members may use the control socket, beside root.")
@click.option("--docker", help="Serve the Docker volume plugin on this socket.")
@click.option("--metrics", help="Serve Prometheus metrics on this host:port.")
def command(
    root: Path | None,
    config: Path | None,
    state: Path | None,
    group: str | None,
    docker: str | None,
    metrics: str | None,
) -> None:
    """Keep many sessions mounted, as `new`, `unmount` and the other commands say.

    Sessions come back when it starts again. On SIGTERM or SIGINT everything is synced and unmounted. Everything
    that the command line says can be in the file that --config names; the command line wins.
    """
    settings = load(
        config,
        root=None if root is None else str(root.absolute()),
        state=None if state is None else str(state.absolute()),
        group=group,
        docker=docker,
        metrics=metrics,
    )
    style = settings.log or ("text" if sys.stderr.isatty() else "json")
    os.environ[quietlog.VARIABLE] = style
    quietlog.install(sys.stderr, style)
    title.set_title("mount-session: daemon")
    descriptors.raise_limit()
    trio.run(serve, settings)
