"""A file of the state directory whose room is taken once and kept: it can be written when the disk is full.

A worker must be able to take over from one that died also then. Made by the first worker of a session; `mount.inflight`
and `mount.suspicion` keep their notes in such files.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["open_reserved"]


def open_reserved(path: Path, size: int, *, cleared: bool) -> int:
    """A descriptor of the file, `size` bytes of which have their blocks. `cleared`: what it said counts no more."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)
        if cleared:
            os.pwrite(fd, bytes(size), 0)  # truncating would give the room back
    except OSError as e:
        os.close(fd)
        e.filename = os.fspath(path)
        raise
    return fd
