"""What the daemon is told: one TOML file, checked whole before anything is done.

An unknown key, a wrong type or an odd value is an error that names it. `docs/operations.md` shows every key. Called by
`serve`; the daemon sees only the result.
"""

from __future__ import annotations

import os
import tomllib
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec

from vfs.policy import Policy, parse

__all__ = ["DEFAULT_STATE", "Settings", "Webhook", "default_state", "load"]

DEFAULT_STATE = Path("/var/lib/mount-session")
STATE_VARIABLE = "MOUNT_SESSION_STATE"

_Positive = Annotated[int, msgspec.Meta(gt=0)]
_Seconds = Annotated[float, msgspec.Meta(gt=0)]


class Webhook(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One receiver. `secret_file` holds the key of the signature; `events`: kinds, none given: all."""

    url: str
    secret_file: str | None = None
    events: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ("*",)
    timeout: _Seconds = 10.0

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"webhook url {self.url!r}: it does not begin with http:// or https://")
        import httpx  # every command imports this module, and few configure a webhook

        try:
            url = httpx.URL(self.url)
            url.raw_host.decode("ascii").encode("idna")  # as it is looked up
            if not url.host or "%" in url.host or (url.port or 0) > 65535:
                raise ValueError("there is no such host or port")
        except (httpx.InvalidURL, ValueError) as e:
            raise ValueError(f"webhook url {self.url!r}: {e}") from None

    @property
    def name(self) -> str:
        """For logs and metrics: which one it is, without the path, which may be the key to it."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}#{sha256(self.url.encode()).hexdigest()[:8]}"

    def secret(self) -> bytes | None:
        return None if self.secret_file is None else Path(self.secret_file).read_bytes().strip()


class Workers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`uids`: the first of a range, and how many; each session's worker runs as one of its own, with no other rights.
    None: as the daemon itself."""

    uids: tuple[_Positive, _Positive] | None = None


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`root`: ROOT/<session> is each session's mount. `state`: where sessions and the daemon's own files are kept.

    group       whose members may use the control socket, beside root and the daemon's own user
    docker      the Docker plugin's socket; "" for none
    metrics     host:port for Prometheus; "" for none (they are on the control socket in any case)
    at_once     sessions mounted or unmounted at a time, at start and stop
    deadline    seconds for real I/O through a mount before it counts as broken
    storage     of a new session that names none
    log         "json", a line an event, or "text", for people; "" for json unless standard error is a terminal
    environment globs of the daemon's own variables that workers of sessions get which have a storage and no
                variables of their own
    """

    root: str
    state: str
    group: str = ""
    docker: str = ""
    metrics: str = ""
    at_once: _Positive = 8
    deadline: _Seconds = 10.0
    storage: str = "local"
    environment: tuple[str, ...] = ("AWS_*", "BUCKET_NAME", "TIGRIS_*", "FLY_*", "SSL_CERT_*", "*_PROXY", "*_proxy")
    log: Literal["", "text", "json"] = ""
    policy: Policy = Policy()
    workers: Workers = Workers()
    webhooks: tuple[Webhook, ...] = ()

    def __post_init__(self) -> None:
        for name in ("root", "state"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty: name a directory")

    @property
    def root_path(self) -> Path:
        return Path(self.root)

    @property
    def state_path(self) -> Path:
        return Path(self.state)

    @property
    def own(self) -> Path:
        """The daemon's own files; no session's id begins with a dot."""
        return self.state_path / ".daemon"

    @property
    def socket(self) -> Path:
        return self.own / "control.sock"


def default_state() -> Path:
    """Where state is kept unless --state says otherwise: MOUNT_SESSION_STATE, or the place for this user."""
    if given := os.environ.get(STATE_VARIABLE):
        return Path(given)
    if os.geteuid() == 0:
        return DEFAULT_STATE
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "mount-session"


def load(file: Path | None, **given: str | None) -> Settings:
    """The file's settings, with what was `given` on the command line in their place. ValueError names what is wrong."""
    try:
        fields: dict[str, Any] = tomllib.loads(file.read_text()) if file else {}
    except tomllib.TOMLDecodeError as e:
        raise ValueError(f"{file}: {e}") from None
    fields.update({name: value for name, value in given.items() if value is not None})
    fields.setdefault("state", str(default_state()))
    try:
        if isinstance(policy := fields.get("policy"), dict):
            fields["policy"] = parse(policy)
        return msgspec.convert(fields, Settings)
    except ValueError as e:
        raise ValueError(f"{file}: {e}" if file else str(e)) from None
