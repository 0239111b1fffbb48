"""A session and a directory of this machine, side by side: the same asked of both, and compared."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis.stateful import RuleBasedStateMachine, invariant

from tests.vfs.opened import Opened
from tests.vfs.snapshot import check
from vfs.inode import Inode
from vfs.rules import Changes
from vfs.session import KERNEL


class Place(NamedTuple):
    """One directory on both sides: an open descriptor, and an inode number."""

    fd: int
    ino: int


class Handle(NamedTuple):
    """One open file on both sides."""

    fd: int
    ino: int


class Peers(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.umask = os.umask(0)
        self.home = Path(tempfile.mkdtemp(prefix="model-", dir="/dev/shm"))  # no waiting for a disk
        self.peer = self.home / "peer"
        self.peer.mkdir(mode=0o755)
        self.opened = Opened("model", self.home / "state")
        self.session = self.opened.session
        self.crashes = 0
        self.explicit: set[int] = set()
        self.unread: set[int] = set()  # files whose bytes may have changed since they were compared
        self.handles: list[Handle] = []

    def teardown(self) -> None:
        self.opened.close()
        for handle in self.handles:
            os.close(handle.fd)
        shutil.rmtree(self.home)
        os.umask(self.umask)

    # ---- the same on both sides

    def both(self, theirs: Callable[[], Any], ours: Callable[[], Any]) -> tuple[Any, Any] | None:
        """What each of them answers, or None if both refuse for the same reason."""
        refused = None
        try:
            expected = theirs()
        except OSError as e:
            refused = e
        try:
            answer = ours()
        except OSError as e:
            assert refused is not None, f"refused: {e!r}"
            assert e.errno == refused.errno, f"{e!r}, not {refused!r}"
            return None
        assert refused is None, f"not refused: {refused!r}"
        return expected, answer

    @contextmanager
    def place(self, where: int) -> Iterator[Place]:
        """One of the directories that there are."""
        paths = sorted(os.path.relpath(path, os.fsencode(self.peer)) for path, _, _ in os.walk(os.fsencode(self.peer)))
        path = paths[where % len(paths)]
        fd = os.open(self.peer / os.fsdecode(path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield Place(fd, self.session.namespace.walk(b"" if path == b"." else path).ino)
        finally:
            os.close(fd)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.opened.call(function, *arguments)

    def setattr(self, ino: int, **changes: Any) -> Inode:
        return self.opened.run(self.session.setattr, ino, Changes(**changes), KERNEL)

    @contextmanager
    def entry(self, where: int, name: bytes) -> Iterator[tuple[bytes, int, int] | None]:
        """A path for this machine, an inode number, a file type; None where there is no such entry."""
        with self.place(where) as place:
            try:
                kind = stat.S_IFMT(os.stat(name, dir_fd=place.fd, follow_symlinks=False).st_mode)
            except OSError:
                yield None
                return
            yield b"/proc/self/fd/%d/" % place.fd + name, self.call(self.session.lookup, place.ino, name).ino, kind

    def open_again(self) -> None:
        state = f"state{self.crashes}" if self.crashes else "state"
        nameless = {handle for handle in self.handles if not os.fstat(handle.fd).st_nlink}
        for handle in nameless:  # nobody can have a file open without a name when a session begins
            os.close(handle.fd)
        self.handles = [handle for handle in self.handles if handle not in nameless]
        self.opened = Opened("model", self.home / state)
        self.session = self.opened.session
        self.unread.update(self.session.namespace.inodes)
        for handle in self.handles:
            self.opened.run(self.session.open_file, handle.ino, os.O_RDWR, KERNEL)

    def walk(self) -> Iterator[tuple[bytes, int]]:
        """Each path on this machine, with our inode number for it."""
        root = os.fsencode(self.peer)
        yield root, 1
        for directory, directories, files in os.walk(root):
            for name in (*directories, *files):
                path = os.path.join(directory, name)
                yield path, self.session.namespace.walk(os.path.relpath(path, root)).ino

    @invariant()
    def the_trees_are_the_same(self) -> None:
        check(self.session.namespace)
        numbers: dict[int, int] = {}
        for path, ino in self.walk():
            status = os.stat(path, follow_symlinks=False)
            inode = self.session.getattr(ino)
            assert numbers.setdefault(status.st_ino, ino) == ino, "two names of one file are of two"
            assert (inode.mode, inode.nlink) == (status.st_mode, status.st_nlink), path
            assert (inode.uid, inode.gid) == (status.st_uid, status.st_gid), path
            if inode.is_dir:
                assert {entry.name for entry in self.session.readdir(ino, 0)} == set(os.listdir(path))
            else:
                assert inode.size == status.st_size, path
            assert self.if_explicit(inode.mtime_ns) == self.if_explicit(status.st_mtime_ns), path
            if stat.S_ISLNK(status.st_mode):
                assert self.session.readlink(ino) == os.readlink(path)
            else:
                theirs = {name: os.getxattr(path, name) for name in os.listxattr(path)}
                ours = {os.fsdecode(name): self.session.getxattr(ino, name) for name in self.session.listxattr(ino)}
                assert ours == theirs, path
            if ino in self.unread and stat.S_ISREG(status.st_mode):
                self.contents_are_the_same(path, ino)
        self.unread.clear()
        assert len(numbers) == len(set(numbers.values())), "one file has become two"

    def if_explicit(self, time: int) -> int | None:
        return time if time in self.explicit else None

    def contents_are_the_same(self, path: bytes, ino: int) -> None:
        with open(path, "rb") as file:
            for offset in (0, (1 << 33) - 10):
                file.seek(offset)
                assert self.opened.run(self.session.read, ino, offset, 100_000) == file.read(100_000), path
