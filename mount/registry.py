"""The registry: which sessions this host has, and how each is meant to be.

One file a session, so that a change touches only that one, and one that cannot be read (a disk error, a hand's edit)
costs only that one: it is set aside as `.damaged` and named. A change is on disk before the call that makes it
returns, which is what brings sessions back after a reboot. Credentials are kept apart from all that is ever shown
(`secrets/`, mode 0600).

The daemon is the only writer. Calls block for an fsync or two: call them in a thread.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from mount import durable
from mount.routing import RouteConfig
from vfs.fileref import validate_session_id
from vfs.policy import Policy

__all__ = ["Definition", "Registry"]

log = logging.getLogger(__name__)


_STORAGE: Final = re.compile(r"local|tigris|(?:s3|tigris|file)://\S+|[A-Za-z_][\w.]*:[A-Za-z_][\w.]*(?:\?\S*)?")


class Definition(msgspec.Struct, frozen=True, kw_only=True):
    """How one session is meant to be.

    mounted    whether the operator wants it mounted: what a start of the daemon makes true
    uid        the user that its worker runs as; None: the daemon's own
    holders    Docker's mount ids that use it now; with any, it stays mounted
    volume     made by Docker, which may therefore remove it
    receipt    of the last stop, as it was given out
    """

    session: str
    storage: str
    policy: Policy = Policy()
    mounted: bool = True
    made: float = 0.0
    labels: dict[str, str] = {}
    callbacks: str | None = None
    scope: Any = None
    routes: tuple[RouteConfig, ...] = ()
    uid: int | None = None
    holders: tuple[str, ...] = ()
    volume: bool = False
    receipt: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if not _STORAGE.fullmatch(self.storage):
            raise ValueError(
                f"storage {self.storage!r}: local, file:///dir, s3://bucket/prefix, tigris, tigris://bucket/prefix or "
                "module:Class is needed"
            )


class Registry:
    def __init__(self, directory: Path, uids: tuple[int, int] | None = None) -> None:
        """The registry in `directory`, made where there is none. `uids`: the first and the number of those to give."""
        self._directory = directory / "sessions"
        self._secrets = directory / "secrets"
        self._uids = uids
        self._definitions: dict[str, Definition] = {}
        for path in (self._directory, self._secrets):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._load()
        self._note_boot(directory / "boot")

    def _note_boot(self, file: Path) -> None:
        """Containers do not outlive the machine's boot: nobody holds anything after another one."""
        boot = Path("/proc/sys/kernel/random/boot_id").read_bytes()
        if file.exists() and file.read_bytes() != boot:
            for definition in self:
                if definition.holders:
                    self.change(definition.session, holders=(), mounted=definition.mounted and not definition.volume)
        durable.write(file, boot)

    def _load(self) -> None:
        for path in sorted(self._directory.glob("*.json")):
            try:
                found = msgspec.json.decode(path.read_bytes(), type=Definition)
                if validate_session_id(found.session) != path.stem:
                    raise ValueError(f"it is of session {found.session!r}")
            except ValueError as e:
                log.error("%s: not a session's definition, set aside as .damaged: %s", path, e)
                path.rename(path.with_suffix(".damaged"))
                continue
            self._definitions[found.session] = found

    def __contains__(self, session: object) -> bool:
        return session in self._definitions

    def __iter__(self) -> Iterator[Definition]:
        return iter(list(self._definitions.values()))

    def __len__(self) -> int:
        return len(self._definitions)

    def get(self, session: str) -> Definition:
        """FileNotFoundError if there is none."""
        try:
            return self._definitions[session]
        except KeyError:
            raise FileNotFoundError(f"no session {session!r} on this host; `mount-session ls` shows them") from None

    def put(self, definition: Definition) -> None:
        """New, or in place of the one of that id; on disk when this returns."""
        validate_session_id(definition.session)
        durable.write(self._directory / f"{definition.session}.json", msgspec.json.encode(definition))
        self._definitions[definition.session] = definition

    def change(self, session: str, **fields: Any) -> Definition:
        changed = msgspec.structs.replace(self.get(session), **fields)
        self.put(changed)
        return changed

    def remove(self, session: str) -> None:
        self.get(session)
        durable.remove(self._secrets / f"{session}.json")
        durable.remove(self._directory / f"{session}.json")
        del self._definitions[session]

    def free_uid(self, taken: Container[int | None]) -> int | None:
        """A user for a new session's worker, that no other has; None where workers run as the daemon. RuntimeError
        when all are taken. `taken`: also by sessions whose definitions are not on disk yet, which is why it is told."""
        if self._uids is None:
            return None
        first, count = self._uids
        for uid in range(first, first + count):
            if uid not in taken:
                return uid
        raise RuntimeError(f"all {count} users for workers are taken; raise workers.uids in the configuration")

    # ---- credentials

    def put_environment(self, session: str, environment: Mapping[str, str]) -> None:
        durable.write(self._secrets / f"{session}.json", msgspec.json.encode(dict(environment)))

    def environment(self, session: str) -> dict[str, str] | None:
        """The variables that only this session's worker gets; None: none were given."""
        try:
            return msgspec.json.decode(
                Path(os.path.join(self._secrets, f"{session}.json")).read_bytes(), type=dict[str, str]
            )
        except FileNotFoundError:
            return None
