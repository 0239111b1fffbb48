"""What the persistence said about a file: shown, told again, overridden, and taken away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from trio.testing import MockClock

from tests.vfs.shelf import Crash, Shelf, put, routes
from vfs.callbacks import Context
from vfs.session import Session
from vfs.tree import KERNEL


class Titled(Shelf):
    """Answers an id that it made, and what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.id = "7"

    async def on_write(self, scope: object, path: str, content: bytes, context: Context) -> dict[str, Any]:
        answer = await super().on_write(scope, path, content, context)
        return {**context.get("metadata", {}), **answer, "id": self.id}


def named(session: Session, ino: int) -> list[bytes]:
    return sorted(name for name in session.listxattr(ino) if name != b"user.version")


def told(shelf: Shelf) -> dict[str, str]:
    metadata = dict(shelf.contexts["/f"].get("metadata", {}))
    metadata.pop("version", None)
    return metadata


async def test_an_xattr_that_is_removed_is_gone_here_and_in_what_the_persistence_is_told(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Titled()
    async with Session.open("s", tmp_path, routes=routes(shelf)) as session:
        ino = await put(session, "f", b"1")
        session.setxattr(ino, b"user.title", b"T", KERNEL)
        await session.sync()
        assert told(shelf) == {"title": "T"}
        session.removexattr(ino, b"user.title", KERNEL)
        assert named(session, ino) == [b"user.id"]
        with pytest.raises(OSError, match="title"):
            session.getxattr(ino, b"user.title")
        with pytest.raises(OSError, match="title"):
            session.removexattr(ino, b"user.title", KERNEL)
        await session.sync()
        assert told(shelf) == {"id": "7"}
        assert named(session, ino) == [b"user.id"]


async def test_what_the_persistence_said_is_taken_away_until_it_says_something_else(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Titled()
    with pytest.raises(Crash):
        async with Session.open("s", tmp_path, routes=routes(shelf)) as session:
            ino = await put(session, "f", b"1")
            await session.sync()
            assert session.getxattr(ino, b"user.id") == b"7"
            session.removexattr(ino, b"user.id", KERNEL)
            assert named(session, ino) == []
            raise Crash
    async with Session.open("s", tmp_path, routes=routes(shelf)) as session:
        assert named(session, ino) == []
        await session.sync()
        assert told(shelf) == {}
        assert named(session, ino) == []  # it said 7 again
        shelf.id = "8"
        await session.write(ino, 0, b"2")
        await session.sync()
        assert session.getxattr(ino, b"user.id") == b"8"
        session.setxattr(ino, b"user.id", b"mine", KERNEL)
        assert session.getxattr(ino, b"user.id") == b"mine"
        await session.sync()
        assert told(shelf) == {"id": "mine"}
        session.removexattr(ino, b"user.id", KERNEL)
        assert named(session, ino) == []


async def test_metadata_is_taken_away_by_path_too_and_stays_so_when_the_file_is_written_anew(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Titled()
    async with Session.open("s", tmp_path, routes=routes(shelf)) as session:
        await session.files.write("f", b"1")
        await session.files.set_metadata("f", {"tag": "x"})
        await session.sync()
        assert {"id", "tag"} < (await session.files.metadata("f")).keys()
        await session.files.set_metadata("f", {"id": None, "tag": None})
        await session.files.write("f", b"2")
        await session.sync()
        assert told(shelf) == {}
        assert (await session.files.metadata("f")).keys() == {"version"}
