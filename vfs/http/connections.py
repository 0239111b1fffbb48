"""Connections to one server: each kept open, each used by one request at a time.

Every connection is a transport of its own and the free ones are a stack. httpcore's pool would look at all of its
connections for each request, and for each idle one at all others again: with 32 of them that was most of a request's
processor time, in the thread that also answers the kernel (1.2 ms against 0.6 ms for a write of 4 KiB).
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Mapping
from urllib.parse import SplitResult, unquote, urlsplit

import httpx
import trio

__all__ = ["Connections"]

CONNECTIONS = 32


class Connections:
    """`url` as `vfs.http.client.connect` takes it; ValueError says what is wrong with it. `headers` are those of every
    request; `seconds` is how long the server may be silent."""

    def __init__(self, url: str, seconds: float, headers: Mapping[str, str]) -> None:
        self._base, self._socket = _address(url)
        self._host = urlsplit(self._base).netloc
        self._headers = {"Host": self._host, **headers}
        self._wait = {"timeout": httpx.Timeout(seconds).as_dict()}
        self._verify: ssl.SSLContext | bool = httpx.create_ssl_context() if url.startswith("https:") else False
        self._slots = trio.CapacityLimiter(CONNECTIONS)
        self._free: list[httpx.AsyncHTTPTransport] = []

    @contextlib.asynccontextmanager
    async def request(
        self, method: str, place: str, headers: Mapping[str, str], content: bytes | httpx.AsyncByteStream | None
    ) -> AsyncIterator[httpx.Response]:
        """The answer, its body unread. httpx.TransportError says why there is none."""
        request = self._request(method, self._base + place, headers, content)
        async with self._slots:
            transport = self._free.pop() if self._free else self._connection()
            try:
                response = await _sent(transport, request)
                try:
                    yield response
                finally:
                    with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                        await response.aclose()
            finally:
                self._free.append(transport)

    async def aclose(self) -> None:
        for transport in self._free:
            await transport.aclose()
        self._free.clear()

    def _connection(self) -> httpx.AsyncHTTPTransport:
        limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
        return httpx.AsyncHTTPTransport(verify=self._verify, limits=limits, uds=self._socket, trust_env=False)

    def _request(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | httpx.AsyncByteStream | None
    ) -> httpx.Request:
        told = {**self._headers, **headers}
        if not isinstance(content, httpx.AsyncByteStream):
            return httpx.Request(method, url, headers=told, content=content, extensions=self._wait)
        if "Content-Length" not in told:
            told["Transfer-Encoding"] = "chunked"
        return httpx.Request(method, url, headers=told, stream=content, extensions=self._wait)


async def _sent(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
    try:
        return await transport.handle_async_request(request)
    except (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
        if request.method != "GET":
            raise
        return await transport.handle_async_request(request)  # the server had ended a connection that was kept


def _address(url: str) -> tuple[str, str | None]:
    """The base of all URLs, and the path of a Unix socket."""
    parts = urlsplit(url)
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ValueError(f"callbacks at {_plain(parts)}: no user, query or fragment here; for a user use a token")
    if parts.scheme == "http+unix":
        socket, base = (unquote(parts.netloc), parts.path) if parts.netloc else (unquote(parts.path), "")
        if not os.path.isabs(socket):
            raise ValueError(f"callbacks at {url}: an absolute path of a socket is needed")
        return "http://localhost" + base.rstrip("/"), socket
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"callbacks at {url}: http://, https:// or http+unix:/// is needed")
    return url.rstrip("/"), None


def _plain(parts: SplitResult) -> str:
    return f"{parts.scheme}://{parts.hostname}"
