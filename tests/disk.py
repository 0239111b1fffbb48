"""A disk so small that a test can fill it. Only root can mount one."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import unavailable
from tests.mounted import detach


@contextmanager
def small_tmpfs(path: Path, size: int) -> Iterator[Path]:
    """A tmpfs of `size` bytes, mounted on `path`."""
    _needs_root()
    path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)
    try:
        yield path
    finally:
        detach(path)


@contextmanager
def small_ext4(path: Path, size: int, *, inodes: int | None = None) -> Iterator[Path]:
    """An ext4 of `size` bytes, with room for about `inodes` files, in a file beside `path`, mounted on `path`."""
    _needs_root()
    path.mkdir(parents=True)
    blocks = path.with_name(path.name + ".ext4")
    with blocks.open("wb") as file:
        file.truncate(size)
    limit = [] if inodes is None else ["-N", str(inodes)]
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", *limit, blocks], check=True)
    subprocess.run(["mount", "-o", "loop", blocks, path], check=True)
    try:
        yield path
    finally:
        detach(path)


def _needs_root() -> None:
    if os.geteuid() != 0:
        unavailable("only root can mount a small disk")


def fill(directory: Path) -> Path:
    """Take all that is left of the disk; the result is the file that has it."""
    filler = directory / "filler"
    fd = os.open(filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for size in (1 << 20, 4096, 1):
            while True:
                try:
                    os.write(fd, b"x" * size)
                except OSError as e:
                    if e.errno != errno.ENOSPC:
                        raise
                    break
    finally:
        os.close(fd)
    return filler
