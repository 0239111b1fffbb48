"""Beneath: files below a directory that others may change at any time, such as one that a container has mounted.

A path is walked one directory after the other, each opened in the one before it, and no symlink is followed: whatever
others make of the way meanwhile, what is read, written or deleted here lies below the root."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from vfs.errors import error
from vfs.storage.keys import misfit

__all__ = ["Beneath", "Place"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a FIFO would wait for someone to write to it
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class Place(NamedTuple):
    """A name in a directory that is held open."""

    directory: int
    name: str

    def status(self) -> os.stat_result:
        return os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)

    def open(self) -> BinaryIO:
        """The regular file that is here."""
        descriptor = os.open(self.name, _FILE, dir_fd=self.directory)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return open(descriptor, "rb")
        os.close(descriptor)
        raise error(errno.ENOENT, self.name, "not a regular file")

    def create(self) -> BinaryIO:
        """A new file here, to be written."""
        return open(os.open(self.name, _NEW, 0o666, dir_fd=self.directory), "wb")

    def take(self, other: Place) -> None:
        """Replace what is here by what is at `other`, in one step."""
        os.rename(other.name, self.name, src_dir_fd=other.directory, dst_dir_fd=self.directory)

    def link(self, other: Place) -> None:
        """Give what is at `other` this name too. FileExistsError where something is here."""
        os.link(other.name, self.name, src_dir_fd=other.directory, dst_dir_fd=self.directory, follow_symlinks=False)

    def unlink(self) -> None:
        """Delete what is here, if anything is."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.name, dir_fd=self.directory)


class Beneath:
    def __init__(self, root: Path) -> None:
        self.root = root

    @contextlib.contextmanager
    def at(self, path: str, *, make: bool = False) -> Iterator[Place]:
        """The place that `path` names, with the directories on its way made where they are missing if `make`. EXDEV
        where one of them is a symlink."""
        if (why := misfit(path)) is not None:
            raise error(errno.EINVAL, path, f"the path {why}")
        *way, name = path.split("/")
        if make:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory = os.open(self.root, _DIRECTORY)
        try:
            for step in way:
                below = _step(directory, step, path, make)
                os.close(directory)
                directory = below
            yield Place(directory, name)
        finally:
            os.close(directory)

    def files(self) -> Iterator[tuple[str, os.stat_result]]:
        """All regular files and their status. Symlinks are neither files nor followed."""
        if not self.root.exists():
            return
        root = os.open(self.root, _DIRECTORY)
        try:
            for folder, _, names, directory in os.fwalk(".", dir_fd=root):
                for name in names:
                    with contextlib.suppress(FileNotFoundError):  # deleted since the directory was read
                        status = Place(directory, name).status()
                        if stat.S_ISREG(status.st_mode):
                            yield os.path.join(folder, name).removeprefix("./"), status
        finally:
            os.close(root)


def _step(directory: int, name: str, path: str, make: bool) -> int:
    if make:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=directory)
    try:
        return os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
    except NotADirectoryError:
        if stat.S_ISLNK(Place(directory, name).status().st_mode):
            raise error(errno.EXDEV, path, "a symlink may lead out of the directory") from None
        raise
