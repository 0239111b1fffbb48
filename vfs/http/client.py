"""The client: callbacks that are carried out by a program at the other end of HTTP, in whatever language.

An `HttpCallbacks` is a target like any other: `vfs.persistence` bounds each call's time, checks what comes back, and
turns what is unexpected into EIO. Here the errors of the server become the errno that it named, and those of the way
to it ETIMEDOUT or EIO. Bodies are streamed both ways; only `on_read` collects one, up to `max_file_size`.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, Literal

import httpx
import msgspec
import trio

from vfs.callbacks import ARGUMENTS, Change, Context
from vfs.fileref import FileRef
from vfs.http import wire
from vfs.http.connections import Connections

__all__ = ["HttpCallbacks", "connect"]

log = logging.getLogger(__name__)

CHUNK = 256 << 10
ANSWER_MAX = 16 << 20  # bytes of an outcome or an error
LINE_MAX = 1 << 20  # bytes of one line of a listing
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-.*?(?:/(\d{1,18}))?")  # where it begins, and of how many bytes


async def connect(
    url: str,
    *,
    token: str | None = None,
    seconds: float = 30.0,
    max_file_size: int = 64 << 20,
    can: Iterable[str] | None = None,
) -> HttpCallbacks:
    """The callbacks at `url`: `http://host:port/base`, `https://...`, `http+unix:///run/app.sock`, or with a base
    `http+unix://%2Frun%2Fapp.sock/base`.

    They are asked which callbacks they have, unless `can` says it: a session that knows from before starts while they
    are down. `seconds` is how long the server may be silent. OSError says why it cannot be used, ValueError what is
    wrong with the URL.
    """
    target = HttpCallbacks(url, can or ARGUMENTS, token=token, seconds=seconds, max_file_size=max_file_size)
    if can is not None:
        return target
    try:
        found = await target.capabilities()
    finally:
        await target.aclose()
    return HttpCallbacks(url, found, token=token, seconds=seconds, max_file_size=max_file_size)


class HttpCallbacks:
    """The callbacks named in `can`, of the server at `url`. The scope goes as JSON."""

    async_library: Literal["trio"] = "trio"

    def __init__(
        self,
        url: str,
        can: Iterable[str],
        *,
        token: str | None = None,
        seconds: float = 30.0,
        max_file_size: int = 64 << 20,
    ) -> None:
        self.url = url
        self.can = frozenset(can)
        for absent in ARGUMENTS.keys() - self.can:
            setattr(self, absent, None)
        self._max_file_size = max_file_size
        self._reachable = True
        headers = {"Accept-Encoding": "identity", "User-Agent": f"mount-session/{wire.VERSION}"}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        self._server = Connections(url, seconds, headers)

    async def capabilities(self) -> list[str]:
        """The callbacks that the server has. OSError says why it cannot be used; EHOSTUNREACH: it cannot be reached."""
        try:
            async with self._request("GET", "/", "/") as response:
                body = await _collected(response, ANSWER_MAX)
            found = msgspec.json.decode(body, type=wire.Capabilities)
        except OSError as e:
            number = errno.EHOSTUNREACH if isinstance(e.__cause__, httpx.TransportError) else e.errno or errno.EIO
            raise OSError(number, f"callbacks at {self.url}: {e.strerror}") from e
        except ValueError as e:
            raise OSError(errno.EPROTO, f"callbacks at {self.url}: not an answer of such callbacks: {e}") from e
        known = [name for name in found.callbacks if name in ARGUMENTS]
        if found.mount_session != wire.VERSION or not known:
            told = f"version {found.mount_session} with the callbacks {found.callbacks}"
            raise OSError(errno.EPROTONOSUPPORT, f"callbacks at {self.url}: {told}; needed is version {wire.VERSION}")
        return known

    async def on_list(self, scope: Any, context: Context) -> AsyncIterator[object]:
        async with (
            self._request("GET", "/files", "/", scope, context) as response,
            contextlib.aclosing(_lines(response)) as lines,
        ):
            async for line in lines:
                yield _entry(line)

    async def on_stat(self, scope: Any, path: str, context: Context) -> FileRef:
        body = await self._answer("GET", "/stat" + wire.encode_path(path), path, scope, context)
        return wire.ref_from(msgspec.json.decode(body, type=wire.Entry), path)

    async def on_read(self, scope: Any, path: str, context: Context) -> bytes:
        async with self._request("GET", _file(path), path, scope, context) as response:
            if response.status_code != 200:
                raise ValueError(f"asked for the content, was given the status {response.status_code}")
            content = await _collected(response, self._max_file_size)
        return content

    async def on_read_range(self, scope: Any, path: str, offset: int, size: int, context: Context) -> bytes:
        if size == 0:
            return b""
        wanted = {"Range": f"bytes={offset}-{offset + size - 1}"}
        async with self._request("GET", _file(path), path, scope, context, headers=wanted, also=416) as response:
            if response.status_code == 416:  # begins at or after the end
                return b""
            if response.status_code == 200:  # the server ignores ranges
                return await _cut(response, offset, size)
            told = response.headers.get("Content-Range", "")
            match = _CONTENT_RANGE.fullmatch(told) if response.status_code == 206 else None
            if match is None or int(match[1]) != offset:
                got = f"the status {response.status_code} and the Content-Range {told!r}"
                raise ValueError(f"asked for {wanted['Range']}, was given {got}")
            content = await _collected(response, size)
            if match[2] is not None and offset + len(content) < min(offset + size, int(match[2])):
                raise ValueError(f"asked for {wanted['Range']}, was given {len(content)} bytes of {told!r}")
            return content

    async def on_write(self, scope: Any, path: str, content: bytes, context: Context) -> Any:
        body = await self._answer("PUT", _file(path), path, scope, context, content=content)
        return wire.outcome_from(body, path)

    async def on_write_file(self, scope: Any, path: str, file: BinaryIO, context: Context) -> Any:
        length = {"Content-Length": str(context["size"])}
        content = _Upload([(file, context["size"])])
        body = await self._answer("PUT", _file(path), path, scope, context, content=content, headers=length)
        return wire.outcome_from(body, path)

    async def on_delete(self, scope: Any, path: str, context: Context) -> None:
        await self._answer("DELETE", _file(path), path, scope, context)

    async def on_move(self, scope: Any, old: str, new: str, context: Context) -> Any:
        told = msgspec.json.encode({**wire.path_fields(old, "source"), **wire.path_fields(new)})
        return wire.outcome_from(await self._answer("POST", "/move", old, scope, context, content=told), new)

    async def on_commit(self, scope: Any, changes: Sequence[Change], context: Context) -> Any:
        return await self._batch("/commit", scope, changes, context)

    async def on_write_many(self, scope: Any, changes: Sequence[Change], context: Context) -> Any:
        return await self._batch("/write", scope, changes, context)

    async def _batch(self, where: str, scope: Any, changes: Sequence[Change], context: Context) -> Any:
        body = await self._answer("POST", where, changes[0].path, scope, context, content=_Upload(_batch(changes)))
        return wire.outcomes_from(body, [change.path for change in changes])

    async def on_load_image(self, scope: Any, context: Context) -> tuple[bytes, str] | None:
        try:
            async with self._request("GET", "/image", "/", scope, context) as response:
                return await _collected(response, None), wire.from_header(response.headers.get(wire.IMAGE_VERSION))
        except FileNotFoundError:
            return None

    async def on_save_image(self, scope: Any, image: bytes, context: Context) -> Any:
        body = await self._answer("PUT", "/image", "/", scope, context, content=image)
        return msgspec.json.decode(body, type=dict[str, Any]).get("version")

    async def aclose(self) -> None:
        await self._server.aclose()

    async def _answer(self, *arguments: Any, **options: Any) -> bytes:
        async with self._request(*arguments, **options) as response:
            return await _collected(response, ANSWER_MAX)

    @contextlib.asynccontextmanager
    async def _request(
        self,
        method: str,
        place: str,
        path: str,
        scope: Any = None,
        context: Context | None = None,
        *,
        content: bytes | httpx.AsyncByteStream | None = None,
        headers: dict[str, str] | None = None,
        also: int | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """The answer, its body unread. Raises what it says if it is no success (nor `also`)."""
        told = dict(headers or {})
        if context is not None:
            told |= {wire.SCOPE: wire.to_header(scope), wire.CONTEXT: wire.to_header(context)}
        if sum(map(len, told.values())) > wire.HEADERS_MAX // 2:
            raise OSError(errno.E2BIG, "scope and context are too long for HTTP headers", path)
        try:
            async with self._server.request(method, place, told, content) as response:
                if response.is_success or response.status_code == also:
                    yield response
                else:
                    raise wire.error_from(response.status_code, await _collected(response, ANSWER_MAX), path)
        except httpx.TimeoutException as e:
            self._note(False, e)
            raise OSError(errno.ETIMEDOUT, f"the callbacks did not answer: {_why(e)}", path) from e
        except httpx.TransportError as e:
            self._note(False, e)
            raise OSError(errno.EIO, f"the callbacks cannot be reached: {_why(e)}", path) from e
        self._note(True)

    def _note(self, reachable: bool, why: Exception | None = None) -> None:
        """One line when the server goes, one when it comes back."""
        if reachable and not self._reachable:
            log.warning("callbacks at %s can be reached again", self.url)
        elif self._reachable and not reachable and why is not None:
            log.warning("callbacks at %s cannot be reached: %s", self.url, _why(why))
        self._reachable = reachable


def _file(path: str) -> str:
    return "/files" + wire.encode_path(path)


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__


def _entry(line: bytes) -> object:
    """One line of a listing. What is no FileRef goes on as it is: whoever checks the listing names it and leaves it
    out."""
    found = msgspec.json.decode(line)
    if not isinstance(found, dict):
        return found
    try:
        return wire.ref_from(msgspec.convert(found, wire.Entry))
    except ValueError as e:
        log.warning("listing: %.200r: %s", line, e)
        return found


async def _collected(response: httpx.Response, limit: int | None) -> bytes:
    body = bytearray()
    async with _body(response) as chunks:
        async for chunk in chunks:
            body += chunk
            if limit is not None and len(body) > limit:
                raise OSError(errno.EFBIG, f"the answer has more than {limit} bytes")
    return bytes(body)


@contextlib.asynccontextmanager
async def _body(response: httpx.Response) -> AsyncIterator[AsyncIterator[bytes]]:
    """The body's chunks. One that is not read to its end takes its connection with it."""
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise ValueError(f"the answer is encoded ({encoding!r}), which was not asked for")
    chunks = response.aiter_raw(CHUNK)
    try:
        yield chunks
    finally:
        if not response.is_closed:
            await _end(response, chunks)


async def _end(response: httpx.Response, chunks: AsyncIterator[bytes]) -> None:
    """httpx stacks async generators, and trio warns of each that is left in the middle; an error ends them all."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
        await response.extensions["network_stream"].aclose()
        with contextlib.suppress(httpx.TransportError):
            async for _ in chunks:
                pass


async def _cut(response: httpx.Response, offset: int, size: int) -> bytes:
    """`size` bytes from `offset` of a whole content, which is read no further than that."""
    found, at = bytearray(), 0
    async with _body(response) as chunks:
        async for chunk in chunks:
            found += chunk[max(0, offset - at) : offset + size - at]
            at += len(chunk)
            if at >= offset + size:
                break
    return bytes(found)


async def _lines(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    rest = b""
    async with _body(response) as chunks:
        async for chunk in chunks:
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line.strip():
                    yield line
            if len(rest) > LINE_MAX:
                raise ValueError(f"a line of more than {LINE_MAX} bytes in a listing")
    if rest.strip():
        yield rest


class _Upload(httpx.AsyncByteStream):
    """A body of several parts: bytes, or files of which a given number of bytes goes, from their beginning.

    No async generator: httpx leaves the body in the middle when a server answers early.
    """

    def __init__(self, parts: Iterable[bytes | tuple[BinaryIO, int]]) -> None:
        self._parts = iter(parts)
        self._file: BinaryIO | None = None
        self._left = 0

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while self._file is None or self._left == 0:
            part = next(self._parts, None)
            if part is None:
                raise StopAsyncIteration
            if isinstance(part, bytes):
                return part
            self._file, self._left = part
            await trio.to_thread.run_sync(self._file.seek, 0)
        chunk = await trio.to_thread.run_sync(self._file.read, min(CHUNK, self._left))
        if not chunk:
            raise OSError(errno.EIO, f"the file ends {self._left} bytes early")
        self._left -= len(chunk)
        return chunk


def _batch(changes: Sequence[Change]) -> Iterator[bytes | tuple[BinaryIO, int]]:
    for change in changes:
        told: dict[str, Any] = {"kind": change.kind, **wire.path_fields(change.path)}
        if change.source is not None:
            told |= wire.path_fields(change.source, "source")
        size = 0 if change.file is None else change.file.seek(0, os.SEEK_END)
        told |= {"size": size, "context": msgspec.to_builtins(change.context)}
        yield wire.to_header(told).encode() + b"\n"
        if change.file is not None:
            yield change.file, size
