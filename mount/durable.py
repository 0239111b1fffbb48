"""Small files that survive: written aside, synced, renamed, so that there is never half of one.

Blocking: for a start, for a thread, or for a file so small that nobody waits.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["remove", "write"]


def write(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    aside = path.with_name(path.name + ".new")
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    with open(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)
    _sync_directory(path.parent)


def remove(path: Path) -> None:
    """Gone for good, or was not there."""
    path.unlink(missing_ok=True)
    _sync_directory(path.parent)


def _sync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
