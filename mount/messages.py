"""What the control API takes and gives: the bodies of its requests and answers. `openapi` describes them from
these."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from mount.routing import RouteConfig

__all__ = ["Health", "NewSession", "Problem", "SessionHealth", "SessionReceipt", "SessionStatus", "Unmount"]

State = Literal["mounting", "mounted", "unmounting", "unmounted", "failed"]
_Text = Annotated[str, msgspec.Meta(max_length=4096)]
_Variable = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=256)]
_Label = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", max_length=128)]


class NewSession(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A session to make. Everything may be left out.

    session      its id; one is generated
    storage      where it is kept: `local`, `s3://bucket/prefix?...`, `tigris`, `file:///dir`, `module:Class`
    callbacks    `MODULE:NAME` or a URL, in place of a storage; `scope` is its first argument
    routes       directories that are kept elsewhere, or under a policy of their own
    policy       as in the configuration; what is left out is as the daemon's default says
    environment  variables for its worker alone (credentials); kept apart, never shown
    mount        whether to mount it at once
    """

    session: _Text | None = None
    storage: _Text | None = None
    callbacks: _Text | None = None
    scope: Any = None
    routes: list[RouteConfig] = []
    policy: dict[str, Any] = {}
    labels: dict[_Label, _Text] = {}
    environment: dict[_Variable, _Text] | None = None
    mount: bool = True


class Unmount(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """`force`: also when containers still use it; they lose it."""

    force: bool = False


class SessionReceipt(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a sync or a stop leaves behind: files and bytes in the session, changes that are not persisted yet.

    After a sync, where there is a storage: by path what it acknowledged since the last one (size, version: an ETag),
    and why what is pending is; both cut short where they are long.
    """

    session: str
    files: int
    bytes: int
    pending: int
    stored: dict[str, Any] = {}
    reasons: list[dict[str, Any]] = []


class WorkerStatus(msgspec.Struct, kw_only=True):
    """`phase`: serving, restarting, ...; `answers`: it told its own status within a second or two."""

    pid: int | None
    phase: str
    restarts: int
    answers: bool
    last_death: str | None = None


class SessionStatus(msgspec.Struct, kw_only=True):
    """One session. `files`, `bytes`, `pending` and `requests` are the worker's, absent when it does not answer.
    `unwritten`: the callbacks that take no writes; what is changed where they are stays on this host."""

    session: str
    storage: str
    mountpoint: str
    state: State
    error: str | None = None
    made: float
    labels: dict[str, str]
    policy: dict[str, Any]
    volume: bool = False
    holders: list[str] = []
    worker: WorkerStatus | None = None
    files: int | None = None
    bytes: int | None = None
    pending: int | None = None
    requests: int | None = None
    unwritten: list[str] = []
    details: dict[str, Any] = {}
    receipt: SessionReceipt | None = None


class SessionHealth(msgspec.Struct, kw_only=True):
    """Whether real I/O through the mount worked, and how long it took."""

    session: str
    healthy: bool
    seconds: float
    error: str | None = None


class Health(msgspec.Struct, kw_only=True):
    """Of the whole daemon. `ready`: what is meant to be mounted is, and does real I/O."""

    ready: bool
    sessions: int
    mounted: int
    failing: list[SessionHealth]


class Problem(msgspec.Struct, kw_only=True):
    """Why a request was not carried out. `errno` is a name such as ENOENT where there is one."""

    message: str
    errno: str | None = None
