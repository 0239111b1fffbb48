"""The daemon's client: what the commands use to speak to it, and what a Python program may.

Synchronous and small: one request a connection's turn, an answer or a `Refused`. The daemon is found by its state
directory (`--state`, or MOUNT_SESSION_STATE). See `api` for what can be asked.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from mount.address import answers, short_path
from mount.messages import (
    Health,
    NewSession,
    Problem,
    SessionHealth,
    SessionReceipt,
    SessionStatus,
)
from mount.routing import RouteConfig

__all__ = ["Client", "NoDaemon", "Refused"]

SECONDS: Final = 150.0  # for an answer; a worker may take up to two minutes to recover a session
T = TypeVar("T")


class NoDaemon(OSError):
    """Nobody answers on the control socket."""


class Refused(OSError):
    """The daemon's answer is a problem; `status` is the HTTP status."""

    def __init__(self, status: int, problem: Problem) -> None:
        super().__init__(problem.message)
        self.status = status
        self.problem = problem


class Client:
    """Use as a context, or `close`."""

    def __init__(self, state: Path) -> None:
        self.socket = state / ".daemon" / "control.sock"
        try:
            self._path = short_path(self.socket)
            uds = self._path.__enter__()
            if not answers(uds):
                self._path.__exit__(None, None, None)
                raise self._nobody()
        except FileNotFoundError:
            raise self._nobody() from None
        except PermissionError:
            why = "no permission; its socket is for root, for the daemon's user, and for the group that --group names"
            raise PermissionError(errno.EACCES, why, str(self.socket)) from None
        transport = httpx.HTTPTransport(uds=uds, verify=False)  # no TLS here; loading authorities takes 29 ms
        self._http = httpx.Client(transport=transport, base_url="http://daemon", timeout=SECONDS)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()
        self._path.__exit__(None, None, None)

    def _nobody(self) -> NoDaemon:
        return NoDaemon(f"no daemon answers on {self.socket}; is `mount-session serve` running? --state says where")

    def _send(self, method: str, path: str, *, accept: int = 200, **options: Any) -> httpx.Response:
        try:
            response = self._http.request(method, path, **options)
        except httpx.ConnectError:
            raise self._nobody() from None
        except httpx.TimeoutException:
            raise TimeoutError(f"the daemon did not answer {method} {path} in time") from None
        except httpx.TransportError as e:
            raise OSError(f"the daemon ended the connection: {e}") from None
        if response.status_code >= 400 and response.status_code != accept:
            raise _refused(response)
        return response

    def _ask(self, kind: type[T], method: str, path: str, **options: Any) -> T:
        return msgspec.json.decode(self._send(method, path, **options).content, type=kind)

    # ---- sessions

    def new(self, wanted: NewSession) -> SessionStatus:
        return self._ask(SessionStatus, "POST", "/v1/sessions", content=msgspec.json.encode(wanted))

    def list(self) -> list[SessionStatus]:
        return self._ask(list[SessionStatus], "GET", "/v1/sessions")

    def status(self, session: str) -> SessionStatus:
        return self._ask(SessionStatus, "GET", _path(session))

    def mount(self, session: str) -> SessionStatus:
        return self._ask(SessionStatus, "POST", _path(session, "mount"))

    def unmount(self, session: str, *, force: bool = False) -> SessionReceipt:
        return self._ask(SessionReceipt, "POST", _path(session, "unmount"), json={"force": force}, timeout=None)

    def remove(self, session: str, *, purge: bool = False, force: bool = False) -> None:
        self._send(
            "DELETE", _path(session), params={"purge": str(purge).lower(), "force": str(force).lower()}, timeout=None
        )

    def policy(self, session: str, fields: dict[str, Any]) -> SessionStatus:
        return self._ask(SessionStatus, "PATCH", _path(session, "policy"), json=fields)

    def add_route(self, session: str, route: RouteConfig) -> dict[str, int]:
        """How many files appeared with it."""
        body = msgspec.json.encode(route)
        return self._ask(dict[str, int], "POST", _path(session, "routes"), content=body, timeout=None)

    def sync(self, session: str) -> SessionReceipt:
        """As long as it takes."""
        return self._ask(SessionReceipt, "POST", _path(session, "sync"), timeout=None)

    def refresh(self, session: str) -> dict[str, int]:
        return self._ask(dict[str, int], "POST", _path(session, "refresh"), timeout=None)

    def flush(self, session: str) -> SessionStatus:
        return self._ask(SessionStatus, "POST", _path(session, "flush"))

    def wait(self, session: str, seconds: float) -> SessionHealth:
        return self._ask(
            SessionHealth, "GET", _path(session, "wait"), params={"timeout": seconds}, timeout=seconds + 15
        )

    def events(self, session: str, since: int | None = 0, *, follow: bool = False) -> Iterator[bytes]:
        """Events above number `since` (None: those to come), each as JSON; with `follow` without end."""
        query = {"since": "now" if since is None else str(since), "follow": str(follow).lower()}
        try:
            with self._http.stream("GET", _path(session, "events"), params=query, timeout=None) as response:
                if response.status_code >= 400:
                    response.read()
                    raise _refused(response)
                for line in response.iter_lines():
                    yield line.encode()
        except httpx.ConnectError:
            raise self._nobody() from None
        except httpx.TransportError as e:
            raise OSError(f"the daemon ended the connection: {e}") from None

    def export(self, session: str) -> Iterator[bytes]:
        """The tar's bytes; OSError if it ends before its end."""
        try:
            with self._http.stream("GET", _path(session, "export"), timeout=None) as response:
                if response.status_code >= 400:
                    response.read()
                    raise _refused(response)
                yield from response.iter_raw(1 << 18)
        except httpx.ConnectError:
            raise self._nobody() from None
        except httpx.TransportError as e:
            raise OSError(f"the export is incomplete; the daemon's log says why ({e})") from None

    def put(self, session: str, tar: Iterable[bytes]) -> SessionStatus:
        """Files from a tar into the session."""
        return self._ask(SessionStatus, "PUT", _path(session, "files"), content=tar, timeout=None)

    # ---- the host

    def health(self) -> Health:
        """Whether ready or not."""
        return self._ask(Health, "GET", "/v1/health", accept=503)

    def verify(self) -> dict[str, Any]:
        return self._ask(dict[str, Any], "GET", "/v1/audit/verify", timeout=None)

    def metrics(self) -> str:
        return self._send("GET", "/metrics").text

    def openapi(self) -> dict[str, Any]:
        return self._ask(dict[str, Any], "GET", "/v1/openapi.json")


def _path(session: str, *rest: str) -> str:
    return "/".join(("/v1/sessions", quote(session, safe=""), *rest))


def _refused(response: httpx.Response) -> Refused:
    try:
        problem = msgspec.json.decode(response.content, type=Problem)
    except msgspec.DecodeError:
        problem = Problem(message=f"{response.status_code} {response.reason_phrase}")
    return Refused(response.status_code, problem)
