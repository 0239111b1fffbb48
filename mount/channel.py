"""A channel: requests and replies in both directions over one SOCK_SEQPACKET socket, descriptors included.

Supervisor and worker talk through one; so does a new supervisor that takes a worker over. Each side may call the other
at any time, and calls overlap. One `serve` task reads; a call made after the peer is gone raises BrokenChannel at once,
one that is under way when it goes raises BrokenChannel too. What is too long for a message is an error of who sends it;
a peer that sends what is none is not listened to any more.
"""

from __future__ import annotations

import array
import contextlib
import errno
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
import trio

from mount.config import Failure

log = logging.getLogger(__name__)

MAX_MESSAGE: Final = 128 * 1024
MAX_DESCRIPTORS: Final = 8
_GONE: Final = (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF)  # EBADF: closed at this end meanwhile


class BrokenChannel(ConnectionError):
    """The process at the other end is gone, or has closed the channel."""


class Call(msgspec.Struct, tag="call", frozen=True):
    id: int
    name: str
    arguments: dict[str, Any]


class Reply(msgspec.Struct, tag="reply", frozen=True):
    id: int
    result: Any = None
    failure: Failure | None = None


_decoder: msgspec.msgpack.Decoder[Call | Reply] = msgspec.msgpack.Decoder(Call | Reply)


class Answer:
    """What a handler gives back: a plain value, descriptors that stay its own, and what is done once that is sent."""

    def __init__(
        self, result: Any = None, descriptors: tuple[int, ...] = (), then: Callable[[], None] | None = None
    ) -> None:
        self.result = result
        self.descriptors = descriptors
        self.then = then


Handler = Callable[[str, dict[str, Any], list[int]], Awaitable[Answer]]


def pack_descriptors(descriptors: tuple[int, ...]) -> list[tuple[int, int, array.array[int]]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []


def unpack_descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    fds = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    for fd in fds:
        os.set_inheritable(fd, False)
    return list(fds)


def last_words(error: BaseException) -> bytes:
    """The message by which a process that cannot go on tells why: a call of `failed`, which nobody will answer."""
    return msgspec.msgpack.encode(Call(0, "failed", {"failure": msgspec.to_builtins(Failure.of(error))}))


def packed(message: msgspec.Struct) -> bytes:
    """As it goes through a socket; OSError where it is too long for that."""
    encoded = msgspec.msgpack.encode(message)
    if len(encoded) > MAX_MESSAGE:
        raise OSError(errno.EMSGSIZE, f"{len(encoded)} bytes are too many for one message; {MAX_MESSAGE} are allowed")
    return encoded


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class Channel:
    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = trio.socket.from_stdlib_socket(sock)
        credentials = struct.Struct("=3i")  # pid, uid, gid: unix(7), SO_PEERCRED
        option = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
        self.peer: int = credentials.unpack(option)[0]
        """The process that made the other end."""
        self._sending = trio.Lock()
        self._next_id = 1
        self._calls: dict[int, trio.MemorySendChannel[tuple[Reply, list[int]]]] = {}
        self.closed = trio.Event()
        self.garbled = False
        """Has the peer sent what is no message?"""

    async def call(
        self, name: str, arguments: dict[str, Any] | None = None, descriptors: tuple[int, ...] = ()
    ) -> tuple[Any, list[int]]:
        """The peer's result and the descriptors that came with it; its exception is raised here."""
        if self.closed.is_set():
            raise BrokenChannel("the process at the other end is gone")
        call_id, self._next_id = self._next_id, self._next_id + 1
        send, receive = trio.open_memory_channel[tuple[Reply, list[int]]](1)
        self._calls[call_id] = send
        try:
            await self._send(Call(call_id, name, arguments or {}), descriptors)
            try:
                reply, fds = await receive.receive()
            except trio.EndOfChannel:
                raise BrokenChannel(f"the process at the other end is gone; it had been asked to {name}") from None
        finally:
            self._calls.pop(call_id, None)
        if reply.failure is not None:
            raise reply.failure.error()
        return reply.result, fds

    async def _send(self, message: Call | Reply, descriptors: tuple[int, ...]) -> None:
        encoded = packed(message)
        async with self._sending:
            try:
                await self._sock.sendmsg([encoded], pack_descriptors(descriptors))
            except (OSError, trio.ClosedResourceError) as error:
                if isinstance(error, OSError) and error.errno not in _GONE:
                    raise
                raise BrokenChannel("the process at the other end is gone") from error

    async def serve(self, handler: Handler) -> None:
        """Read until the peer is gone; each of its calls is handled in a task of its own."""
        try:
            async with trio.open_nursery() as nursery:
                while message := await self._receive():
                    decoded, fds = message
                    if isinstance(decoded, Call):
                        nursery.start_soon(self._handle, decoded, fds, handler)
                    elif waiting := self._calls.pop(decoded.id, None):
                        waiting.send_nowait((decoded, fds))
                nursery.cancel_scope.cancel()
        finally:
            self.close()

    async def _receive(self) -> tuple[Call | Reply, list[int]] | None:
        space = socket.CMSG_SPACE(MAX_DESCRIPTORS * array.array("i").itemsize)
        try:
            encoded, ancillary, flags, _ = await self._sock.recvmsg(MAX_MESSAGE, space)
        except (OSError, trio.ClosedResourceError) as error:
            if isinstance(error, OSError) and error.errno not in _GONE:
                raise
            return None
        if not encoded:
            return None
        descriptors = unpack_descriptors(ancillary)
        try:
            if flags & socket.MSG_TRUNC:
                raise ValueError(f"longer than {MAX_MESSAGE} bytes")
            return _decoder.decode(encoded), descriptors
        except Exception as error:  # there are many ways to be no message
            log.error("what the other end sent is no message: %s", error)
            self.garbled = True
            for fd in descriptors:
                os.close(fd)
            return None

    async def _handle(self, call: Call, fds: list[int], handler: Handler) -> None:
        try:
            answer = await handler(call.name, call.arguments, fds)
        except Exception as error:
            answer, reply = Answer(), Reply(call.id, failure=Failure.of(error))
        else:
            reply = Reply(call.id, answer.result)
        with contextlib.suppress(BrokenChannel):  # who asked is gone; `serve` ends by itself
            try:
                await self._send(reply, answer.descriptors)
            except BrokenChannel:
                raise
            except Exception as error:
                log.error("the answer to %s cannot be sent: %s", call.name, error)
                await self._send(Reply(call.id, failure=Failure.of(error)), ())
        if answer.then is not None:
            answer.then()

    def close(self) -> None:
        self._sock.close()
        self.closed.set()
        for waiting in self._calls.values():
            waiting.close()
        self._calls.clear()
