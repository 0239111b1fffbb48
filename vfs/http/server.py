"""The server: a Python application's own live callbacks, for sessions in other processes, as an ASGI application on
trio.

Each request becomes one call through `vfs.persistence`, so callbacks may be sync, trio's or asyncio's here too, are
bounded in time, and their failures are logged where they happen. What a client sends that is not in the format (a
path that cannot be a file's, a header that is no JSON, a body that ends early) is refused with a 4xx and a log line,
before any callback is called.
"""

from __future__ import annotations

import contextlib
import functools
import hmac
import ipaddress
import logging
import queue
import re
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, cast
from urllib.parse import quote

import hypercorn.trio
import msgspec
import trio
from hypercorn.config import Config
from hypercorn.typing import Framework
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from vfs import listing
from vfs.call import Caller, is_async
from vfs.callbacks import Change, Context
from vfs.errors import single
from vfs.fileref import FileRef
from vfs.http import wire
from vfs.http.batch import body_file, parse_context, read_batch
from vfs.persistence import Persistence

__all__ = ["application", "serve", "serving"]

log = logging.getLogger(__name__)

RANGE_MAX = 64 << 20  # bytes of one range, which is held in memory
NOT_HERE = {"on_read_stream"}  # ranges do
CHUNK = 1 << 20
LINES = 1000  # of a listing, sent together
MESSAGE_MAX = 64 << 10  # of a body that is one JSON value
IMAGE_MAX = 1 << 30
BODY_MAX = 5 << 30
_METHODS = ("GET", "PUT", "POST", "DELETE")
_RANGE = re.compile(r"bytes=(\d{1,18})-(\d{1,18})")

Handler = Callable[[Request, Persistence, Context], Awaitable[Response]]
_CarryOut = Callable[[Sequence[Change], Context], Awaitable[Sequence[FileRef | None]]]
ScopeOf = Callable[[Any], Any]


def application(
    target: object,
    *,
    token: str | None = None,
    scope_of: ScopeOf | None = None,
    body_max: int = BODY_MAX,
    **options: Any,
) -> _Service:
    """Serves `target` (any object with callbacks) in the wire format of docs/callbacks.md.

    `token`: what a client must show. `scope_of`: makes the integrator's scope of the JSON that the client sent (sync or
    async; PermissionError refuses it); without it the callbacks are given that JSON. `body_max`: bytes of one request.
    `options`: as for Persistence.
    """
    return _Service(Persistence(target, **options), token, scope_of, body_max)


async def serve(
    target: object,
    *,
    bind: str = "127.0.0.1:0",
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    **options: Any,
) -> None:
    """Serve until cancelled; `await nursery.start(serve, target)` answers the URL for --callbacks.

    `bind`: `host:port`, or `unix:/path` (open to this user only). `options`: as for `application`. ValueError if
    others could reach it without a token.
    """
    if not _is_private(bind) and not options.get("token"):
        raise ValueError(f"bind={bind!r}: others can reach that; it needs a token")
    config = Config()
    config.bind = [bind]
    config.umask = 0o177
    config.errorlog = log
    config.include_server_header = False
    config.h11_max_incomplete_size = 2 * wire.HEADERS_MAX
    app = application(target, **options)
    work = functools.partial(hypercorn.trio.serve, cast(Framework, app), config, mode="asgi")
    try:
        async with trio.open_nursery() as nursery:
            binds = await nursery.start(work)
            task_status.started(f"http+unix://{quote(bind[5:])}" if bind.startswith("unix:") else binds[0])
    finally:
        with trio.CancelScope(shield=True):
            await app.aclose()


@contextlib.contextmanager
def serving(target: object, **options: Any) -> Iterator[str]:
    """Serve from a thread of its own, for applications that do not run on trio; gives the URL for --callbacks."""
    ready: queue.SimpleQueue[tuple[str, Callable[[], None]] | BaseException] = queue.SimpleQueue()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            url = await nursery.start(functools.partial(serve, target, **options))
            token = trio.lowlevel.current_trio_token()
            ready.put((url, functools.partial(token.run_sync_soon, nursery.cancel_scope.cancel)))

    def run() -> None:
        try:
            trio.run(main)
        except BaseException as e:
            ready.put(single(e))

    thread = threading.Thread(target=run, name="callbacks over HTTP", daemon=True)
    thread.start()
    started = ready.get()
    if isinstance(started, BaseException):
        thread.join()
        raise started
    url, stop = started
    try:
        yield url
    finally:
        with contextlib.suppress(trio.RunFinishedError):
            stop()
        thread.join()
        if not ready.empty() and isinstance(ended := ready.get(), BaseException):
            raise ended


def _is_private(bind: str) -> bool:
    if bind.startswith("unix:"):
        return True
    host = bind.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _wrapped(scope_of: ScopeOf) -> Callable[[Any], Any]:
    """`scope_of` with its answer in a tuple: a scope is handed on as it is, and may be awaitable or iterable itself."""
    if is_async(scope_of):

        @functools.wraps(scope_of)
        async def later(told: Any) -> tuple[Any]:
            return (await cast(Awaitable[Any], scope_of(told)),)

        return later
    return lambda told: (scope_of(told),)


class _Refused(Exception):
    """What a client sent is not in the format, or not for it to send."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


class _Service:
    """The requests, one method each."""

    def __init__(self, files: Persistence, token: str | None, scope_of: ScopeOf | None, body_max: int) -> None:
        self._files = files
        self._secret = None if token is None else token.encode()
        self._scopes = None if scope_of is None else Caller("scope_of", {"scope_of": _wrapped(scope_of)})
        self._body_max = body_max

        self._handlers: dict[tuple[str, bytes, bool], Handler] = {
            ("GET", b"", False): self.capabilities,
            ("GET", b"files", False): self.list,
            ("GET", b"files", True): self.read,
            ("PUT", b"files", True): self.write,
            ("DELETE", b"files", True): self.delete,
            ("GET", b"stat", True): self.stat,
            ("POST", b"move", False): self.move,
            ("POST", b"commit", False): self.commit,
            ("POST", b"write", False): self.write_many,
            ("GET", b"image", False): self.load_image,
            ("PUT", b"image", False): self.save_image,
        }

    async def aclose(self) -> None:
        await self._files.aclose()
        if self._scopes is not None:
            await self._scopes.aclose()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            for step in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{step}.complete"})
        elif scope["type"] == "http":
            request = Request(scope, receive)
            response = await self._response(request)
            await response(scope, receive, send)

    async def _response(self, request: Request) -> Response:
        try:
            self._authorise(request)
            place, path = _place(request)
            handler = self._handlers.get((request.method, place, path is not None))
            if handler is None:
                raise _Refused(404 if request.method in _METHODS else 405, "there is no such request")
            if handler == self.capabilities:
                return await handler(request, self._files, Context())
            return await handler(request, *await self._call_of(request))
        except _Refused as e:
            status, why = e.status, str(e)
        except (ValueError, OverflowError) as e:
            status, why = 413 if isinstance(e, OverflowError) else 400, str(e)
        except ClientDisconnect:
            status, why = 400, "the client went away before the end of its request"
        except OSError as e:
            status, told = wire.error_to(e)
            return JSONResponse(told, status)
        log.warning("refused %s %.300r: %.300s", request.method, request.url.path, why)
        return JSONResponse({"message": why[:500]}, status)

    def _authorise(self, request: Request) -> None:
        if self._secret is None:
            return
        scheme, _, shown = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(shown.strip().encode("latin-1"), self._secret):
            raise _Refused(401, "no token, or another one")

    async def _call_of(self, request: Request) -> tuple[Persistence, Context]:
        scope = wire.from_header(request.headers.get(wire.SCOPE))
        context = parse_context(wire.from_header(request.headers.get(wire.CONTEXT)))
        if self._scopes is not None:
            (scope,) = await self._scopes.call("scope_of", "scope", self._files.timeout, scope)
        return self._files.for_scope(scope), context

    async def capabilities(self, request: Request, files: Persistence, context: Context) -> Response:
        return JSONResponse({"mount_session": wire.VERSION, "callbacks": sorted(files.can - NOT_HERE)})

    async def list(self, request: Request, files: Persistence, context: Context) -> Response:
        found = await files.list(context)
        return StreamingResponse(_listing(found), media_type="application/x-ndjson")

    async def stat(self, request: Request, files: Persistence, context: Context) -> Response:
        return _json(wire.ref_to(await files.stat(_path(request), context)))

    async def read(self, request: Request, files: Persistence, context: Context) -> Response:
        path, wanted = _path(request), request.headers.get("Range")
        if wanted is not None and "on_read_range" in files.can:
            return await _range(files, path, wanted, context)
        if "on_read" in files.can or "on_read_range" not in files.can:
            return Response(await files.read(path, context), media_type="application/octet-stream")
        first = await files.read_range(path, 0, CHUNK, context)
        return StreamingResponse(_ranges(files, path, first, context), media_type="application/octet-stream")

    async def write(self, request: Request, files: Persistence, context: Context) -> Response:
        path = _path(request)
        with contextlib.ExitStack() as temporary:
            async with _stream(request) as stream:
                file = await body_file(stream, temporary, self._body_max)
            return _json(wire.ref_to(await files.write_file(path, file, context)))

    async def delete(self, request: Request, files: Persistence, context: Context) -> Response:
        await files.delete(_path(request), context)
        return Response(status_code=204)

    async def move(self, request: Request, files: Persistence, context: Context) -> Response:
        told = msgspec.json.decode(await _message(request, MESSAGE_MAX), type=wire.Move)
        old = wire.path_from(told.source, told.source_base64).removeprefix("/")
        new = wire.path_from(told.path, told.path_base64).removeprefix("/")
        return _json(wire.ref_to(await files.move(_checked(old), _checked(new), context)))

    async def commit(self, request: Request, files: Persistence, context: Context) -> Response:
        return await self._batch(request, files.commit, context)

    async def write_many(self, request: Request, files: Persistence, context: Context) -> Response:
        return await self._batch(request, files.write_many, context)

    async def _batch(self, request: Request, carry_out: _CarryOut, context: Context) -> Response:
        with contextlib.ExitStack() as temporary:
            async with _stream(request) as stream:
                changes = await read_batch(stream, temporary, self._body_max)
            if not changes:
                raise _Refused(400, "a batch without changes")
            outcomes = await carry_out(changes, context)
        return _json([None if ref is None else wire.ref_to(ref) for ref in outcomes])

    async def load_image(self, request: Request, files: Persistence, context: Context) -> Response:
        found = await files.load_image(context)
        if found is None:
            return Response(status_code=404)
        image, version = found
        headers = {wire.IMAGE_VERSION: wire.to_header(version)}
        return Response(image, headers=headers, media_type="application/octet-stream")

    async def save_image(self, request: Request, files: Persistence, context: Context) -> Response:
        return _json({"version": await files.save_image(await _message(request, IMAGE_MAX), context)})


def _place(request: Request) -> tuple[bytes, bytes | None]:
    """The first segment of the URL's path, and what follows it; in bytes, because a decoded path has lost what is not
    UTF-8."""
    raw: bytes = request.scope["raw_path"]
    base = quote(request.scope.get("root_path", ""), safe="/%").encode()
    place, slash, path = raw.removeprefix(base).removeprefix(b"/").partition(b"/")
    return place, path if slash else None


def _path(request: Request) -> str:
    return _checked(wire.decode_path(_place(request)[1] or b""))


def _checked(path: str) -> str:
    listing.check_path(path)
    return path


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")


async def _message(request: Request, limit: int) -> bytes:
    body = bytearray()
    async with _stream(request) as stream:
        async for chunk in stream:
            body += chunk
            if len(body) > limit:
                raise OverflowError(f"more than {limit} bytes")
    return bytes(body)


def _stream(request: Request) -> contextlib.aclosing[AsyncGenerator[bytes, None]]:
    return contextlib.aclosing(request.stream())


async def _listing(files: Sequence[FileRef]) -> AsyncIterator[bytes]:
    for start in range(0, len(files), LINES):
        yield b"".join(msgspec.json.encode(wire.ref_to(ref)) + b"\n" for ref in files[start : start + LINES])


async def _range(files: Persistence, path: str, wanted: str, context: Context) -> Response:
    match = _RANGE.fullmatch(wanted.replace(" ", ""))
    if match is None:
        raise _Refused(400, "the form of a range is bytes=FIRST-LAST")
    first, last = int(match[1]), int(match[2])
    if not first <= last < first + RANGE_MAX:
        raise _Refused(400, f"a range has 1 to {RANGE_MAX} bytes")
    content = await files.read_range(path, first, last - first + 1, context)
    if not content:
        return Response(status_code=416)
    headers = {"Content-Range": f"bytes {first}-{first + len(content) - 1}/*"}
    return Response(content, 206, headers, "application/octet-stream")


async def _ranges(files: Persistence, path: str, first: bytes, context: Context) -> AsyncIterator[bytes]:
    part, at = first, 0
    while part:
        yield part
        at += len(part)
        if len(part) < CHUNK:
            return
        part = await files.read_range(path, at, CHUNK, context)
