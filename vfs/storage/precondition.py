"""Preconditions: what a write expects to find, looked at before it where the endpoint ignores conditions.

That leaves a gap, but finds what happened before. One key is asked for by HEAD. Many keys of one directory are shown by
one listing, which costs a server less as long as there is not much else in it: of a directory that turns out to be
wide the keys are asked for one by one from then on. A listing is believed for a moment, by all who write there, and
only ever clears a key: what it shows otherwise, or does not show, HEAD has to say. So it is with a key that servers
may spell otherwise in a listing."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Final, Literal, NamedTuple, TypeAlias

import cachetools

from vfs.errors import Conflict
from vfs.storage.download import stat, version_of
from vfs.storage.endpoint import Clients

__all__ = ["ANY", "Condition", "Met", "Preconditions", "require"]

log = logging.getLogger(__name__)


class _Any(Enum):
    ANY = "any"


ANY: Final = _Any.ANY
Condition: TypeAlias = str | Literal[_Any.ANY] | None
"""The version that a write wants to replace; None: the key must be absent; ANY: whatever is there."""

FEW = 4  # keys in a directory for which HEAD is no dearer than a listing
WIDE = 8  # listed keys for each that was asked for, from which on HEAD is cheaper (rclone: 0.2 ms, and 15 us for each)
PAGE = 1000  # keys that a server lists at most
TRUSTED = 1.0  # seconds for which a listing is believed
DIRECTORIES = 100  # whose listings are kept meanwhile
REMEMBERED = 10_000  # wide directories
_PLAIN = re.compile(r"[\w./=@-]+", re.ASCII)


def require(clients: Clients, key: str, condition: Condition) -> None:
    """Conflict where the object is not what `condition` says. A missing bucket is like an absent object here: what is
    asked next says which."""
    if condition is ANY:
        return
    try:
        found = stat(clients, key=key).version
    except FileNotFoundError:
        found = None
    if found != condition:
        raise Conflict(key, found)


class Met:
    """Keys whose preconditions a listing has shown to hold."""

    def __init__(self) -> None:
        self.until: dict[str, float] = {}

    def __contains__(self, key: str) -> bool:
        return time.monotonic() < self.until.get(key, 0.0)


class Preconditions:
    """Those of the writes to one bucket. For use in many threads."""

    def __init__(self) -> None:
        self._wide: set[str] = set()  # directories
        pages: cachetools.TTLCache[str, _Listed] = cachetools.TTLCache(DIRECTORIES, TRUSTED)
        once = cachetools.cached(pages, key=lambda clients, directory: directory, condition=threading.Condition())
        self._listed: Callable[[Clients, str], _Listed] = once(_list)

    def met(self, clients: Clients, wanted: Iterable[tuple[str, Condition]]) -> Met:
        """What listings show of what is wanted. Blocks."""
        met = Met()
        directories: defaultdict[str, dict[str, Condition]] = defaultdict(dict)
        for key, condition in wanted:
            if condition is not ANY and _PLAIN.fullmatch(key):
                directories[key.rpartition("/")[0]][key] = condition
        for directory, conditions in directories.items():
            if directory and len(conditions) >= FEW and directory not in self._wide:
                until, versions = self._listed(clients, directory)
                if len(versions) > WIDE * len(conditions):
                    self._remember(directory)
                if len(versions) < PAGE:
                    held = (key for key, condition in conditions.items() if versions.get(key) == condition)
                    met.until.update(dict.fromkeys(held, until))
        return met

    def _remember(self, wide: str) -> None:
        if len(self._wide) >= REMEMBERED:
            self._wide.clear()
        self._wide.add(wide)


class _Listed(NamedTuple):
    """The first page of a directory's listing: versions by key, believed until then."""

    until: float
    versions: Mapping[str, str]


def _list(clients: Clients, directory: str) -> _Listed:
    until = time.monotonic() + TRUSTED
    try:
        page = next(clients.store.list(directory, chunk_size=PAGE), ())
    except Exception as e:  # HEAD, or the write, meets the same, and is tried again as it should be
        log.debug("%s: cannot be listed: %s", directory, e)
        return _Listed(0.0, {})
    return _Listed(until, {entry["path"]: version_of(entry["e_tag"]) for entry in page})
