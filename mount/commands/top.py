"""`mount-session top`: what the sessions of a host are doing, as a live table."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import click

from mount.client import Client
from mount.commandline import DaemonCommand, state_option
from mount.messages import SessionStatus
from mount.rates import Rates

if TYPE_CHECKING:
    from rich.table import Table


@click.command(cls=DaemonCommand)
@click.option("--interval", type=click.FloatRange(0.2, 60), default=1.0, show_default=True, help="Seconds.")
@click.option("--once", is_flag=True, help="Show one interval and end.")
@state_option
def command(interval: float, once: bool, daemon: Client) -> None:
    """Show the sessions, the busiest first, until Ctrl-C. Where standard output is no terminal, one interval."""
    from rich.console import Console
    from rich.live import Live

    rates, console = Rates(), Console()
    rates.update(daemon.list(), time.monotonic())
    once = once or not sys.stdout.isatty()
    try:
        with Live(console=console, screen=not once, auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                found = daemon.list()
                rates.update(found, time.monotonic())
                live.update(_table(found, rates), refresh=True)
                if once:
                    return
    except KeyboardInterrupt:
        return


def _table(found: list[SessionStatus], rates: Rates) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("SESSION", "STATE", "REQ/S", "MEAN", "ERR/S", "FILES", "BYTES", "PENDING", "RESTARTS", "BUSY WITH"):
        table.add_column(name, justify="left" if name in ("SESSION", "STATE", "BUSY WITH") else "right", no_wrap=True)
    for status in sorted(found, key=lambda status: -rates.of(status.session).requests):
        rate = rates.of(status.session)
        state = status.state if not status.worker or status.worker.phase == "serving" else status.worker.phase
        table.add_row(
            status.session,
            state if status.error is None else f"{state}: {status.error}",
            f"{rate.requests:.0f}",
            f"{rate.mean * 1e6:.0f} us" if rate.requests else "",
            f"{rate.errors:.0f}" if rate.errors else "",
            *("" if value is None else f"{value:,}" for value in (status.files, status.bytes, status.pending)),
            str(status.worker.restarts) if status.worker else "",
            rate.busiest,
        )
    return table
