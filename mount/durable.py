"""Small files of the daemon's own that survive: written aside, synced, renamed, and read by nobody else.

Blocking: for a start, for a thread, or for a file so small that nobody waits.
"""

from __future__ import annotations

import os
from pathlib import Path

from vfs.durable import sync_directory

__all__ = ["remove", "write"]


def write(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    aside = path.with_name(path.name + ".new")
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with open(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)
    sync_directory(path.parent)


def remove(path: Path) -> None:
    """Gone for good, or was not there."""
    path.unlink(missing_ok=True)
    sync_directory(path.parent)
