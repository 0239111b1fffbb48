"""A session by paths: what a program that embeds one can do with its files, and what it is promised."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.vfs.shelf import BigShelf, Crash, Shelf, routes
from vfs.fileref import FileRef
from vfs.files import Files
from vfs.options import Options
from vfs.persistence import Persistence
from vfs.policy import Policy
from vfs.routes import Route, Routes
from vfs.session import Session
from vfs.tree import KERNEL, Caller


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[Files]:
    async with Session.open("s", tmp_path) as session:
        yield Files(session)


async def test_what_is_written_is_read_byte_for_byte_whole_or_in_part(files: Files) -> None:
    content = bytes(range(256)) * 9000  # more than one piece
    ref = await files.write("notes/data.bin", content)
    assert (ref.path, ref.size) == ("notes/data.bin", len(content))
    assert ref.checksum == hashlib.sha256(content).hexdigest()
    assert await files.read("/notes/data.bin") == content
    assert await files.read(b"notes/data.bin", 255, 3) == b"\xff\x00\x01"
    assert await files.read("notes/data.bin", len(content) - 1, 100) == b"\xff"
    assert await files.read("notes/data.bin", len(content) + 5) == b""
    for odd in (b"", b" \n", b"\0", "\ufeffé".encode()):
        await files.write("odd", odd)
        assert await files.read("odd") == odd


async def test_a_name_that_is_not_utf8_is_the_same_as_text_and_as_bytes(files: Files) -> None:
    await files.write(b"caf\xe9", b"1")
    assert await files.read("caf\udce9") == b"1"
    assert [ref.path for ref in await files.list()] == ["caf\udce9"]


async def test_a_reader_sees_the_old_content_or_the_new_and_never_a_part(files: Files) -> None:
    old, new = b"o" * (5 << 20), b"n" * (5 << 20)
    await files.write("f", old)
    seen = set()

    async def look() -> None:
        while b"n" not in seen:
            content = await files.read("f")
            assert content in (old, new)
            seen.add(content[:1])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(look)
        await files.write("f", new)
    assert [ref.path for ref in await files.list()] == ["f"]


async def test_a_write_that_fails_half_way_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    async with Session.open("s", tmp_path, policy=Policy(quota_bytes=4 << 20)) as session:
        files = Files(session)
        await files.write("f", b"before")
        with pytest.raises(OSError, match="uota") as e:
            await files.write("f", b"x" * (6 << 20))
        assert e.value.errno == errno.EDQUOT
        assert await files.read("f") == b"before"
        assert [ref.path for ref in await files.list()] == ["f"]
        assert len(session.namespace.inodes) == 2
        await files.write("f", b"y" * (3 << 20))


async def test_a_crash_in_a_write_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    class Killed(Session):
        async def write(self, ino: int, offset: int, data: bytes) -> int:
            await super().write(ino, offset, data)
            raise Crash

    async with Session.open("s", tmp_path) as session:
        await Files(session).write("f", b"before")
    with pytest.raises(Crash):
        async with Killed.open("s", tmp_path) as session:
            await Files(session).write("f", b"after")
    async with Session.open("s", tmp_path) as session:
        assert await Files(session).read("f") == b"before"
        assert [ref.path for ref in await Files(session).list()] == ["f"]


async def test_a_write_keeps_mode_owner_and_xattrs_and_leaves_other_names_alone(files: Files) -> None:
    await files.write("f", b"one", mode=0o640)
    session = files.session
    inode = session.lookup(1, b"f")
    session.link(inode.ino, 1, b"other", KERNEL)
    await files.set_metadata("f", {"title": "T"})
    ref = await files.write("f", b"two")
    assert (ref.mode, ref.metadata) == (0o640, {"title": "T"})
    assert await files.read("other") == b"one"
    assert (await files.write("f", b"three", mode=0o600)).mode == 0o600


async def test_create_is_exclusive_and_of_many_one_wins(files: Files) -> None:
    won: list[int] = []

    async def attempt(number: int) -> None:
        try:
            await files.create("d/lock", b"%d" % number * 100_000)
        except FileExistsError:
            return
        won.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(attempt, number)
    assert len(won) == 1
    assert await files.read("d/lock") == b"%d" % won[0] * 100_000
    with pytest.raises(FileExistsError):
        await files.create("d")


async def test_append_goes_to_the_end_and_makes_what_is_not_there(files: Files) -> None:
    await files.append("log", b"one\n")
    ref = await files.append("log", b"two\n")
    assert ref.size == 8
    assert await files.read("log") == b"one\ntwo\n"


async def test_deleting_what_is_not_there_is_done_and_a_directory_goes_only_when_asked(files: Files) -> None:
    await files.write("d/e/f", b"")
    await files.delete("nothing")
    await files.delete("d/e/f/below-a-file")
    with pytest.raises(FileNotFoundError):
        await files.delete("nothing", missing_ok=False)
    with pytest.raises(IsADirectoryError):
        await files.delete("d")
    await files.delete("d/e/f")
    assert not await files.exists("d/e/f")
    await files.write("d/e/f", b"")
    await files.delete("d", recursive=True)
    assert not await files.exists("d")


async def test_exists_is_false_only_for_what_is_not_there(files: Files) -> None:
    await files.write("f", b"")
    assert await files.exists("f")
    assert await files.exists("")
    assert not await files.exists("g")
    assert not await files.exists("f/g")
    with pytest.raises(OSError, match="long") as e:
        await files.exists("x" * 256)
    assert e.value.errno == errno.ENAMETOOLONG


async def test_a_move_takes_a_file_or_a_whole_directory_and_overwrites_only_when_asked(files: Files) -> None:
    await files.write("a/b/c", b"1")
    await files.write("a/d", b"2")
    await files.move("a", "x/y")
    assert [ref.path for ref in await files.list()] == ["x/y/b/c", "x/y/d"]
    with pytest.raises(FileExistsError):
        await files.move("x/y/d", "x/y/b/c")
    await files.move("x/y/d", "x/y/b/c", replace=True)
    assert await files.read("x/y/b/c") == b"2"
    await files.move("x/y/b/c", "/x/y/b/c")
    with pytest.raises(FileNotFoundError):
        await files.move("gone", "there")
    with pytest.raises(OSError, match="nvalid") as e:
        await files.move("x", "x/y/z")
    assert e.value.errno == errno.EINVAL


async def test_a_listing_is_sorted_has_all_files_below_and_takes_a_pattern(files: Files) -> None:
    for path in ("b.md", "a.txt", "docs/deep/c.md", "docs/d.md", "docs.md"):
        await files.write(path, path.encode())
    await files.mkdir("empty")
    assert [ref.path for ref in await files.list()] == ["a.txt", "b.md", "docs.md", "docs/d.md", "docs/deep/c.md"]
    assert [ref.path for ref in await files.list("docs")] == ["docs/d.md", "docs/deep/c.md"]
    assert [ref.path for ref in await files.list(pattern="*.md")] == ["b.md", "docs.md", "docs/d.md", "docs/deep/c.md"]
    assert [ref.path for ref in await files.list(pattern="docs/*.md")] == ["docs/d.md"]
    assert [ref.path for ref in await files.list("docs", "/*.md")] == ["docs/d.md"]
    assert await files.list("empty") == []
    with pytest.raises(FileNotFoundError):
        await files.list("nowhere")
    with pytest.raises(NotADirectoryError):
        await files.list("a.txt")
    with pytest.raises(ValueError, match="glob"):
        await files.list(pattern="[")


async def test_stat_says_what_is_known_of_a_file(files: Files) -> None:
    await files.write("d/report.xlsx", b"content", mode=0o600)
    ref = await files.stat("/d/report.xlsx")
    assert (ref.path, ref.size, ref.mode, ref.checksum) == ("d/report.xlsx", 7, 0o600, None)
    assert ref.content_type == "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
    assert ref.mtime_ns is not None and abs(ref.created_at.timestamp() - ref.mtime_ns / 1e9) < 1
    assert (await files.stat("d/report.xlsx", checksum=True)).checksum == hashlib.sha256(b"content").hexdigest()
    with pytest.raises(IsADirectoryError):
        await files.stat("d")
    with pytest.raises(FileNotFoundError):
        await files.stat("d/other")


async def test_a_directory_is_made_with_those_above_it(files: Files) -> None:
    await files.mkdir("a/b/c")
    await files.mkdir("a/b/c")
    with pytest.raises(FileExistsError):
        await files.mkdir("a/b/c", exist_ok=False)
    await files.write("f", b"")
    with pytest.raises(FileExistsError):
        await files.mkdir("f")
    with pytest.raises(NotADirectoryError):
        await files.mkdir("f/g")


async def test_metadata_is_the_user_xattrs(files: Files) -> None:
    await files.write("f", b"")
    await files.set_metadata("f", {"title": "Überschrift", "tag": "1"})
    assert files.session.getxattr(files.session.lookup(1, b"f").ino, b"user.title") == "Überschrift".encode()
    await files.set_metadata("f", {"tag": None, "absent": None, "more": ""})
    assert await files.metadata("f") == {"title": "Überschrift", "more": ""}
    assert (await files.stat("f")).metadata == {"title": "Überschrift", "more": ""}


@pytest.mark.parametrize("path", ["../f", "a/../../f", "a/..", "nul\0", b"..", "/.."])
async def test_a_path_that_could_leave_the_session_is_refused(files: Files, path: Any) -> None:
    for call in (files.read, files.stat, files.delete, files.list, files.mkdir, files.exists):
        with pytest.raises(OSError, match="NUL") as e:
            await call(path)
        assert e.value.errno == errno.EINVAL
    with pytest.raises(OSError, match="NUL"):
        await files.write(path, b"")


async def test_dots_within_a_name_and_needless_slashes_mean_nothing_special(files: Files) -> None:
    await files.write("a..b/...", b"1")
    assert await files.read("//a..b/./...") == b"1"
    assert (await files.stat("/a..b//...")).path == "a..b/..."
    for path in ("", "/", "a..b"):
        with pytest.raises(IsADirectoryError):
            await files.write(path, b"")


async def test_symlinks_lead_within_the_session_and_nowhere_else(files: Files) -> None:
    await files.write("d/f", b"1")
    session = files.session
    for link, target in {
        b"up": b"d/../d/f",
        b"dir": b"d",
        b"out": b"../etc/passwd",
        b"abs": b"/etc/passwd",
        b"loop": b"loop",
        b"gone": b"nothing",
    }.items():
        session.symlink(1, link, target, KERNEL)
    assert await files.read("up") == b"1"
    assert await files.read("dir/f") == b"1"
    await files.write("up", b"2")
    assert await files.read("d/f") == b"2"
    for name in ("out", "abs"):
        with pytest.raises(OSError, match="leads out") as e:
            await files.write(name, b"")
        assert e.value.errno == errno.EXDEV
    with pytest.raises(OSError, match="symbolic") as e:
        await files.read("loop")
    assert e.value.errno == errno.ELOOP
    assert not await files.exists("gone")
    await files.delete("dir")
    assert [ref.path for ref in await files.list()] == ["d/f"]


async def test_new_files_belong_to_whom_the_program_says(files: Files) -> None:
    class Someone:
        pid, uid, gid = 0, 1234, 1235

    someone: Caller = Someone()
    await Files(files.session, someone).write("d/f", b"")
    inode = files.session.namespace.walk(b"d/f")
    assert (inode.uid, inode.gid) == (1234, 1235)


async def test_a_read_only_session_refuses_what_would_change_it(tmp_path: Path) -> None:
    async with Session.open("s", tmp_path) as session:
        await Files(session).write("f", b"1")
    async with Session.open("s", tmp_path, read_only=True) as session:
        files = Files(session)
        assert await files.read("f") == b"1"
        for change in (files.write("f", b""), files.append("f", b"x"), files.delete("f"), files.move("f", "g")):
            with pytest.raises(OSError, match="ead-only") as e:
                await change
            assert e.value.errno == errno.EROFS


async def test_files_that_were_made_elsewhere_land_in_the_session(files: Files) -> None:
    async def fetch(descriptor: Any) -> bytes:
        return str(descriptor["file_id"]).encode()

    landed = await files.sync_from_remote(
        [{"file_id": "f1", "filename": "report.pdf"}, {"file_id": "f2", "path": "out/b.csv"}], fetch
    )
    assert [(ref.path, ref.size) for ref in landed] == [("report.pdf", 2), ("out/b.csv", 2)]
    assert await files.read("out/b.csv") == b"f2"
    with pytest.raises(OSError, match="path"):
        await files.sync_from_remote([{"file_id": "f3", "path": "ok"}, {"file_id": "f4"}], fetch)
    assert not await files.exists("ok")


# ---- with a persistence


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
