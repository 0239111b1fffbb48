"""Plain: ranged reads over sockets of our own, where bytes come as they are: http, and no proxy.

The bytes go from the socket into their buffer, in the thread that asked; obstore's are gathered and copied first (1 GiB
on the JuiceFS gateway: 1.4 s of CPU here, 2.0 to 4.8 by obstore). Over TLS obstore is better, which decrypts without
the interpreter's lock; but `rclone serve s3` answers a ranged read with the right bytes and status 200, which obstore
refuses, and that comes through here too. `Bucket` calls this, and its rules hold: one request has one deadline, from
connecting to the last byte, or to the end of each piece of a range that is read in pieces."""

from __future__ import annotations

import contextlib
import http.client
import io
import select
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, cast
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from vfs.storage.buffers import Buffers
from vfs.storage.download import Blob, Found, Span, nothing_there, same, version_of
from vfs.storage.endpoint import Clients, Endpoint
from vfs.storage.failures import Unavailable, explain_answer

__all__ = ["Incoming", "Plain", "is_plain"]

SIGNATURE_LIVES = 900
HEAD_MAX = 64 << 10
CONTENT = (200, 206)  # the statuses of answers that have it
METADATA = "x-amz-meta-"


def is_plain(url: str) -> bool:
    """Whether the server at `url` is reached by http, and no proxy that the environment names is on the way."""
    parts = urlsplit(url)
    proxied = not getproxies().keys().isdisjoint({"http", "all"}) and not proxy_bypass(parts.netloc)
    return parts.scheme == "http" and not proxied


class _Said:
    """What came of an answer, as http.client wants to be given it: its own reading has no deadline."""

    def __init__(self, said: bytes) -> None:
        self._said = said

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._said)


class Plain:
    def __init__(self, endpoint: Endpoint, buffers: Buffers) -> None:
        self._endpoint = endpoint
        self._buffers = buffers
        self._idle = _Idle()

    def close(self) -> None:
        """Of idle connections; those in use are closed with their answers."""
        self._idle.close()

    def get(self, clients: Clients, *, target: Mapping[str, Any], span: Span, version: str | None) -> Blob:
        """The bytes `span` of the object that `target` names. Blocks."""
        incoming = self.begin(clients, target=target, span=span, version=version)
        if incoming is None:
            return nothing_there(clients, target["Key"], version)
        return Blob.of(incoming.found, incoming.read(incoming.left))

    def begin(self, clients: Clients, *, target: Mapping[str, Any], span: Span, version: str | None) -> Incoming | None:
        """As `get`, to be read piece by piece; None where the object ends before the span."""
        key: str = target["Key"]
        url = clients.boto.generate_presigned_url("get_object", Params=dict(target), ExpiresIn=SIGNATURE_LIVES)
        incoming = Incoming(key, self._endpoint.request_timeout, self._buffers, self._idle)
        try:
            with _unavailable(key):
                incoming.ask(self._connected(url), _request(url, span, target))
            answer = incoming.answer
            if answer.status == 416:
                incoming.explanation()
                return None
            if answer.status not in CONTENT:
                raise explain_answer(answer.status, incoming.explanation().decode(errors="replace"), key)
            incoming.found = _found(answer)
            same(key, version, incoming.found.version)
            if incoming.left != min(span[1], incoming.found.size) - span[0]:
                raise Unavailable(key, f"{incoming.left} of {incoming.found.size} bytes come instead of {span}")
        except BaseException:
            incoming.close()
            raise
        return incoming

    def _connected(self, url: str) -> socket.socket:
        if (idle := self._idle.take()) is not None:
            return idle
        parts, seconds = urlsplit(url), self._endpoint.connect_timeout
        is_tls = parts.scheme == "https"
        connection = socket.create_connection((parts.hostname or "", parts.port or (443 if is_tls else 80)), seconds)
        if is_tls:
            context = ssl.create_default_context()
            if self._endpoint.ca_file is not None:
                context.load_verify_locations(self._endpoint.ca_file)
            connection = context.wrap_socket(connection, server_hostname=parts.hostname)
        return connection


class _Idle:
    """Connections that wait for their next request, taken and kept by any thread."""

    def __init__(self) -> None:
        self._connections: deque[socket.socket] = deque()  # its methods are atomic
        self._is_over = False

    def take(self) -> socket.socket | None:
        with contextlib.suppress(IndexError):
            while not _is_silent(connection := self._connections.pop()):
                connection.close()
            return connection
        return None

    def keep(self, connection: socket.socket) -> None:
        """Also after `close`, by a thread that nobody waited for: then it is closed."""
        self._connections.append(connection)
        if self._is_over:
            self.close()

    def close(self) -> None:
        self._is_over = True
        with contextlib.suppress(IndexError):
            while True:
                self._connections.pop().close()


class Incoming:
    """A range on its way: `found` is the object's, `left` bytes are still to be read, within `seconds` of the request,
    or of the call of `piece`. At its end the connection goes to the `idle`; after a failure, or where it is not read to
    its end, it is closed."""

    answer: http.client.HTTPResponse
    found: Found

    def __init__(self, key: str, seconds: float, buffers: Buffers, idle: _Idle) -> None:
        self.left = 0
        self._key = key
        self._seconds = seconds
        self._deadline = time.monotonic() + seconds
        self._buffers = buffers
        self._idle = idle
        self._connection: socket.socket | None = None
        self._is_reading = False
        self._head = self._rest = b""

    def ask(self, connection: socket.socket, request: bytes) -> None:
        """Send the request and read the head of its answer."""
        self._connection = connection
        _limit(connection, self._deadline)
        connection.sendall(request)
        self._head, self._rest = _head(connection, self._deadline)
        self.answer = _parsed(self._head)
        if self.answer.length is None and self.answer.status in CONTENT:
            raise http.client.HTTPException("an answer without a length")
        self.left = self.answer.length or 0

    def explanation(self) -> bytes:
        """The body of an answer that has no content, which may come in chunks, or end with the connection. Blocks."""
        if self.answer.length is not None or self._connection is None:
            return bytes(self.read(HEAD_MAX))
        with _unavailable(self._key):
            while len(self._rest) < HEAD_MAX and not (self.answer.chunked and self._rest.endswith(b"0\r\n\r\n")):
                _limit(self._connection, self._deadline)
                if not (piece := self._connection.recv(HEAD_MAX)):
                    break
                self._rest += piece
            self.close()
            return _parsed(self._head + self._rest).read(HEAD_MAX)

    def piece(self, size: int) -> memoryview:
        """As `read`, with time of its own."""
        self._deadline = time.monotonic() + self._seconds
        return self.read(size)

    def read(self, size: int) -> memoryview:
        """The next `size` bytes, or those that are left. Blocks."""
        body = self._buffers.take(min(size, self.left))
        self._is_reading = True
        try:
            with _unavailable(self._key):
                self._fill(body)
        except BaseException:
            self._is_reading = False
            self.close()
            raise
        self._is_reading = False
        self.left -= len(body)
        if not self.left:
            self._over()
        return body.toreadonly()

    def _fill(self, body: memoryview) -> None:
        at = min(len(self._rest), len(body))
        body[:at], self._rest = self._rest[:at], self._rest[at:]
        while at < len(body):
            if self._connection is None:
                raise http.client.IncompleteRead(b"", len(body) - at)
            at += _receive(self._connection, body[at:], self._deadline)

    def _over(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and self.answer.will_close:
            connection.close()
        elif connection is not None:
            self._idle.keep(connection)

    def __del__(self) -> None:
        self.close()  # begun by a thread that nobody waited for any more

    def close(self) -> None:
        """Nothing more is read. A thread that is just reading fails, and closes the connection itself: by then its
        number could be another's."""
        if self._connection is not None and self._is_reading:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
        elif self._connection is not None:
            self._connection.close()
            self._connection = None


@contextlib.contextmanager
def _unavailable(key: str) -> Iterator[None]:
    """What goes wrong on the way, as the failure that is tried again."""
    try:
        yield
    except BlockingIOError as e:  # of a socket's own time limit
        raise Unavailable(key, "TimeoutError: no whole answer in time") from e
    except (OSError, http.client.HTTPException) as e:
        raise Unavailable(key, f"{type(e).__name__} {e}") from e


def _request(url: str, span: Span, target: Mapping[str, Any]) -> bytes:
    parts = urlsplit(url)
    wanted = f"bytes={span[0]}-{span[1] - 1}"
    lines = [f"GET {parts.path}?{parts.query} HTTP/1.1", f"Host: {parts.netloc}", f"Range: {wanted}"]
    if "RequestPayer" in target:
        lines.append("x-amz-request-payer: requester")
    return "\r\n".join([*lines, "", ""]).encode()


def _found(answer: http.client.HTTPResponse) -> Found:
    size = int(answer.headers.get("Content-Range", "").rpartition("/")[2] or -1)
    metadata = {n[len(METADATA) :]: v for n, v in answer.headers.items() if n.lower().startswith(METADATA)}
    metadata["Content-Type"] = answer.headers.get("Content-Type", "")
    modified = answer.headers.get("Last-Modified")
    when = datetime.now(UTC) if modified is None else parsedate_to_datetime(modified).astimezone(UTC)
    return Found(size, version_of(answer.headers["ETag"]), when, metadata)


def _is_silent(connection: socket.socket) -> bool:
    """Whether nothing has come on an idle connection: what comes is the server's end of it, long before our use."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return not poll.poll(0)


def _limit(connection: socket.socket, deadline: float) -> None:
    """The next call ends by `deadline`. The kernel's own limit leaves a socket blocking, as MSG_WAITALL needs it."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("no whole answer in time")
    if isinstance(connection, ssl.SSLSocket):
        connection.settimeout(left)
    else:
        connection.settimeout(None)
        limit = struct.pack("@ll", int(left), max(1, int(left % 1 * 1e6)))  # nothing at all would be no limit
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def _receive(connection: socket.socket, view: memoryview, deadline: float) -> int:
    """As much as comes, in one call where the kernel can: after each the interpreter's lock is waited for."""
    _limit(connection, deadline)
    got = connection.recv_into(view, 0, 0 if isinstance(connection, ssl.SSLSocket) else socket.MSG_WAITALL)
    if got == 0:
        raise http.client.IncompleteRead(b"", len(view))
    return got


def _parsed(said: bytes) -> http.client.HTTPResponse:
    answer = http.client.HTTPResponse(cast(socket.socket, _Said(said)))
    answer.begin()
    return answer


def _head(connection: socket.socket, deadline: float) -> tuple[bytes, bytes]:
    """An answer up to its empty line, and what came of its body with it."""
    said = b""
    while b"\r\n\r\n" not in said:
        _limit(connection, deadline)
        piece = connection.recv(HEAD_MAX)
        if not piece or len(said) > HEAD_MAX:
            raise http.client.BadStatusLine(repr(said[:100]))
        said += piece
    head, _, rest = said.partition(b"\r\n\r\n")
    return head + b"\r\n\r\n", rest
