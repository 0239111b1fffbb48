"""The control API: HTTP on the daemon's Unix socket. `openapi` describes it; docs/operations.md shows it in use.

Every route is one entry of `ROUTES`, from which both the application and the description are made. A handler takes
the daemon and the request and gives a response; what it raises becomes a status with a `Problem` as its body, here
and nowhere else. Long answers (export, events) are streamed, never held in memory; a body may be as long as an
archive is.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import trio
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route as StarletteRoute

from mount import archive, audit, metrics, openapi
from mount.channel import BrokenChannel
from mount.daemon import Daemon
from mount.feed import Feed
from mount.listener import Peer
from mount.messages import (
    Health,
    NewSession,
    Problem,
    SessionHealth,
    SessionReceipt,
    SessionStatus,
    Unmount,
)
from mount.routing import RouteConfig
from vfs.errors import single
from vfs.policy import Policy

__all__ = ["ROUTES", "Route", "application", "missing"]

log = logging.getLogger(__name__)

MAX_BODY: Final = 1 << 20  # bytes of JSON
ROUTE_LIMIT: Final = 600.0  # seconds; its first listing is part of adding a route

Handler = Callable[[Daemon, Request], Awaitable[Response]]
T = TypeVar("T")

_STATUS: Final = {
    errno.ENOENT: 404,
    errno.EEXIST: 409,
    errno.EBUSY: 409,
    errno.EROFS: 409,
    errno.EACCES: 403,
    errno.EPERM: 403,
    errno.EINVAL: 400,
    errno.ENOTDIR: 409,
    errno.EDQUOT: 507,
    errno.ENOSPC: 507,
    errno.ETIMEDOUT: 504,
}


class Route(NamedTuple):
    """`query`: parameter -> what it means, and its schema. `body`, `answer`: a message's type, or a MIME type. `alike`:
    another status with the same answer."""

    method: str
    path: str
    summary: str
    handler: Handler
    status: int = 200
    body: Any = None
    answer: Any = None
    query: dict[str, tuple[str, dict[str, Any]]] = {}
    alike: int | None = None


class TooLarge(ValueError):
    """A body that is no JSON message's size."""


def peer_of(request: Request) -> Peer:
    """Who asks, by the kernel's word; see `listener`."""
    peer = request.scope["state"]["peer"]
    assert isinstance(peer, Peer)
    return peer


async def body_of(request: Request, kind: type[T]) -> T:
    """The body as a message; ValueError names what is wrong. An empty body is an empty message."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise TooLarge(f"the body is larger than {MAX_BODY} bytes")
    return msgspec.json.decode(bytes(body) or b"{}", type=kind)


def answer(message: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(message), status, media_type="application/json")


def flag(request: Request, name: str) -> bool:
    given = request.query_params.get(name, "false")
    if given not in ("true", "false", "1", "0", ""):
        raise ValueError(f"query parameter {name}={given!r}: true or false is needed")
    return given in ("true", "1", "")


def number(request: Request, name: str, default: float, most: float) -> float:
    given = request.query_params.get(name)
    try:
        value = default if given is None else float(given)
    except ValueError:
        raise ValueError(f"query parameter {name}={given!r}: a number is needed") from None
    if not 0 <= value <= most:
        raise ValueError(f"query parameter {name}={given!r}: 0 to {most:g} is possible")
    return value


# ---- sessions


async def list_sessions(daemon: Daemon, request: Request) -> Response:
    return answer(await daemon.statuses())


async def new_session(daemon: Daemon, request: Request) -> Response:
    return answer(await daemon.new(await body_of(request, NewSession), peer_of(request)), 201)


async def show_session(daemon: Daemon, request: Request) -> Response:
    return answer(await daemon.get(request.path_params["session"]).status())


async def remove_session(daemon: Daemon, request: Request) -> Response:
    await daemon.remove(
        request.path_params["session"], peer_of(request), purge=flag(request, "purge"), force=flag(request, "force")
    )
    return Response(status_code=204)


async def mount_session(daemon: Daemon, request: Request) -> Response:
    return answer(await daemon.mount(request.path_params["session"], peer_of(request)))


async def unmount_session(daemon: Daemon, request: Request) -> Response:
    wanted = await body_of(request, Unmount)
    return answer(await daemon.unmount(request.path_params["session"], peer_of(request), force=wanted.force))


async def change_policy(daemon: Daemon, request: Request) -> Response:
    fields = await body_of(request, dict[str, Any])
    return answer(await daemon.set_policy(request.path_params["session"], fields, peer_of(request)))


async def add_route(daemon: Daemon, request: Request) -> Response:
    route = await body_of(request, RouteConfig)
    hosted = daemon.get(request.path_params["session"])
    await daemon.note("session.route", hosted.session, peer_of(request), base=route.base, read_only=route.read_only)
    return answer(await hosted.ask("route", ROUTE_LIMIT, route=msgspec.to_builtins(route)))


async def sync_session(daemon: Daemon, request: Request) -> Response:
    return answer(await daemon.sync(request.path_params["session"], peer_of(request)))


async def refresh_session(daemon: Daemon, request: Request) -> Response:
    return answer(await daemon.refresh(request.path_params["session"], peer_of(request)))


async def flush_session(daemon: Daemon, request: Request) -> Response:
    return answer(await daemon.flush(request.path_params["session"], peer_of(request)))


async def wait_for_session(daemon: Daemon, request: Request) -> Response:
    hosted = daemon.get(request.path_params["session"])
    return answer(await hosted.wait(number(request, "timeout", 30.0, 3600.0)))


async def session_health(daemon: Daemon, request: Request) -> Response:
    health = await daemon.get(request.path_params["session"]).probe(daemon.settings.deadline)
    return answer(health, 200 if health.healthy else 503)


async def export_session(daemon: Daemon, request: Request) -> Response:
    hosted = daemon.get(request.path_params["session"])
    chunks = archive.export(hosted)
    first = await anext(chunks)  # what goes wrong at once is a status, not a body that is cut off

    async def body() -> AsyncIterator[bytes]:
        yield first
        async for chunk in chunks:
            yield chunk

    return StreamingResponse(body(), media_type="application/x-tar")


async def import_session(daemon: Daemon, request: Request) -> Response:
    hosted = daemon.get(request.path_params["session"])
    await daemon.note("session.import", hosted.session, peer_of(request))
    await archive.extract(hosted, request.stream())
    return answer(await hosted.status())


async def session_events(daemon: Daemon, request: Request) -> Response:
    """NDJSON, or with `Accept: text/event-stream` server-sent events, which a client resumes by Last-Event-ID."""
    hosted = daemon.get(request.path_params["session"])
    given = request.headers.get("last-event-id", request.query_params.get("since", "0"))
    if given != "now" and not (given.isascii() and given.isdecimal() and len(given) < 19):
        raise ValueError(f"since={given!r}: an event's number is needed, or `now`")
    as_sse = "text/event-stream" in request.headers.get("accept", "")
    follow = flag(request, "follow") or as_sse
    feed = Feed(hosted, daemon.settings.state_path, None if given == "now" else int(given))

    async def body() -> AsyncIterator[bytes]:
        async for page in feed.pages(follow=follow):
            if hosted.session not in daemon.hosted:
                return
            if as_sse:
                yield b"".join(b"id: %d\nevent: %s\ndata: %s\n\n" % (n, k.encode(), j) for n, k, j in page) or b":\n\n"
            else:
                yield b"".join(line.json + b"\n" for line in page)

    media_type = "text/event-stream" if as_sse else "application/x-ndjson"
    return StreamingResponse(body(), media_type=media_type, headers={"Cache-Control": "no-store"})


# ---- the host


async def health(daemon: Daemon, request: Request) -> Response:
    found = await daemon.health()
    return answer(found, 200 if found.ready else 503)


async def alive(daemon: Daemon, request: Request) -> Response:
    return PlainTextResponse("alive\n")


async def verify_audit(daemon: Daemon, request: Request) -> Response:
    try:
        head = await daemon.audit.verify()
    except audit.Tampered as e:
        return answer(Problem(message=str(e), errno="EBADMSG"), 409)
    return answer(head)


async def show_metrics(daemon: Daemon, request: Request) -> Response:
    return Response(await metrics.exposition(daemon), media_type=metrics.CONTENT_TYPE)


async def describe(daemon: Daemon, request: Request) -> Response:
    return answer(openapi.document(ROUTES))


_SESSION = "/v1/sessions/{session}"

ROUTES: Final = (
    Route("GET", "/v1/sessions", "All sessions of this host", list_sessions, answer=list[SessionStatus]),
    Route("POST", "/v1/sessions", "A new session", new_session, 201, NewSession, SessionStatus),
    Route("GET", _SESSION, "One session's status", show_session, answer=SessionStatus),
    Route(
        "DELETE",
        _SESSION,
        "Take a session off this host",
        remove_session,
        204,
        query={
            "purge": ("also what its storage holds", openapi.FLAG),
            "force": ("also with containers or pending changes", openapi.FLAG),
        },
    ),
    Route("POST", _SESSION + "/mount", "Mount it", mount_session, answer=SessionStatus),
    Route("POST", _SESSION + "/unmount", "Sync and unmount it", unmount_session, 200, Unmount, SessionReceipt),
    Route(
        "POST",
        _SESSION + "/routes",
        "Keep one of its directories elsewhere from now on; how many files appeared",
        add_route,
        200,
        RouteConfig,
        dict[str, int],
    ),
    Route("PATCH", _SESSION + "/policy", "Change its policy", change_policy, 200, Policy, SessionStatus),
    Route("POST", _SESSION + "/sync", "All that was written before is persisted", sync_session, answer=SessionReceipt),
    Route("POST", _SESSION + "/refresh", "Take up others' changes now", refresh_session, answer=dict[str, int]),
    Route("POST", _SESSION + "/flush", "Try what is pending now", flush_session, answer=SessionStatus),
    Route(
        "GET",
        _SESSION + "/wait",
        "Wait until real I/O works",
        wait_for_session,
        answer=SessionHealth,
        query={"timeout": ("seconds, 30 if left out", openapi.SECONDS)},
    ),
    Route("GET", _SESSION + "/health", "Real I/O through its mount", session_health, answer=SessionHealth, alike=503),
    Route(
        "GET",
        _SESSION + "/events",
        "What happened in it, in order, one JSON object a line; or server-sent events, if those are accepted",
        session_events,
        answer="application/x-ndjson",
        query={
            "since": (
                "the number of the last event that is known, 0 if left out; `now`: only what comes",
                openapi.SINCE,
            ),
            "follow": ("go on with what comes", openapi.FLAG),
        },
    ),
    Route("GET", _SESSION + "/export", "Its files as tar", export_session, answer="application/x-tar"),
    Route(
        "PUT", _SESSION + "/files", "Files from tar into it", import_session, 200, "application/x-tar", SessionStatus
    ),
    Route("GET", "/v1/health", "Real I/O through all mounts", health, answer=Health, alike=503),
    Route("GET", "/v1/alive", "The daemon's loop turns", alive, answer="text/plain"),
    Route("GET", "/v1/audit/verify", "Check the audit log", verify_audit, answer=audit.Head),
    Route("GET", "/metrics", "Prometheus metrics", show_metrics, answer="text/plain"),
    Route("GET", "/v1/openapi.json", "This description", describe, answer=dict[str, Any]),
)


def problem_of(error: BaseException, what: str) -> Response:
    """The status for what a handler raised. A defect of ours is 500 and a traceback in the log; its text stays
    there."""
    if isinstance(error, TooLarge):
        return answer(Problem(message=str(error), errno="EFBIG"), 413)
    if isinstance(error, BrokenChannel):
        return answer(Problem(message=str(error)), 503)
    if isinstance(error, OSError):
        code = error.errno or (errno.ETIMEDOUT if isinstance(error, TimeoutError) else None)
        if code is None:
            code = errno.ENOENT if isinstance(error, FileNotFoundError) else errno.EIO
        text = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        return answer(Problem(message=text, errno=errno.errorcode.get(code)), _STATUS.get(code, 500))
    if isinstance(error, ValueError):
        return answer(Problem(message=str(error), errno="EINVAL"), 400)
    if isinstance(error, trio.TooSlowError):
        return answer(Problem(message="it took too long", errno="ETIMEDOUT"), 504)
    log.error("%s failed by a defect", what, exc_info=error)
    return answer(Problem(message="a defect of mount-session; the daemon's log says more"), 500)


def _endpoint(daemon: Daemon, route: Route) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        try:
            return await route.handler(daemon, request)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody is left to read it
        except Exception as e:
            error = single(e)
            response = problem_of(error, f"{route.method} {request.url.path}")
            if response.status_code < 500:
                peer, path = peer_of(request), ascii(request.url.path)
                log.warning("%s %s by %s: %d %s", route.method, path, peer, response.status_code, error)
            return response

    return endpoint


async def missing(request: Request, error: Exception) -> Response:
    log.warning("%s %s by %s: no such route", request.method, ascii(request.url.path), peer_of(request))
    status = getattr(error, "status_code", 404)
    response = answer(Problem(message=f"no such route; GET /v1/openapi.json describes them all ({status})"), status)
    response.headers.update(getattr(error, "headers", None) or {})  # which methods there are
    return response


def _chosen(
    endpoints: dict[str, Callable[[Request], Awaitable[Response]]],
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        return await endpoints["GET" if request.method == "HEAD" else request.method](request)

    return endpoint


def application(daemon: Daemon) -> Starlette:
    methods: dict[str, dict[str, Callable[[Request], Awaitable[Response]]]] = {}
    for route in ROUTES:
        methods.setdefault(route.path, {})[route.method] = _endpoint(daemon, route)
    routes = [StarletteRoute(path, _chosen(endpoints), methods=list(endpoints)) for path, endpoints in methods.items()]
    return Starlette(routes=routes, exception_handlers={404: missing, 405: missing})
