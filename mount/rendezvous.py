"""The rendezvous: the socket `worker.sock` in a session's state directory, where a new supervisor finds the worker.

Unix socket addresses end at 108 bytes and state directories do not, so it is bound and connected to by way of
/proc/self/fd. Whoever can connect can take the mount over: the socket has mode 0600, in a directory of mode 0700.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import trio

from mount.address import bind_private, short_path
from mount.channel import Answer, Channel, Handler

NAME: Final = "worker.sock"


class Rendezvous:
    """The worker's side: a socket that listens from `bind` to `close`, or for as long as the block lasts."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def bind(self) -> None:
        """Whatever is there is a dead worker's: the session's lock is ours. The socket is closed if that fails."""
        try:
            with short_path(self._directory / NAME) as path:
                bind_private(self.sock, path)
            self.sock.listen(8)
        except BaseException:
            self.sock.close()
            raise

    def close(self) -> None:
        (self._directory / NAME).unlink(missing_ok=True)
        self.sock.close()

    def __enter__(self) -> Rendezvous:
        self.bind()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def listen(self, handler: Handler, adopted: Callable[[Channel], None]) -> None:
        """Serve everyone who connects. A peer that calls `adopt` becomes the supervisor: `adopted` is given its
        channel.
        """
        self.sock.setblocking(False)
        listener = trio.socket.from_stdlib_socket(self.sock)
        async with trio.open_nursery() as nursery:
            while True:
                peer, _ = await listener.accept()
                stdlib = socket.socket(fileno=peer.detach())
                nursery.start_soon(_attend, Channel(stdlib), handler, adopted)


async def _attend(channel: Channel, handler: Handler, adopted: Callable[[Channel], None]) -> None:
    async def handle(name: str, arguments: dict[str, Any], descriptors: list[int]) -> Answer:
        if name == "adopt":
            adopted(channel)
            return Answer()
        return await handler(name, arguments, descriptors)

    await channel.serve(handle)


def connect(directory: Path) -> socket.socket | None:
    """A connection to the live worker of the session with this state directory; None where there is none."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with short_path(directory / NAME) as path:
            sock.connect(path)
    except OSError as error:
        sock.close()
        if error.errno in (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR):
            return None
        raise
    return sock
