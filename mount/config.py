"""What a mount is asked to be, and what is told about it: the plain structures that supervisor and worker exchange.

They go through sockets and into files as msgpack, so every field is bytes, numbers or text that can be encoded; paths
are bytes, for a path need not be UTF-8. A new field gets a default: after an upgrade the other side may be older.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Literal

import msgspec

from mount.handshake import Agreement
from mount.routing import RouteConfig
from vfs.errors import brief
from vfs.fileref import validate_session_id
from vfs.policy import UNLIMITED, Policy


class MountConfig(msgspec.Struct, frozen=True, kw_only=True):
    """One session on one directory."""

    session: str
    mountpoint: bytes
    state: bytes
    """The directory that holds the state directories of all sessions."""
    read_only: bool = False
    """Whether it is mounted `ro`, which cannot change; a policy that is read-only can."""
    policy: Policy = UNLIMITED
    storage: str = "local"
    callbacks: str | None = None
    scope: Any = None
    routes: tuple[RouteConfig, ...] = ()
    """Directories that are kept elsewhere, or under a policy of their own."""
    steal: bool = False
    """Take the session's lease from who has it."""
    run_as: int | None = None
    """The user that workers become; None: the supervisor's own."""
    environment: dict[str, str] | None = None
    """All variables that a worker sees, beside harmless ones; None: the supervisor's."""
    hang_limit: float = 30.0
    """Seconds in which a worker must give a sign of life, else it is dumped and replaced."""
    idle_after: float = 300.0
    """Seconds without a request after which the worker ends until the next request, if nothing is pending; 0: never.
    What others change in its storage is then seen at the next request."""
    can_resend: bool = True
    """False: do as on kernels before 6.9, where a worker's death takes the mount with it."""

    def __post_init__(self) -> None:
        validate_session_id(self.session)

    @property
    def mountpoint_path(self) -> Path:
        return Path(os.fsdecode(self.mountpoint))

    @property
    def state_path(self) -> Path:
        return Path(os.fsdecode(self.state))

    @property
    def directory(self) -> Path:
        """The session's own state directory."""
        return self.state_path / self.session

    def check_takes_over(self, was: MountConfig, *, supervised: bool) -> None:
        """EBUSY where a mount made for `was` cannot go on as this one: `supervised`, it is someone else's."""
        if supervised:
            raise OSError(
                errno.EBUSY,
                "in use by another process; stop the other `mount-session`, or choose another --state",
                str(self.directory),
            )
        if (was.mountpoint, was.read_only) != (self.mountpoint, self.read_only):
            raise OSError(
                errno.EBUSY,
                f"the session is still mounted{' read-only' if was.read_only else ''} here, by a supervisor that died; "
                "`up` it with that mountpoint, or unmount it",
                os.fsdecode(was.mountpoint),
            )


class Connection(msgspec.Struct, frozen=True, kw_only=True):
    """A FUSE connection beside its descriptor: what every process that takes it over must know."""

    device: str
    minor: int
    max_readahead: int
    flags: int

    @property
    def agreement(self) -> Agreement:
        return Agreement(self.minor, self.max_readahead, self.flags)


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """All that a new worker is told; the /dev/fuse descriptor and its control socket come with it."""

    config: MountConfig
    connection: Connection
    adopted: bool
    """Has the kernel had an earlier worker, whose inodes it holds, and which may have left requests unanswered?"""
    crashed: bool = False
    """Did the worker before die by its own doing, and not perhaps because somebody killed it?"""
    probe: bytes | None = None
    """The name under which this worker shall answer the supervisor's first read and write."""


class Order(msgspec.Struct, frozen=True):
    """What the zygote is told. `fork` comes with the /dev/fuse descriptor and the worker's end of a channel; `keep`
    with the descriptor alone, of a session that sleeps. Should the supervisor die, the zygote keeps both kinds of mount
    alive, until it is told to `forget` one.
    """

    what: Literal["fork", "keep", "forget"]
    start: Start


class Receipt(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a stop leaves behind, as `vfs.session.Receipt` says it: with a storage also what it stored since the last
    sync (size and version, an ETag), and why what is pending is; both cut short where they are long."""

    session: str
    files: int
    bytes: int
    pending: int
    stored: dict[str, Any] = {}
    reasons: list[dict[str, Any]] = []


class Failure(msgspec.Struct, frozen=True):
    """An exception on its way through a socket."""

    kind: str
    number: int
    text: str
    filename: str | None = None

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        if isinstance(error, OSError) and error.errno is not None:
            filename = None if error.filename is None else brief(_encodable(os.fsdecode(error.filename)))
            return cls(type(error).__name__, error.errno, brief(_encodable(error.strerror or str(error))), filename)
        return cls(type(error).__name__, 0, brief(_encodable(str(error))))

    def error(self) -> Exception:
        """The exception again, an OSError with its errno or a ValueError; a defect is an EIO that names it."""
        if self.number:
            return OSError(self.number, self.text, self.filename)
        if self.kind in ("ValueError", "TypeError", "ImportError", "ModuleNotFoundError"):  # what a user named is wrong
            return ValueError(self.text)
        return OSError(errno.EIO, f"{self.kind}: {self.text}; this is a defect of mount-session, see the log")


def _encodable(text: str) -> str:
    """A name in it need not be UTF-8, which messages are."""
    return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
