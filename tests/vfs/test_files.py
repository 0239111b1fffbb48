"""A session by paths: what a program that embeds one can do with its files, and what it is promised."""

from __future__ import annotations

import errno
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.vfs.shelf import Crash
from vfs.files import Files
from vfs.policy import Policy
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


async def test_a_closed_session_reaches_nothing_of_one_that_was_opened_after_it(tmp_path: Path) -> None:
    async with Session.open("a", tmp_path) as a:
        for name in ("x", "y"):
            await a.files.write(name, b"of a")
    async with Session.open("b", tmp_path) as b:
        for name in ("secret", "other"):
            await b.files.write(name, b"of b")
        calls: list[Callable[[], Awaitable[object]]] = [
            partial(a.files.read, "x"),
            partial(a.files.write, "x", b"overwritten"),
            partial(a.files.append, "y", b"more"),
            partial(a.files.move, "x", "z"),
            partial(a.files.delete, "x"),
        ]
        for call in calls:
            with pytest.raises(OSError, match="Bad file descriptor"):
                await call()
        assert [await b.files.read(name) for name in ("secret", "other")] == [b"of b", b"of b"]
    async with Session.open("b", tmp_path) as b:
        assert [(ref.path, ref.size) for ref in await b.files.list()] == [("other", 4), ("secret", 4)]
    async with Session.open("a", tmp_path) as a:
        assert [await a.files.read(ref.path) for ref in await a.files.list()] == [b"of a", b"of a"]
