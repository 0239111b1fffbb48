"""A session by paths whose files are also in a persistence: what reaches it, and the session as a whole."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.vfs.shelf import BigShelf, Shelf, routes
from vfs.fileref import FileRef
from vfs.files import Files
from vfs.options import Options
from vfs.persistence import Persistence
from vfs.routes import Route, Routes
from vfs.session import Session
from vfs.tree import KERNEL


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[Files]:
    async with Session.open("s", tmp_path) as session:
        yield Files(session)


async def test_what_is_written_by_path_reaches_the_persistence_and_comes_back(tmp_path: Path) -> None:
    shelf = BigShelf()
    async with Session.open("s", tmp_path / "1", routes=routes(shelf)) as session:
        files = Files(session)
        await files.write("d/f", b"one")
        await files.write("d/f", b"two")
        await files.write("g", b"three")
        assert (await session.sync()).pending == 0
        assert shelf.contents == {"/d/f": b"two", "/g": b"three"}
        assert (await files.stat("d/f")).version == shelf.files["/d/f"][1]
        await files.write("g", b"four")
        await files.delete("d/f")
    assert shelf.contents == {"/g": b"four"}
    assert [path for _, path in shelf.log if "mount-session" in path] == []


async def test_a_file_listed_as_a_bare_path_has_its_size_when_it_is_asked_for(tmp_path: Path) -> None:
    class Paths(Shelf):
        async def on_list(self, scope: object, context: Any) -> list[Any]:
            return sorted(self.files)

    shelf = Paths()
    shelf.put("/d/f", b"12345")
    async with Session.open("s", tmp_path, routes=routes(shelf)) as session:
        files = Files(session)
        refs: list[FileRef] = await files.list()
        assert [(ref.path, ref.size) for ref in refs] == [("d/f", 5)]
        await files.append("d/f", b"6")
        assert await files.read("d/f") == b"123456"


def test_paths_of_os_work_too(tmp_path: Path) -> None:
    async def main() -> None:
        async with Session.open("s", tmp_path) as session:
            await Files(session).write(os.fsencode("d/f"), b"1")
            assert await Files(session).exists("d/f")

    trio.run(main)


async def test_metadata_alone_goes_to_the_persistence_too(tmp_path: Path) -> None:
    shelf = BigShelf()
    shelf.put("/elsewhere", b"x" * 600_000)
    async with Session.open("s", tmp_path, routes=routes(shelf)) as session:
        await session.files.write("f", b"content")
        await session.sync()
        await session.files.set_metadata("f", {"title": "T"})
        await session.files.set_metadata("elsewhere", {"title": "U"})
        assert (await session.sync()).pending == 0
        assert shelf.contexts["/f"]["metadata"]["title"] == "T"
        assert shelf.contexts["/elsewhere"]["metadata"]["title"] == "U"
        assert shelf.contents == {"/f": b"content", "/elsewhere": b"x" * 600_000}


async def test_stats_say_how_much_is_where(tmp_path: Path) -> None:
    shelf = BigShelf()
    shelf.put("/there", b"12345")
    shelf.put("/going", b"1")
    policy = {"local_only": ["tmp"], "debounce": 1000, "max_wait": 1000}
    async with Session.open("s", tmp_path, routes=routes(shelf, **policy)) as session:
        files = session.files
        await files.write("both", b"123")
        await session.sync()
        await files.write("tmp/x", b"12")
        await files.append("both", b"4")
        await files.delete("going")
        stats = await files.stats()
        counts = {name: getattr(stats, name) for name in stats.__struct_fields__}
        assert {name: (c.files, c.bytes) for name, c in counts.items() if name != "deletions"} == {
            "total": (3, 11),
            "local": (1, 2),
            "persisted": (1, 5),
            "loaded": (2, 6),
            "not_loaded": (1, 5),
            "dirty": (1, 4),
        }
        assert stats.deletions == 1
        await files.read("there")
        await session.sync()
        stats = await files.stats()
        assert (stats.not_loaded.files, stats.dirty.files, stats.deletions, stats.persisted.bytes) == (0, 0, 0, 9)
    async with Session.open("t", tmp_path) as session:
        await session.files.write("f", b"1")
        assert (await session.files.stats()).local == (await session.files.stats()).total


async def test_a_reset_drops_what_is_clean_and_keeps_what_is_not_saved(tmp_path: Path) -> None:
    shelf = BigShelf()
    async with Session.open("s", tmp_path, routes=routes(shelf, debounce=1000, max_wait=1000)) as session:
        files = session.files
        await files.write("clean", b"1")
        await files.write("edited", b"1")
        await session.sync()
        await files.append("edited", b"2")
        shelf.put("/clean", b"by someone else")
        shelf.put("/new", b"there")
        done = await files.reset()
        assert (done.discarded, done.refreshed.new, done.refreshed.changed) == ([], 1, 1)
        assert await files.read("clean") == b"by someone else"
        assert await files.read("edited") == b"12"
        await session.sync()
        await files.reset()
        assert (await files.stats()).loaded.files == 0
        assert await files.read("edited") == b"12"


async def test_a_reset_by_force_gives_up_every_unsaved_change(tmp_path: Path, autojump_clock: MockClock) -> None:
    autojump_clock.autojump_threshold = 0.05  # threads of the session are at work while nothing else is
    shelf = BigShelf()
    async with Session.open("s", tmp_path, routes=routes(shelf, debounce=1000, max_wait=1000)) as session:
        files = session.files
        before = {
            f"{name}": name.encode() for name in ("edited", "deleted", "d/moved", "replaced", "file-to-directory")
        }
        for path, content in before.items():
            await files.write(path, content)
        await session.sync()
        held = dict(shelf.files)
        shelf.fault = lambda operation, path: (_ for _ in ()).throw(ConnectionError(104, "down"))
        await files.append("edited", b"!")
        await files.delete("deleted")
        await files.move("d/moved", "e/here")
        await files.write("replaced", b"another")
        await files.delete("file-to-directory")
        await files.write("file-to-directory/new", b"")
        await files.write("new", b"new")
        await trio.sleep(5)
        shelf.fault = lambda operation, path: None
        done = await files.reset(force=True)
        changed = ["d/moved", "deleted", "e/here", "edited", "file-to-directory", "file-to-directory/new", "new"]
        assert done.discarded == [*changed, "replaced"]
        assert {ref.path: await files.read(ref.path) for ref in await files.list()} == before
        assert (await session.sync()).pending == 0
        assert shelf.files == held


async def test_a_session_that_is_only_here_cannot_be_reset(files: Files) -> None:
    with pytest.raises(OSError, match="nothing but this session") as e:
        await files.reset(force=True)
    assert e.value.errno == errno.ENOTSUP
    with pytest.raises(OSError, match="no persistence"):
        files.register(["f"])
    with pytest.raises(OSError, match="without routes"):
        await files.add_route(Route("d"))
    assert (await files.refresh()).new == 0


async def test_files_that_are_known_to_be_there_are_registered_without_a_listing(tmp_path: Path) -> None:
    class Unlisted(Shelf):
        on_list = None  # type: ignore[assignment]

    shelf = Unlisted()
    version = shelf.put("/d/a", b"1")
    shelf.put("/d/b", b"22")
    async with Session.open("s", tmp_path, routes=routes(shelf, local_only=["tmp"])) as session:
        files = session.files
        files.register(["/d/a", shelf.ref("/d/b")])
        assert shelf.log == []
        assert [(ref.path, ref.size) for ref in await files.list()] == [("d/a", 1), ("d/b", 2)]
        assert await files.read("d/b") == b"22"
        for wrong, number in (("d/a", errno.EEXIST), ("../x", errno.EINVAL), ("tmp/x", errno.ENOTSUP)):
            with pytest.raises(OSError, match="d/a|segment|no persistence") as e:
                files.register(["other", wrong])
            assert e.value.errno == number
        assert not await files.exists("other")
        await files.write("d/b", b"new")
    assert shelf.contents == {"/d/a": b"1", "/d/b": b"new"}
    assert shelf.files["/d/a"][1] == version


async def test_a_route_that_is_added_in_use_brings_its_files_and_takes_what_is_there(tmp_path: Path) -> None:
    first, second = BigShelf(), BigShelf()
    second.put("/data/there", b"1")
    async with Session.open("s", tmp_path, routes=routes(first)) as session:
        await session.files.write("f", b"1")
        await session.sync()
        added = await session.files.add_route(Route("data", Persistence(second, base_directory="data"), debounce=0.1))
        assert added.new == 1
        await session.files.write("data/new", b"2")
        assert await session.files.read("data/there") == b"1"
        await session.sync()
    assert first.contents == {"/f": b"1"}
    assert second.contents == {"/data/there": b"1", "/data/new": b"2"}


async def test_a_route_is_not_added_where_files_are_kept_elsewhere(tmp_path: Path) -> None:
    first, second = BigShelf(), BigShelf()
    async with Session.open("s", tmp_path, routes=routes(first)) as session:
        await session.files.write("data/d/f", b"1")
        await session.files.write("data.txt", b"1")
        await session.sync()
        added = Route("data", Persistence(second, base_directory="data"))
        with pytest.raises(OSError, match="1 files that are kept elsewhere") as e:
            await session.files.add_route(added)
        assert e.value.errno == errno.ENOTEMPTY
        second.fault = fail
        with pytest.raises(ConnectionResetError):
            await session.files.add_route(Route("other", Persistence(second, base_directory="other")))
        assert [route.base for route in session.routes] == [""]  # type: ignore[attr-defined]
        await session.files.move("data/d", "aside")
        await session.sync()
        second.fault = lambda operation, path: None
        await session.files.add_route(added)
        await session.files.move("aside/f", "data/f")
        await session.sync()
    assert first.contents == {"/data.txt": b"1"}
    assert second.contents == {"/data/f": b"1"}


@pytest.mark.parametrize("when", ["while it is listed", "while it is uploaded"])
async def test_no_file_that_is_made_while_a_route_is_added_is_lost(
    tmp_path: Path, autojump_clock: MockClock, when: str
) -> None:
    outer, inner = Shelf(), Shelf()
    slow = inner if when == "while it is listed" else outer
    slow.delay = lambda: 0.5
    async with Session.open("s", tmp_path, routes=routes(outer)) as session, trio.open_nursery() as nursery:

        async def add() -> None:
            with pytest.raises(OSError, match="1 files that are kept elsewhere"):
                await session.files.add_route(
                    Route("data", Persistence(inner, base_directory="data", timeout=math.inf))
                )

        if slow is outer:
            await session.files.write("data/x", b"precious")
            await trio.sleep(0.2)
            assert session.writeback.transfer.busy  # type: ignore[attr-defined]
            nursery.start_soon(add)
        else:
            nursery.start_soon(add)
            await trio.sleep(0.1)
            await session.files.write("data/x", b"precious")
        await trio.sleep(5)
        assert (await session.sync()).pending == 0
        await session.refresh()  # type: ignore[attr-defined]
        assert await session.files.read("data/x") == b"precious"
    assert outer.contents == {"/data/x": b"precious"}


def fail(operation: str, path: str) -> None:
    raise ConnectionResetError(104, "reset")


async def test_what_is_given_up_does_not_go_out_while_another_file_is_waited_for(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    autojump_clock.autojump_threshold = 0.05  # threads of the session are at work while nothing else is
    shelf = BigShelf()
    shelf.delay = lambda: 5.0
    one = Options(concurrency=1, max_concurrency=1, refresh_interval=None)
    async with Session.open("s", tmp_path, routes=routes(shelf), options=one) as session:
        await session.files.write("a", b"1")
        await trio.sleep(1)
        await session.files.write("b", b"2")
        done = await session.files.reset(force=True)
        assert done.discarded == ["b"]
        assert [ref.path for ref in await session.files.list()] == ["a"]
    assert shelf.contents == {"/a": b"1"}
    assert ("write", "/b") not in shelf.log


async def test_a_file_that_is_only_open_is_in_no_count(files: Files) -> None:
    inode = files.session.create(1, b"f", 0o644, KERNEL)
    files.session.unlink(1, b"f", KERNEL)
    assert (await files.stats()).total.files == 0
    files.session.release(inode.ino)


async def test_a_hidden_name_cannot_be_written_by_path(tmp_path: Path) -> None:
    async with Session.open("s", tmp_path, routes=Routes(hidden=[".env"])) as session:
        for call in (session.files.write(".env", b""), session.files.create("d/.env", b""), session.files.read(".env")):
            with pytest.raises(FileNotFoundError):
                await call
        assert await session.files.list() == []
    async with Session.open("s", tmp_path) as session:
        assert await session.files.list() == []
