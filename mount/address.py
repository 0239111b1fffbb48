"""The address of a Unix socket, and whether anyone answers there. Light: every command imports it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

__all__ = ["answers", "short_path"]


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A name for the socket that is short enough for the kernel (108 bytes), however deep `path` is."""
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{path.name}"
    finally:
        os.close(fd)


def answers(path: str) -> bool:
    """Does anyone listen there?"""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True
