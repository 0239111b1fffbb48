"""A session and a directory of this machine do the same, operation by operation, crashes included.

MODEL_EXAMPLES and MODEL_STEPS make the search longer.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from tests.vfs.peers import Handle, Peers, Place
from tests.vfs.snapshot import abandoned
from vfs import image
from vfs.rules import RENAME_EXCHANGE, RENAME_NOREPLACE
from vfs.session import KERNEL

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "40"))
STEPS = int(os.environ.get("MODEL_STEPS", "80"))

NAMES = st.sampled_from([b"a", b"b", b"c", b"\xff\xfe\n", b"n" * 255, b"n" * 256])
WHERE = st.integers(0, 7)
MODES = st.sampled_from([0o644, 0o755, 0o2755, 0o4711, 0o6777, 0o1777, 0o2644, 0o600])
KINDS = st.sampled_from([stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK])
SIZES = st.sampled_from([0, 1, 100, 4096, 5000, 70_000, 1 << 33, 1 << 62])
OFFSETS = st.sampled_from([0, 1, 99, 4095, 4096, 10_000, 1 << 33])
XATTRS = st.sampled_from([b"trusted.a", b"trusted.\xff"])  # a tmpfs has `user.` from Linux 6.6 on only
TIMES = st.integers(1, 10**18)
IDS = st.sampled_from([0, 1000, 1001, 2**32 - 2])

libc = ctypes.CDLL(None, use_errno=True)


def renameat2(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int) -> None:
    if libc.renameat2(old_fd, old, new_fd, new, flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


class Model(Peers):
    # ---- names

    @rule(where=WHERE, name=NAMES, mode=MODES)
    def create(self, where: int, name: bytes, mode: int) -> None:
        with self.place(where) as place:
            made = self.both(
                lambda: os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode, dir_fd=place.fd),
                lambda: self.call(self.session.create, place.ino, name, mode, KERNEL),
            )
        if made is not None:
            self.handles.append(Handle(made[0], made[1].ino))

    @rule(where=WHERE, name=NAMES, truncate=st.booleans())
    def open(self, where: int, name: bytes, truncate: bool) -> None:
        flags = os.O_RDWR | (os.O_TRUNC if truncate else 0)
        with self.entry(where, name) as entry:
            if entry is not None and entry[2] == stat.S_IFREG:
                self.handles.append(Handle(os.open(entry[0], flags), entry[1]))
                self.opened.run(self.session.open_file, entry[1], flags, KERNEL)
                self.unread.add(entry[1])

    @precondition(lambda self: self.handles)
    @rule(which=WHERE)
    def close(self, which: int) -> None:
        handle = self.handles.pop(which % len(self.handles))
        os.close(handle.fd)
        self.call(self.session.release, handle.ino)

    @rule(where=WHERE, name=NAMES, mode=MODES)
    def mkdir(self, where: int, name: bytes, mode: int) -> None:
        with self.place(where) as place:
            # mkdir(2) drops set-id bits before it asks a file system
            self.both(
                lambda: os.mkdir(name, mode & 0o1777, dir_fd=place.fd),
                lambda: self.call(self.session.mkdir, place.ino, name, mode & 0o1777, KERNEL),
            )

    @rule(where=WHERE, name=NAMES, kind=KINDS, mode=MODES)
    def mknod(self, where: int, name: bytes, kind: int, mode: int) -> None:
        with self.place(where) as place:
            self.both(
                lambda: os.mknod(name, kind | mode, dir_fd=place.fd),
                lambda: self.call(self.session.mknod, place.ino, name, kind | mode, KERNEL),
            )

    @rule(where=WHERE, name=NAMES, to=st.sampled_from([b"a", b"../\xff", b"x" * 4095]))
    def symlink(self, where: int, name: bytes, to: bytes) -> None:
        with self.place(where) as place:
            self.both(
                lambda: os.symlink(to, name, dir_fd=place.fd),
                lambda: self.call(self.session.symlink, place.ino, name, to, KERNEL),
            )

    @rule(where=WHERE, name=NAMES, to=WHERE, new=NAMES)
    def link(self, where: int, name: bytes, to: int, new: bytes) -> None:
        def ours(old: Place, place: Place) -> None:
            ino = self.call(self.session.lookup, old.ino, name).ino
            self.call(self.session.link, ino, place.ino, new, KERNEL)

        with self.place(where) as old, self.place(to) as place:
            self.both(
                lambda: os.link(name, new, src_dir_fd=old.fd, dst_dir_fd=place.fd, follow_symlinks=False),
                lambda: ours(old, place),
            )

    @rule(where=WHERE, name=NAMES)
    def unlink(self, where: int, name: bytes) -> None:
        with self.place(where) as place:
            self.both(
                lambda: os.unlink(name, dir_fd=place.fd),
                lambda: self.call(self.session.unlink, place.ino, name, KERNEL),
            )

    @rule(where=WHERE, name=NAMES)
    def rmdir(self, where: int, name: bytes) -> None:
        with self.place(where) as place:
            self.both(
                lambda: os.rmdir(name, dir_fd=place.fd),
                lambda: self.call(self.session.rmdir, place.ino, name, KERNEL),
            )

    @rule(where=WHERE, name=NAMES, to=WHERE, new=NAMES, flags=st.sampled_from([0, 0, 0, 1, 2, 3]))
    def rename(self, where: int, name: bytes, to: int, new: bytes, flags: int) -> None:
        assert (RENAME_NOREPLACE, RENAME_EXCHANGE) == (1, 2)
        with self.place(where) as old, self.place(to) as place:
            self.both(
                lambda: renameat2(old.fd, name, place.fd, new, flags),
                lambda: self.call(self.session.rename, old.ino, name, place.ino, new, flags, KERNEL),
            )

    # ---- attributes

    @rule(where=WHERE, name=NAMES, mode=MODES)
    def chmod(self, where: int, name: bytes, mode: int) -> None:
        with self.entry(where, name) as entry:
            if entry is not None and entry[2] != stat.S_IFLNK:
                self.both(lambda: os.chmod(entry[0], mode), lambda: self.setattr(entry[1], mode=mode))

    @rule(where=WHERE, name=NAMES, uid=IDS, gid=IDS)
    def chown(self, where: int, name: bytes, uid: int, gid: int) -> None:
        with self.entry(where, name) as entry:
            if entry is not None:
                self.both(
                    lambda: os.chown(entry[0], uid, gid, follow_symlinks=False),
                    lambda: self.setattr(entry[1], uid=uid, gid=gid),
                )

    @rule(where=WHERE, name=NAMES, atime=TIMES, mtime=TIMES)
    def utimens(self, where: int, name: bytes, atime: int, mtime: int) -> None:
        with self.entry(where, name) as entry:
            if entry is not None:
                self.explicit.add(mtime)
                self.both(
                    lambda: os.utime(entry[0], ns=(atime, mtime), follow_symlinks=False),
                    lambda: self.setattr(entry[1], atime_ns=atime, mtime_ns=mtime),
                )
                status = os.stat(entry[0], follow_symlinks=False)
                inode = self.session.getattr(entry[1])
                assert (inode.atime_ns, inode.mtime_ns) == (status.st_atime_ns, status.st_mtime_ns)

    @rule(time=TIMES)
    def age(self, time: int) -> None:
        """All is as old as this: what the next operations make newer, they make newer on both sides."""
        self.explicit.add(time)
        for path, ino in list(self.walk()):
            os.utime(path, ns=(time, time), follow_symlinks=False)
            self.setattr(ino, mtime_ns=time)

    @rule(where=WHERE, name=NAMES, xattr=XATTRS, value=st.binary(max_size=200))
    def setxattr(self, where: int, name: bytes, xattr: bytes, value: bytes) -> None:
        with self.entry(where, name) as entry:
            if entry is not None and entry[2] in (stat.S_IFREG, stat.S_IFDIR):
                self.both(
                    lambda: os.setxattr(entry[0], xattr, value),
                    lambda: self.call(self.session.setxattr, entry[1], xattr, value, KERNEL),
                )

    @rule(where=WHERE, name=NAMES, xattr=XATTRS)
    def removexattr(self, where: int, name: bytes, xattr: bytes) -> None:
        with self.entry(where, name) as entry:
            if entry is not None and entry[2] in (stat.S_IFREG, stat.S_IFDIR):
                self.both(
                    lambda: os.removexattr(entry[0], xattr),
                    lambda: self.call(self.session.removexattr, entry[1], xattr, KERNEL),
                )

    # ---- bytes

    def handle(self, which: int) -> Handle:
        return self.handles[which % len(self.handles)]

    @precondition(lambda self: self.handles)
    @rule(which=WHERE, offset=OFFSETS, content=st.binary(min_size=1, max_size=9000))
    def write(self, which: int, offset: int, content: bytes) -> None:
        handle = self.handle(which)
        done = self.both(
            lambda: os.pwrite(handle.fd, content, offset),
            lambda: self.opened.run(self.session.write, handle.ino, offset, content),
        )
        assert done is not None and done[0] == done[1]
        self.unread.add(handle.ino)

    @precondition(lambda self: self.handles)
    @rule(which=WHERE, content=st.binary(min_size=1, max_size=100))
    def append(self, which: int, content: bytes) -> None:
        self.write(which, os.fstat(self.handle(which).fd).st_size, content)

    @precondition(lambda self: self.handles)
    @rule(which=WHERE, size=SIZES)
    def truncate(self, which: int, size: int) -> None:
        handle = self.handle(which)
        self.both(lambda: os.ftruncate(handle.fd, size), lambda: self.setattr(handle.ino, size=size))
        self.unread.add(handle.ino)

    @precondition(lambda self: self.handles)
    @rule(which=WHERE, offset=OFFSETS, size=st.integers(0, 20_000))
    def read(self, which: int, offset: int, size: int) -> None:
        handle = self.handle(which)
        assert self.opened.run(self.session.read, handle.ino, offset, size) == os.pread(handle.fd, size, offset)

    @precondition(lambda self: self.handles)
    @rule(which=WHERE)
    def fsync(self, which: int) -> None:
        self.opened.run(self.session.fsync, self.handle(which).ino)

    # ---- what a session goes through

    @rule()
    def end_and_open_again(self) -> None:
        self.opened.close()
        self.open_again()

    @rule()
    def crash(self) -> None:
        """The process is gone at this moment; all goes on with what it left."""
        self.crashes += 1
        before = self.opened
        abandoned(self.session.directory, self.home / f"state{self.crashes}" / "model")
        before.close()
        self.open_again()

    @rule()
    def compact(self) -> None:
        image.compact(self.session.directory, self.call(self.session.journal.rotate))


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a directory needs root for chown, mknod and trusted xattrs")

TestModel = needs_root(Model.TestCase)
TestModel.settings = settings(max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None)


def test_the_model_tells_errors_apart() -> None:
    """The comparison itself: another errno, a refusal on one side only."""
    model = Model()

    def refuse(number: int) -> Callable[[], Any]:
        def call() -> None:
            raise OSError(number, "")

        return call

    try:
        assert model.both(refuse(errno.ENOENT), refuse(errno.ENOENT)) is None
        assert model.both(lambda: 1, lambda: 2) == (1, 2)
        for theirs, ours in ((1, 2), (0, 1), (1, 0)):
            try:
                model.both(refuse(theirs) if theirs else int, refuse(ours) if ours else int)
            except AssertionError:
                continue
            raise AssertionError((theirs, ours))
    finally:
        model.teardown()
