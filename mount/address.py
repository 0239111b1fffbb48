"""The address of a Unix socket, and whether anyone answers there. Light: every command imports it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

__all__ = ["answers", "bind_private", "short_path"]


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name for the socket that is short enough for the kernel (108 bytes), however deep `path` is."""
    fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)  # who may not list it may pass through it
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def bind_private(sock: socket.socket, short: str) -> None:
    """A socket that this user alone can connect to, in the place of a dead one's."""
    Path(short).unlink(missing_ok=True)
    previous = os.umask(0o177)
    try:
        sock.bind(short)
    finally:
        os.umask(previous)


def answers(path: str) -> bool:
    """Does anyone listen there?"""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True
