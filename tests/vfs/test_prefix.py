"""Stopped at any point of its journal a session is what it was then: every prefix is whole, and none lacks anything.

The journal of random operations is cut at each record's end and inside records, and recovered in a copy. MODEL_EXAMPLES
makes the search longer.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vfs.snapshot import abandoned, check, snapshot
from vfs import image
from vfs.content import Content
from vfs.inode import Inode
from vfs.journal import segment_path, segments
from vfs.namespace import Namespace
from vfs.records import Record
from vfs.recovery import recover
from vfs.rules import Changes
from vfs.session import KERNEL, Session

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "25"))

NAMES = st.sampled_from([b"a", b"b", b"\xff", b"n" * 255])
WHICH = st.integers(0, 9)
OPERATIONS = st.one_of(
    st.tuples(st.just("create"), WHICH, NAMES),
    st.tuples(st.just("mkdir"), WHICH, NAMES),
    st.tuples(st.just("symlink"), WHICH, NAMES),
    st.tuples(st.just("unlink"), WHICH, NAMES),
    st.tuples(st.just("rmdir"), WHICH, NAMES),
    st.tuples(st.just("rename"), WHICH, NAMES, WHICH, NAMES, st.sampled_from([0, 1, 2])),
    st.tuples(st.just("link"), WHICH, WHICH, NAMES),
    st.tuples(st.just("write"), WHICH, st.integers(0, 5000), st.binary(min_size=1, max_size=500)),
    st.tuples(st.just("truncate"), WHICH, st.integers(0, 5000)),
    st.tuples(st.just("chmod"), WHICH, st.integers(0, 0o7777)),
    st.tuples(st.just("utimens"), WHICH, st.integers(0, 10**18)),
    st.tuples(st.just("setxattr"), WHICH, st.sampled_from([b"user.a", b"user.b"]), st.binary(max_size=300)),
    st.tuples(st.just("removexattr"), WHICH, st.sampled_from([b"user.a", b"user.b"])),
    st.tuples(st.just("rotate")),
    st.tuples(st.just("compact")),
)


class Point(NamedTuple):
    segment: int
    size: int
    holds: dict[str, Any]


class History:
    """What the namespace was after each record."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.points: list[Point] = []
        self.note()

    def note(self) -> None:
        journal = self.session.journal
        self.points.append(Point(journal.segment, journal.size, snapshot(self.session.namespace)))

    def committed(self, record: Record, inode: Inode | None) -> None:
        self.note()

    def written(self, inode: Inode) -> None:
        """Bytes are in no record."""

    def released(self, inode: Inode) -> None:
        """Nor is this."""


class Play:
    def __init__(self, session: Session) -> None:
        self.session = session

    def directory(self, which: int) -> int:
        directories = [inode.ino for inode in self.session.namespace.inodes.values() if inode.is_dir]
        return directories[which % len(directories)]

    def file(self, which: int) -> int:
        files = [inode.ino for inode in self.session.namespace.inodes.values() if inode.is_file]
        return files[which % len(files)] if files else 1

    async def create(self, where: int, name: bytes) -> None:
        self.session.release(self.session.create(self.directory(where), name, 0o644, KERNEL).ino)

    async def mkdir(self, where: int, name: bytes) -> None:
        self.session.mkdir(self.directory(where), name, 0o755, KERNEL)

    async def symlink(self, where: int, name: bytes) -> None:
        self.session.symlink(self.directory(where), name, name, KERNEL)

    async def unlink(self, where: int, name: bytes) -> None:
        self.session.unlink(self.directory(where), name, KERNEL)

    async def rmdir(self, where: int, name: bytes) -> None:
        self.session.rmdir(self.directory(where), name, KERNEL)

    async def rename(self, where: int, name: bytes, to: int, new: bytes, flags: int) -> None:
        self.session.rename(self.directory(where), name, self.directory(to), new, flags, KERNEL)

    async def link(self, which: int, to: int, new: bytes) -> None:
        self.session.link(self.file(which), self.directory(to), new, KERNEL)

    async def write(self, which: int, offset: int, content: bytes) -> None:
        await self.session.write(self.file(which), offset, content)

    async def truncate(self, which: int, size: int) -> None:
        await self.session.setattr(self.file(which), Changes(size=size), KERNEL)

    async def chmod(self, which: int, mode: int) -> None:
        await self.session.setattr(self.file(which), Changes(mode=mode), KERNEL)

    async def utimens(self, which: int, time: int) -> None:
        await self.session.setattr(self.file(which), Changes(mtime_ns=time), KERNEL)

    async def setxattr(self, which: int, name: bytes, value: bytes) -> None:
        self.session.setxattr(self.file(which), name, value, KERNEL)

    async def removexattr(self, which: int, name: bytes) -> None:
        self.session.removexattr(self.file(which), name, KERNEL)

    async def rotate(self) -> None:
        self.session.journal.rotate()

    async def compact(self) -> None:
        image.compact(self.session.directory, self.session.journal.rotate())


def bytes_apart(holds: dict[str, Any], content: Content) -> dict[str, Any]:
    """The same, but what backing files say is taken from where they are now: the bytes were not taken back with the
    journal."""
    inodes = {}
    for ino, (attributes, *rest) in holds["inodes"].items():
        if attributes["unsettled"]:
            backing = content.stat(ino)
            now = {"size": backing.st_size if backing else 0, "mtime_ns": None, "ctime_ns": None}
            attributes = attributes | now
        inodes[ino] = (attributes, *rest)
    return holds | {"inodes": inodes}


def recovered(directory: Path) -> tuple[Namespace, Content]:
    content = Content(directory / "content")
    namespace, journal = recover(directory, content, crashed=True)
    journal.close()
    check(namespace)
    return namespace, content


def cuts(points: list[Point]) -> Iterator[tuple[int, int, Point]]:
    """A segment and where to cut it, each with what must be found: at every record's end, one byte short of it, and one
    byte into the next record's header."""
    for before, point in zip(points, points[1:], strict=False):
        yield point.segment, point.size, point
        yield point.segment, point.size - 1, before
        if before.segment == point.segment:
            yield point.segment, before.size + 1, before


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(OPERATIONS, min_size=30, max_size=60))
def test_every_prefix_of_the_journal_is_what_the_session_was_then(operations: list[tuple[Any, ...]]) -> None:
    trio.run(play_and_cut, operations)


async def play_and_cut(operations: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as home:
        async with Session.open("work", Path(home)) as session:
            history = History(session)
            session.observers.append(history)
            play = Play(session)
            for operation, *arguments in operations:
                with suppress(OSError):  # what is refused has no record; `model` compares refusals
                    await getattr(play, operation)(*arguments)
                if operation in ("rotate", "compact"):
                    history.note()
            state = abandoned(session.directory, Path(home, "state"))
            contents = {
                inode.ino: await session.read(inode.ino, 0, 10_000)
                for inode in session.namespace.inodes.values()
                if inode.is_file and inode.nlink
            }
            acknowledged = snapshot(session.namespace)
        namespace, content = recovered(state)
        assert snapshot(namespace) == acknowledged
        for ino, expected in contents.items():
            assert (content.read(ino, 0, 10_000) or b"").ljust(namespace.inode(ino).size, b"\0") == expected
        content.close()
        there = segments(state)
        for segment, length, point in cuts([point for point in history.points if point.segment in there]):
            await trio.lowlevel.checkpoint()
            cut = Path(home, "cut")
            shutil.copytree(state, cut)
            os.truncate(segment_path(cut, segment), length)
            for later in range(segment + 1, there[-1] + 1):
                segment_path(cut, later).unlink()
            namespace, content = recovered(cut)
            assert bytes_apart(snapshot(namespace), content) == bytes_apart(point.holds, content)
            content.close()
            shutil.rmtree(cut)
