"""A session that is found again from an empty state directory is whole: also what no file can say."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.vfs.shelf import BigShelf, Crash, content, put, routes
from vfs.callbacks import Context
from vfs.errors import Conflict
from vfs.persistence import Persistence
from vfs.routes import Route, Routes
from vfs.rules import Changes
from vfs.session import Session
from vfs.tree import KERNEL


class Describable(BigShelf):
    def __init__(self) -> None:
        super().__init__()
        self.image: tuple[bytes, str] | None = None
        self.saves = 0

    async def on_load_image(self, scope: object, context: Context) -> tuple[bytes, str] | None:
        return self.image

    async def on_save_image(self, scope: object, image: bytes, context: Context) -> str:
        if context["if_version"] != (None if self.image is None else self.image[1]):
            raise Conflict("image")
        self.saves += 1
        self.image = image, f"i{self.saves}"
        return f"i{self.saves}"


def tree(session: Any) -> dict[str, Any]:
    """All that can be said of a session's tree."""
    found: dict[str, Any] = {}
    numbers: dict[int, str] = {}

    def below(prefix: str, directory: Any) -> None:
        for name, dentry in sorted(directory.entries.items()):
            inode, path = dentry.inode, f"{prefix}/{os.fsdecode(name)}"
            same = numbers.setdefault(inode.ino, path)
            times = inode.mtime_ns
            size = 0 if inode.is_dir else inode.size
            found[path] = (inode.mode, inode.uid, inode.gid, inode.nlink, size, times, inode.target, inode.xattrs, same)
            if inode.is_dir:
                below(path, inode)

    below("", session.namespace.root)
    return found


async def fill(session: Any) -> None:
    ino = await put(session, "bin/tool", b"#!/bin/sh")
    await session.setattr(ino, Changes(mode=0o755, mtime_ns=10**18 + 7), KERNEL)
    linked = await put(session, "bin/one", b"linked")
    session.link(linked, session.lookup(1, b"bin").ino, b"two", KERNEL)
    session.symlink(1, b"symlink", b"bin/tool", KERNEL)
    session.mkdir(1, b"empty", 0o700, KERNEL)
    session.mknod(1, b"fifo", stat.S_IFIFO | 0o600, KERNEL)
    session.setxattr(ino, b"user.note", b"\xff\0", KERNEL)
    await session.setattr(session.lookup(1, b"bin").ino, Changes(mode=0o711, mtime_ns=10**18), KERNEL)


async def test_a_session_is_whole_in_an_empty_state_directory(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Describable()
    async with Session.open("s", tmp_path / "here", routes=routes(shelf)) as session:
        await fill(session)
        assert (await session.sync()).pending == 0
        before = tree(session)
    async with Session.open("s", tmp_path / "there", routes=routes(shelf)) as session:
        assert tree(session) == before
        assert await content(session, "bin/two") == b"linked"
        shelf.log.clear()
        assert (await session.sync()).pending == 0
        assert {operation for operation, _ in shelf.calls} <= {"read_range"}
    async with Session.open("s", tmp_path / "there", routes=routes(shelf)) as session:
        assert tree(session) == before


async def test_a_file_that_someone_else_replaced_keeps_its_mode_and_gets_its_own_time(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Describable()
    async with Session.open("s", tmp_path / "here", routes=routes(shelf)) as session:
        await fill(session)
    shelf.put("/bin/tool", b"replaced")
    async with Session.open("s", tmp_path / "there", routes=routes(shelf)) as session:
        inode = session.namespace.walk(b"bin/tool")
        assert inode.mode & 0o777 == 0o755
        assert inode.mtime_ns != 10**18 + 7
        assert await content(session, "bin/tool") == b"replaced"


async def test_what_was_deleted_before_a_crash_does_not_come_back_from_an_older_description(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Describable()
    with pytest.raises(Crash):
        async with Session.open("s", tmp_path, routes=routes(shelf)) as session:
            await fill(session)
            await session.sync()
            session.rmdir(1, b"empty", KERNEL)
            session.unlink(1, b"symlink", KERNEL)
            raise Crash
    async with Session.open("s", tmp_path, routes=routes(shelf)) as session:
        assert "/empty" not in tree(session)
        assert "/symlink" not in tree(session)
        await session.sync()
    async with Session.open("s", tmp_path / "there", routes=routes(shelf)) as session:
        assert "/empty" not in tree(session)


async def test_what_another_host_described_meanwhile_is_added(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Describable()
    async with Session.open("s", tmp_path / "here", routes=routes(shelf)) as session:
        await fill(session)
    async with Session.open("s", tmp_path / "there", routes=routes(shelf)) as session:
        session.mkdir(1, b"made there", 0o750, KERNEL)
    async with Session.open("s", tmp_path / "here", routes=routes(shelf)) as session:
        assert tree(session)["/made there"][0] == stat.S_IFDIR | 0o750


async def test_a_save_that_is_refused_takes_up_what_is_there_and_is_made_again(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.05
    shelf = Describable()
    async with (
        Session.open("s", tmp_path / "one", routes=routes(shelf)) as one,
        Session.open("s", tmp_path / "two", routes=routes(shelf)) as two,
    ):
        one.mkdir(1, b"from one", 0o755, KERNEL)
        two.mkdir(1, b"from two", 0o755, KERNEL)
        await one.sync()
        assert (await two.sync()).pending == 0
        assert tree(two).keys() == {"/from one", "/from two"}


async def test_it_is_saved_when_the_tree_has_been_left_alone(tmp_path: Path, autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05
    shelf = Describable()
    async with Session.open("s", tmp_path, routes=routes(shelf)) as session:
        await trio.sleep(10)
        saves = shelf.saves
        for n in range(5):
            session.mkdir(1, b"%d" % n, 0o755, KERNEL)
            await trio.sleep(1)
        assert shelf.saves == saves
        await trio.sleep(4)
        assert shelf.saves == saves + 1


async def test_a_route_that_is_added_in_use_brings_what_its_description_says(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Describable()
    async with Session.open("a", tmp_path / "a", routes=added(shelf)) as session:
        session.mkdir(session.lookup(1, b"data").ino, b"empty", 0o700, KERNEL)
        session.symlink(session.lookup(1, b"data").ino, b"link", b"target", KERNEL)
        await put(session, "data/file", b"1")
        await session.sync()
    async with Session.open("b", tmp_path / "b", routes=Routes()) as session:
        await session.files.add_route(next(iter(added(shelf))))
        assert session.namespace.walk(b"data/empty").mode == stat.S_IFDIR | 0o700
        assert session.namespace.walk(b"data/link").target == b"target"
        saves = shelf.saves
        session.mkdir(session.lookup(1, b"data").ino, b"more", 0o700, KERNEL)
        await session.sync()
        assert shelf.saves == saves + 1


def added(shelf: Describable) -> Routes:
    return Routes([Route("data", Persistence(shelf, base_directory="data"))])
