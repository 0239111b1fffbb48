"""`mount-session up`: one session on one directory, in the foreground."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import click
import msgspec
import trio

from mount import descriptors, quietlog, title
from mount.config import MountConfig, Receipt
from mount.flagtypes import DIRECTORY
from mount.mountpoint import resolve
from mount.policyflags import policy_flags, policy_of
from mount.routing import RouteConfig, routes_of
from mount.settings import STATE_VARIABLE, default_state
from mount.supervisor import Supervisor
from vfs.policy import parse


class DashedIds(click.Command):
    """A session id may begin with `-` (they are random): what is no option of ours is taken for an argument."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {name for parameter in self.get_params(ctx) for name in (*parameter.opts, *parameter.secondary_opts)}
        if "--" not in args:
            args = _known_first(args, known, self._takes_value(ctx))
        return super().parse_args(ctx, args)

    def _takes_value(self, ctx: click.Context) -> set[str]:
        options = [p for p in self.get_params(ctx) if isinstance(p, click.Option) and not p.is_flag and not p.count]
        return {name for option in options for name in option.opts}


def _known_first(args: list[str], known: set[str], valued: set[str]) -> list[str]:
    """Our options with their values, then `--`, then everything else."""
    options, rest = [], []
    remaining = iter(args)
    for argument in remaining:
        name = argument.partition("=")[0]
        if name not in known or not argument.startswith("-"):
            rest.append(argument)
            continue
        options.append(argument)
        if argument == name and name in valued:
            options += [value for value in [next(remaining, None)] if value is not None]
    return [*options, "--", *rest]


@click.command(cls=DashedIds)
@click.argument("session")
@click.argument("mountpoint")  # click.Path would stat it, and wait where nobody serves it now
@click.option(
    "--state",
    type=DIRECTORY,
    envvar=STATE_VARIABLE,
    show_envvar=True,
    help="Directory that holds the state of all sessions: journal, names, content. "
    "[default: /var/lib/mount-session for root, else ~/.local/state/mount-session]",
)
@click.option(
    "--storage",
    default="local",
    show_default=True,
    help="local, s3://bucket/prefix?..., tigris, tigris://bucket/prefix, file:///dir, or module:Class of yours.",
)
@click.option(
    "--callbacks", help="In place of a storage: MODULE:NAME of an object with callbacks, or the http URL of one."
)
@click.option("--scope", metavar="JSON", help="The first argument of the callbacks.")
@click.option(
    "--routes",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    callback=routes_of,
    help="TOML file whose [[route]] tables say which directories are kept elsewhere (docs/callbacks.md).",
)
@click.option(
    "--idle-after",
    type=click.FloatRange(0),
    default=300.0,
    show_default=True,
    help="Seconds without a request after which the worker ends, if nothing is pending, until the next; 0: never.",
)
@click.option(
    "--hang-limit",
    type=click.FloatRange(0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds without a sign of life after which a worker is replaced; where it hung is in the log.",
)
@click.option("--steal", is_flag=True, help="S3: take the session over from who has it mounted elsewhere.")
@policy_flags
def command(
    session: str,
    mountpoint: str,
    state: Path | None,
    storage: str,
    callbacks: str | None,
    scope: str | None,
    routes: tuple[RouteConfig, ...],
    steal: bool,
    idle_after: float,
    hang_limit: float,
    **flags: Any,
) -> None:
    """Mount SESSION on the directory MOUNTPOINT, and stay in the foreground.

    SESSION is the session's id: letters, digits, '.', '_', '-'. It is made if there is none of that name in the state
    directory; otherwise everything is there again as it was. MOUNTPOINT is an existing directory.

    One line is printed when a real write and read have gone through the mount: from then on programs can use it, and
    containers, for instance with `docker run -v MOUNTPOINT:/workspace ...`.

    To end it, send SIGTERM or press Ctrl-C: it is unmounted, everything is written back, and the receipt is printed as
    one line of JSON (session, files, bytes, pending). The exit status is 0 if nothing is pending. A second signal ends
    the waiting: what the storage does not take now stays pending, and goes there after the next `up`. Killed in any
    other way, nothing that a program was told is written gets lost: `up` it again. If only this process was killed, the
    mount goes on without it, and the next `up` takes it over.

    SIGHUP makes it the program that is installed now, with no request refused (see also `mount-session upgrade`).

    \b
    Example:
      mkdir /tmp/work
      mount-session up my-session /tmp/work
    """
    quietlog.install(sys.stderr, quietlog.style())
    title.set_title("mount-session: supervisor")
    descriptors.raise_limit()
    policy = parse(policy_of(flags))
    config = MountConfig(
        session=session,
        mountpoint=os.fsencode(resolve(mountpoint)),
        state=os.fsencode((state or default_state()).absolute()),
        read_only=policy.read_only,
        policy=policy,
        storage=storage,
        callbacks=callbacks,
        scope=scope_of(scope),
        routes=routes,
        steal=steal,
        idle_after=idle_after,
        hang_limit=hang_limit,
    )
    receipt = trio.run(_up, config)
    if receipt is None:
        raise click.ClickException("ended by a signal before the session was mounted")
    click.echo(msgspec.json.encode(receipt).decode())
    sys.exit(0 if receipt.pending == 0 else 1)


def scope_of(text: str | None) -> Any:
    """What --scope says."""
    try:
        return None if text is None else msgspec.json.decode(text)
    except msgspec.DecodeError as e:
        raise click.BadParameter(
            f"{text!r} is not JSON ({e}); a string needs its quotes: '\"alice\"'", param_hint="--scope"
        ) from e


async def _up(config: MountConfig) -> Receipt | None:
    """Mounted until a signal comes, or until someone else unmounts it; None if a signal came before it was mounted."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        async with trio.open_nursery() as nursery:
            async with Supervisor.run() as supervisor:
                with trio.CancelScope() as working:
                    nursery.start_soon(_obey, signals, supervisor, working)
                    mounted = await supervisor.mount(config)
                    if not supervisor.is_successor:
                        click.echo(b"%b is mounted on %b" % (config.session.encode(), config.mountpoint))
                    await mounted.gone.wait()
            nursery.cancel_scope.cancel()
        return supervisor.receipts.get(config.session)


async def _obey(signals: AsyncIterator[int], supervisor: Supervisor, working: trio.CancelScope) -> None:
    async for number in signals:
        if number == signal.SIGHUP:
            await supervisor.upgrade()
        elif not working.cancel_called:
            working.cancel()
        else:
            await supervisor.hurry()
