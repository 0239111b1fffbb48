"""A target: the object that `--callbacks` names, ready for `vfs.persistence`.

    app.files:Callbacks     a class, an instance, or a dict of functions, in a module that can be imported
    app.files               the module itself
    http://..., https://..., http+unix:///socket      a program at the other end of HTTP (docs/callbacks.md)

Which callbacks the other end of HTTP has is asked at each start, and remembered with the session: a worker that is
started again while the other end is down must not keep the session from working.
"""

from __future__ import annotations

import errno
import logging
from pathlib import Path
from typing import NamedTuple

import msgspec

from vfs import callbacks
from vfs.durable import write_durably
from vfs.hooks import Hooks

__all__ = ["Target", "is_remote", "open_target", "remember"]

log = logging.getLogger(__name__)

FILE = "callbacks.json"


class Target(NamedTuple):
    """`owned`: nobody else has the object, so who is done with it closes it."""

    callbacks: object
    owned: bool


def is_remote(spec: str) -> bool:
    return "://" in spec


async def open_target(
    spec: str,
    *,
    token: str | None = None,
    seconds: float = 30.0,
    directory: Path | None = None,
    max_file_size: int = 64 << 20,
) -> Target:
    """What `spec` names. ValueError says what is wrong with it, OSError why it cannot be used.

    For HTTP: `token`; `seconds` of silence that are waited for; `directory`, where `remember` left what the other end
    has, for when it cannot be reached; `max_file_size`: bytes of an on_read.
    """
    if not is_remote(spec):
        try:
            target = callbacks.made(callbacks.load(spec))
            callbacks.discover(target)
            Hooks(target)
        except (TypeError, ValueError) as e:
            raise ValueError(f"--callbacks {spec}: {e}") from e
        return Target(target, False)
    from vfs.http.client import connect  # httpx costs 60 ms, and most sessions do without

    try:
        return Target(await connect(spec, token=token, seconds=seconds, max_file_size=max_file_size), True)
    except OSError as e:
        can = None if e.errno != errno.EHOSTUNREACH or directory is None else _recall(directory, spec)
        if can is None:
            raise
        log.warning("%s; going on with what it had the last time: %s", e.strerror, ", ".join(sorted(can)))
    return Target(await connect(spec, token=token, seconds=seconds, max_file_size=max_file_size, can=can), True)


def remember(directory: Path, spec: str, can: frozenset[str]) -> None:
    """Leave in the session's directory what the other end of HTTP has."""
    if is_remote(spec) and (known := _known(directory)).get(spec) != can:
        write_durably(directory / FILE, msgspec.json.encode({**known, spec: can}))


def _recall(directory: Path, spec: str) -> frozenset[str] | None:
    return _known(directory).get(spec)


def _known(directory: Path) -> dict[str, frozenset[str]]:
    try:
        return msgspec.json.decode((directory / FILE).read_bytes(), type=dict[str, frozenset[str]])
    except FileNotFoundError:
        return {}
    except msgspec.DecodeError as e:
        log.warning("%s: %s; it will be written anew", directory / FILE, e)
        return {}
