"""Wire: boto3's requests, carried by trio.

botocore's own time-outs are for each read of a socket: a server that sends a byte now and then holds a thread for
ever. So boto3 builds, signs and parses, in a thread, and its `before-send` hook gives the request to an httpx client
in trio's thread, where one deadline bounds it from the first byte to the last."""

from __future__ import annotations

import io
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import trio
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.compat import HTTPHeaders
from botocore.exceptions import HTTPClientError, ReadTimeoutError

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

    from vfs.storage.endpoint import Endpoint

__all__ = ["Wire"]

# TLS encrypts in trio's thread: 256 KiB at a time keeps it from standing still for more than a fraction of a
# millisecond.
PIECE = 256 << 10


class Wire:
    """One httpx client; it belongs to the trio run that made it."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._timeout = endpoint.request_timeout
        verify: ssl.SSLContext | bool = True
        if endpoint.ca_file is not None:
            verify = ssl.create_default_context()
            verify.load_verify_locations(endpoint.ca_file)
        self._client = httpx.AsyncClient(
            verify=verify,
            headers={"Accept-Encoding": "identity"},  # what a proxy compresses has another ETag
            timeout=httpx.Timeout(endpoint.request_timeout, connect=endpoint.connect_timeout, pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )

    def carry(self, boto: S3Client) -> None:
        """Have `boto` send through here; its calls must then be made in threads that trio started."""
        # botocore's stubs have no hook that answers; its endpoint.py says "before-send" may.
        hook: Callable[..., Any] = self._before_send
        boto.meta.events.register_first("before-send.s3", hook)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def send(self, method: str, url: str, headers: dict[str, str], body: bytes = b"") -> httpx.Response:
        """The whole answer, whatever its status. Raises botocore's HTTPClientError where there is none in time.

        A write, once begun, is not cancelled: it could still arrive, after a later one of the same object.
        """
        request = self._client.build_request(method, url, headers=headers)
        request.stream = _Pieces(body)
        try:
            with trio.fail_after(self._timeout) as scope:
                scope.shield = method not in ("GET", "HEAD")
                return await self._client.send(request)
        except (trio.TooSlowError, httpx.ReadTimeout, httpx.WriteTimeout) as e:
            raise ReadTimeoutError(endpoint_url=url.partition("?")[0], error=e) from e
        except (httpx.HTTPError, httpx.StreamError) as e:
            raise HTTPClientError(error=f"{type(e).__name__} {e}") from e

    def _before_send(self, request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        body = request.body
        content = b"" if body is None else body.read() if hasattr(body, "read") else body
        headers = {name: _text(value) for name, value in request.headers.items()}
        headers["Content-Length"] = str(len(content))
        headers.pop("Transfer-Encoding", None)
        answer = trio.from_thread.run(self.send, request.method, request.url, headers, _bytes(content))
        found = HTTPHeaders()
        for name, value in answer.headers.items():
            found[name] = value
        return AWSResponse(request.url, answer.status_code, found, _Body(answer.content))


class _Body(io.BytesIO):
    """An answer's body as botocore reads it from urllib3."""

    def stream(self, _amount: int = 0, decode_content: bool | None = None) -> Iterator[bytes]:
        yield self.read()


class _Pieces(httpx.AsyncByteStream):
    """A body in pieces. No generator: one that a failed request leaves unfinished, someone would have to close."""

    def __init__(self, body: bytes) -> None:
        self._left = memoryview(body)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        piece, self._left = bytes(self._left[:PIECE]), self._left[PIECE:]
        return piece


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _bytes(content: str | bytes | bytearray) -> bytes:
    return content.encode() if isinstance(content, str) else bytes(content)
