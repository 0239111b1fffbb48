"""A Unix socket that serves HTTP to some users of this host and to nobody else.

Two doors, one behind the other: the socket's mode (0600, or 0660 and a group) keeps strangers from connecting at
all; and the kernel's word on who connected (SO_PEERCRED) decides again, so that a mode that someone loosened lets
nobody in. Each request's `scope["state"]["peer"]` says who asks.

Hypercorn speaks HTTP over each connection; connections are ours, for it passes neither the peer nor a limit on them,
and what it fails over on one would end us all. A client that reads too slowly to take an answer within `SEND_LIMIT`
loses its connection: it would hold a task and buffers. The control API and the Docker plugin are served here; the
metrics too, where they have a port, to whoever reaches that.
"""

from __future__ import annotations

import errno
import grp
import logging
import os
import socket
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app
from starlette.applications import Starlette

from mount.address import answers, bind_private, short_path

__all__ = ["Listener", "Peer", "serve_port"]

log = logging.getLogger(__name__)

CONNECTIONS: Final = 1024  # who follows events has one as long as that
SEND_LIMIT: Final = 30.0  # seconds for a client to take what is sent to it; the kernel buffers about 200 KiB
HEADER_BYTES: Final = 32 * 1024
_ANSWER: Final = b"HTTP/1.1 "
_UNKNOWN_CODING: Final = b"HTTP/1.1 501 "
_REFUSAL: Final = b"\r\ncontent-length: 0\r\nconnection: close\r\n"  # as hypercorn has it, and the application never
SO_PEERGROUPS: Final = 59
_CREDENTIALS: Final = struct.Struct("=iII")


class Peer(NamedTuple):
    """The process at the other end, as it was when it connected (unix(7))."""

    pid: int
    uid: int
    gid: int


def peer_of(sock: trio.socket.SocketType) -> Peer:
    return Peer(*_CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)))


def groups_of(sock: trio.socket.SocketType) -> Sequence[int]:
    """The peer's additional groups, by the kernel's word too; none of them for who has more than Python can ask for."""
    try:
        return memoryview(sock.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 1024)).cast("I")
    except OSError as e:
        if e.errno != errno.ERANGE:
            raise
        return ()


class _Stream:
    """What hypercorn needs of a stream, with a deadline on sending. What hypercorn answers itself, because it is no
    request that the application could be asked, is told in the log here, and is the client's fault (400) always."""

    def __init__(self, sock: trio.socket.SocketType, name: str) -> None:
        self.socket = sock
        self._name = name
        self._stream = trio.SocketStream(sock)
        self.receive_some = self._stream.receive_some
        self.send_eof = self._stream.send_eof
        self.aclose = self._stream.aclose

    async def send_all(self, data: bytes) -> None:
        if data.startswith(_ANSWER) and _REFUSAL in data:
            data = data.replace(_UNKNOWN_CODING, b"HTTP/1.1 400 ", 1)
            log.warning("%s: no HTTP request: %d", self._name, int(data[len(_ANSWER) :][:3]))
        with trio.move_on_after(SEND_LIMIT) as limit:
            await self._stream.send_all(data)
        if limit.cancelled_caught:
            raise trio.BrokenResourceError(f"the client took nothing for {SEND_LIMIT:g} s")


class _Server(TCPServer):
    """One connection. Hypercorn lets one whose client has gone live on for as long as an idle one is kept, a minute:
    some hundred commands in that time would take all connections that there are."""

    async def _read_data(self) -> None:
        await super()._read_data()
        await self.idle_task.stop()


class _Connections:
    """Those of one application."""

    def __init__(self, app: Starlette) -> None:
        self._config = config = Config()
        config.h11_max_incomplete_size = HEADER_BYTES
        config.keep_alive_timeout = 60
        config.errorlog = None
        config.accesslog = None
        self._app: Any = wrap_app(app, config.wsgi_max_body_size, "asgi")  # type: ignore[arg-type]
        self._context = WorkerContext(None)
        self._slots = trio.CapacityLimiter(CONNECTIONS)

    async def hold(self, sock: trio.socket.SocketType, name: str, state: dict[str, Any]) -> None:
        """One connection to its end. A defect ends it, and nothing else."""
        try:
            async with self._slots:
                stream: Any = _Stream(sock, name)
                await _Server(self._app, self._config, self._context, ConnectionState(state), stream)
        except Exception:
            log.exception("%s: a connection ended by a defect", name)
        finally:
            sock.close()


async def serve_port(app: Starlette, address: str) -> None:
    """On host:port, until cancelled."""
    host, _, port = address.rpartition(":")
    connections = _Connections(app)

    async def hold(stream: trio.SocketStream) -> None:
        await connections.hold(stream.socket, address, {})

    await trio.serve_tcp(hold, int(port), host=host.strip("[]") or None)


class Listener:
    """`group`: whose members may connect beside root and our own user. Use as a context; `serve` until cancelled."""

    def __init__(self, path: Path, app: Starlette, *, group: str = "") -> None:
        self.path = path
        self._app = app
        self._gid = grp.getgrnam(group).gr_gid if group else None
        self.refused = 0
        self.on_refused: Callable[[Peer], None] = lambda peer: None

    def __enter__(self) -> Listener:
        """Bind. EADDRINUSE if someone answers there; a dead one's socket is taken away."""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            with short_path(self.path) as short:
                if answers(short):
                    raise OSError(errno.EADDRINUSE, "another mount-session daemon answers there", str(self.path))
                bind_private(self._sock, short)
                if self._gid is not None:
                    os.chown(short, -1, self._gid)
                    os.chmod(short, 0o660)
        except BaseException:
            self._sock.close()
            raise
        self._sock.listen(128)
        self._sock.setblocking(False)
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()
        self.path.unlink(missing_ok=True)

    def admits(self, peer: Peer, groups: Sequence[int]) -> bool:
        return peer.uid in (0, os.geteuid()) or (self._gid is not None and self._gid in (peer.gid, *groups))

    async def serve(self) -> None:
        connections = _Connections(self._app)
        listening = trio.socket.from_stdlib_socket(self._sock)
        async with trio.open_nursery() as nursery:
            while True:
                sock = await self._accept(listening)
                peer = peer_of(sock)
                if not self.admits(peer, groups_of(sock)):
                    self._refuse(sock, peer)
                    continue
                name = f"{self.path}: process {peer.pid} of user {peer.uid}"
                nursery.start_soon(connections.hold, sock, name, {"peer": peer})

    async def _accept(self, listening: trio.socket.SocketType) -> trio.socket.SocketType:
        while True:
            try:
                sock, _ = await listening.accept()
            except OSError as e:
                if e.errno not in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.ECONNABORTED):
                    raise
                log.error("%s: a connection could not be accepted: %s", self.path, e)
                await trio.sleep(0.1)
            else:
                return sock

    def _refuse(self, sock: trio.socket.SocketType, peer: Peer) -> None:
        sock.close()
        self.refused += 1
        log.warning("%s: refused process %d of user %d", self.path, peer.pid, peer.uid)
        self.on_refused(peer)
