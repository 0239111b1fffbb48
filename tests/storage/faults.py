"""FaultProxy: a proxy between us and an S3 server that fails as networks and servers do.

It takes one HTTP request after the other from each connection, and forwards it, or does what the first rule that
matches says. Rules are added while it runs, and each may hold for a number of requests only. `seen` has every request
that arrived, so that a test can tell that its fault was really met."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import BinaryIO, Literal, cast
from urllib.parse import urlsplit

__all__ = ["Fault", "FaultProxy", "Seen"]

Kind = Literal["reset", "reset after", "reset body", "truncate", "slow", "status", "corrupt"]
BYTE_EVERY = 0.05


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that arrived."""

    method: str
    target: str
    headers: dict[str, str]


@dataclass(slots=True)
class Fault:
    """What happens to the next `times` requests that match (None: to all until it is removed).

    reset: the connection, before the server sees the request.   reset after: it is carried out, and the answer lost.
    reset body: half of the answer's body, then a reset.         truncate: the same, then an orderly end.
    slow: a byte every 50 ms, for ever.                          status: an error answer in S3's form.
    corrupt: every byte of the answer's body is another.

    `met` counts the requests that it happened to.
    """

    kind: Kind
    method: str = ".*"
    target: str = ".*"
    times: int | None = None
    status: int = 500
    code: str = "InternalError"
    when: Callable[[Seen], bool] = field(default=lambda seen: True)
    met: int = 0

    def matches(self, seen: Seen) -> bool:
        return bool(
            self.times != 0
            and re.fullmatch(self.method, seen.method)
            and re.search(self.target, seen.target)
            and self.when(seen)
        )


class FaultProxy:
    """A proxy for `upstream` (an http:// URL); `url` is its own. A context manager.

    `page`: listings come so many keys at a time, from a server that does not check signatures. `unheeded`: a method,
    and a header of its requests that does not arrive, as on a server that does not know it. `weak`: ETags become weak,
    as those of what a proxy compresses do. `lacking`: a header that answers come without.
    `chunked`: answers to GETs come in chunks, without a length. `replaced`: what is another text in their heads.
    """

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname or "127.0.0.1", parts.port or 80)
        self.seen: list[Seen] = []
        self.page: int | None = None
        self.unheeded: tuple[str, str] | None = None
        self.weak = False
        self.lacking: str | None = None
        self.chunked = False
        self.replaced: tuple[bytes, bytes] | None = None
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._stopping = threading.Event()
        self._listener: socket.socket | None = None
        self._port = 0
        self.up()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> FaultProxy:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self.down()

    def add(self, fault: Fault) -> Fault:
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """All is well again."""
        with self._lock:
            self._faults.clear()

    def down(self) -> None:
        """From now on connections are refused; those that are there are reset."""
        listener, self._listener = self._listener, None
        if listener is not None:
            # Closing alone leaves a thread in accept(2), and with it the port open.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            connections, self._connections = self._connections, set()
        for connection in connections:
            _reset(connection)

    def up(self) -> None:
        """Accept connections, on the same port as before."""
        listener = socket.create_server(("127.0.0.1", self._port), backlog=128)
        self._port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection, connection.makefile("rb") as incoming:
                while (request := _read_request(cast(BinaryIO, incoming))) is not None:
                    if not self._answer(connection, *request):
                        return
        except (OSError, ValueError):
            return  # the other side is gone, or `down` has reset it
        finally:
            with self._lock:
                self._connections.discard(connection)

    def _answer(self, connection: socket.socket, seen: Seen, raw: bytes) -> bool:
        """Answer one request; whether the connection goes on."""
        with self._lock:
            self.seen.append(seen)
            fault = next((fault for fault in self._faults if fault.matches(seen)), None)
            if fault is not None:
                fault.met += 1
                fault.times = None if fault.times is None else fault.times - 1
        if self.page is not None and "list-type=2" in seen.target:
            raw = raw.replace(b"list-type=2", b"list-type=2&max-keys=%d" % self.page, 1)
        if self.unheeded is not None and seen.method == self.unheeded[0]:
            raw = re.sub(rb"(?im)^%s:.*\r\n" % self.unheeded[1].encode(), b"", raw, count=1)
        if fault is None:
            answer = self._forward(raw)
            connection.sendall(_in_chunks(answer) if self.chunked and seen.method == "GET" else answer)
            return True
        if fault.kind == "status":
            body = b"" if seen.method == "HEAD" else f"<Error><Code>{fault.code}</Code></Error>".encode()
            head = f"HTTP/1.1 {fault.status} Fault\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            return True
        if fault.kind == "reset":
            _reset(connection)
            return False
        self._spoil(connection, fault.kind, self._forward(raw))
        return False

    def _spoil(self, connection: socket.socket, kind: Kind, answer: bytes) -> None:
        head, _, body = answer.partition(b"\r\n\r\n")
        head += b"\r\n\r\n"
        if kind == "reset after":
            _reset(connection)
        elif kind in ("reset body", "truncate"):
            connection.sendall(head + body[: len(body) // 2])
            if kind == "reset body":
                _reset(connection)
        elif kind == "corrupt":
            connection.sendall(head + bytes(byte ^ 1 for byte in body))
        else:
            for byte in answer:
                connection.sendall(bytes([byte]))
                if self._stopping.wait(BYTE_EVERY):
                    return

    def _forward(self, raw: bytes) -> bytes:
        """The server's whole answer; it closes the connection after it, because we ask it to. Ours is kept alive."""
        with socket.create_connection(self._upstream, timeout=60) as server:
            server.sendall(raw)
            pieces: list[bytes] = []
            while piece := server.recv(1 << 20):
                pieces.append(piece)
        head, separator, body = b"".join(pieces).partition(b"\r\n\r\n")
        if b"\r\ncontent-length:" in head.lower():
            head = re.sub(rb"(?i)\r\nconnection: close", b"", head)
        if self.weak:
            head = re.sub(rb'(?i)\r\netag: "', b'\r\nETag: W/"', head)
        if self.lacking is not None:
            head = re.sub(rb"(?im)^%s:.*\r\n" % self.lacking.encode(), b"", head + separator, count=1)[
                : -len(separator)
            ]
        if self.replaced is not None:
            head = head.replace(*self.replaced)
        return head + separator + body


def _in_chunks(answer: bytes) -> bytes:
    head, _, body = answer.partition(b"\r\n\r\n")
    head = re.sub(rb"(?i)\r\ncontent-length: \d+", b"", head) + b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    pieces = [body[at : at + 50] for at in range(0, len(body), 50)]
    return head + b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def _read_request(incoming: BinaryIO) -> tuple[Seen, bytes] | None:
    """The next request, and its bytes as they are to be forwarded; None at the connection's end."""
    start = incoming.readline()
    if not start.strip():
        return None
    lines: list[bytes] = []
    while (line := incoming.readline()) not in (b"\r\n", b"\n", b""):
        lines.append(line)
    split = [line.decode("latin-1").partition(":") for line in lines]
    headers = {name.lower().strip(): value.strip() for name, _, value in split}
    body = incoming.read(int(headers.get("content-length", "0")))
    kept = [line for line in lines if not line.lower().startswith(b"connection:")]
    method, target, _ = start.decode("latin-1").split(" ", 2)
    raw = start + b"".join(kept) + b"Connection: close\r\n\r\n" + body
    return Seen(method, target, headers), raw


def _reset(connection: socket.socket) -> None:
    """Close with RST."""
    with contextlib.suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RD)
    connection.close()
