"""What the commands that speak to the daemon share: how it is found, how they print, how they end.

Exit statuses, for scripts: 0 done; 1 not done; 2 a wrong command line; 3 no daemon answers; 4 no such session; 5
refused as things are (it exists already, it is in use, bytes would be lost); 6 it took too long; 7 a quota or a disk
is full.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from mount.client import Client, NoDaemon, Refused
from mount.commands.up import DashedIds
from mount.flagtypes import DIRECTORY
from mount.settings import STATE_VARIABLE, default_state

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["DaemonCommand", "bytes_bar", "changes_bar", "json_option", "show", "state_option", "table"]

_STATUS: Final = {404: 4, 409: 5, 504: 6, 507: 7}


def _failed(message: str, status: int) -> click.ClickException:
    error = click.ClickException(message)
    error.exit_code = status  # type: ignore[misc]
    return error


class DaemonCommand(DashedIds):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NoDaemon as e:
            raise _failed(str(e), 3) from e
        except Refused as e:
            raise _failed(str(e), _STATUS.get(e.status, 1)) from e
        except TimeoutError as e:
            raise _failed(str(e), 6) from e


def _connect(ctx: click.Context, parameter: click.Parameter, state: Path | None) -> Client:
    try:
        return ctx.with_resource(Client(state or default_state()))
    except NoDaemon as e:
        raise _failed(str(e), 3) from e


state_option: Final = click.option(
    "--state",
    "daemon",
    type=DIRECTORY,
    envvar=STATE_VARIABLE,
    show_envvar=True,
    callback=_connect,
    help="The daemon's state directory.",
)
json_option: Final = click.option("--json", "as_json", is_flag=True, help="One line of JSON.")


def show(message: Any, as_json: bool) -> None:
    """A message of the API on standard output: as JSON, or its fields as lines."""
    if as_json:
        click.echo(msgspec.json.encode(message).decode())
        return
    fields = msgspec.to_builtins(message)
    width = max(map(len, fields), default=0)
    for name, value in fields.items():
        if value not in (None, {}, []):
            told = (
                datetime.fromtimestamp(value).astimezone().isoformat(" ", "seconds") if name == "made" else _told(value)
            )
            click.echo(f"{name:<{width}}  {told}")


_MANY: Final = 16  # more than a person reads on one line


def _told(value: Any) -> str:
    if isinstance(value, dict | list) and (len(value) > _MANY or _is_deep(value)):
        return f"{len(value)} (--json shows them)"
    if isinstance(value, dict):
        return " ".join(f"{name}={_told(inner)}" for name, inner in value.items() if inner is not None)
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _is_deep(value: Any) -> bool:
    """A dict of dicts, such as the operations of a session."""
    return isinstance(value, dict) and bool(value) and all(isinstance(inner, dict) for inner in value.values())


def table(headings: tuple[str, ...], rows: Iterable[tuple[Any, ...]]) -> None:
    lines = [headings, *(tuple("" if cell is None else str(cell) for cell in row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


# ---- progress, on a terminal only


def _progress(column: str) -> Progress:
    from rich import progress  # 0.1 s that a script need not pay
    from rich.console import Console

    columns = progress.TextColumn("{task.description}"), progress.BarColumn(), getattr(progress, column)()
    return progress.Progress(*columns, progress.TimeElapsedColumn(), console=Console(stderr=True), transient=True)


@contextlib.contextmanager
def bytes_bar(what: str, total: int | None) -> Iterator[Callable[[int], object]]:
    """Yields a function to be told of each chunk's length."""
    if not sys.stderr.isatty():
        yield lambda length: None
        return
    with _progress("DownloadColumn") as progress:
        task = progress.add_task(what, total=total)
        yield lambda length: progress.update(task, advance=length)


@contextlib.contextmanager
def changes_bar(what: str, pending: Callable[[], int | None]) -> Iterator[None]:
    """While the block runs, how many of the changes that `pending` counts are done; it is asked from a thread."""
    if not sys.stderr.isatty():
        yield
        return
    done = threading.Event()
    with _progress("MofNCompleteColumn") as progress:
        task = progress.add_task(what, total=None)

        def watch() -> None:
            most = 0
            while not done.wait(0.3):
                left = pending()
                if left is not None:
                    most = max(most, left)
                    progress.update(task, total=most, completed=most - left)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
