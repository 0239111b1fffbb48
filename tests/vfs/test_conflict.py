"""When someone else changes the same file in the persistence, both versions are kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from tests.vfs.shelf import BigShelf, Crash, Ledger, Shelf, content, put, routes
from vfs.blockmap import BLOCK
from vfs.capture import SMALL
from vfs.conflict import conflict_name
from vfs.fileref import FileRef
from vfs.options import Options
from vfs.records import Removed
from vfs.session import Session
from vfs.tree import KERNEL

QUIETLY = Options(refresh_interval=None)
ONE_BY_ONE = Options(refresh_interval=None, concurrency=1, max_concurrency=1)


def opened(tmp_path: Path, target: object, options: Options = QUIETLY, **policy: Any) -> Any:
    return Session.open("s", tmp_path, routes=routes(target, **policy), options=options)


def names(session: Any) -> list[str]:
    return sorted(os.fsdecode(name) for name in session.namespace.root.entries)


@pytest.mark.parametrize("kind", [Shelf, BigShelf])
async def test_theirs_keeps_the_name_and_ours_is_uploaded_beside_it(
    tmp_path: Path, autojump_clock: MockClock, kind: type[Shelf], caplog: pytest.LogCaptureFixture
) -> None:
    shelf = kind()
    async with opened(tmp_path, shelf) as session:
        told: list[Any] = []
        session.invalidate = lambda names, inos: told.extend(names)
        ino = await put(session, "a.txt", b"base")
        await session.sync()
        shelf.put("/a.txt", b"theirs")
        await session.write(ino, 0, b"ours")
        assert (await session.sync()).pending == 0
        assert shelf.contents == {"/a.txt": b"theirs", "/a.txt.conflict-s-1": b"ours"}
        assert await content(session, "a.txt") == b"theirs"
        assert await content(session, "a.txt.conflict-s-1") == b"ours"
        assert (1, b"a.txt") in told
        assert "a.txt.conflict-s-1" in caplog.text
        assert session.writeback.transfer.conflicts.count == 1


async def test_a_second_conflict_gets_the_next_number(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    async with opened(tmp_path, shelf) as session:
        for n in (1, 2):
            await put(session, "a", b"ours %d" % n)
            shelf.put("/a", b"theirs %d" % n)
            await session.sync()
        assert shelf.contents == {
            "/a": b"theirs 2",
            "/a.conflict-s-1": b"ours 1",
            "/a.conflict-s-2": b"ours 2",
        }


async def test_the_same_content_is_no_conflict(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    async with opened(tmp_path, shelf) as session:
        shelf.put("/a", b"the same")
        await put(session, "a", b"the same")
        assert (await session.sync()).pending == 0
        assert shelf.contents == {"/a": b"the same"}
        assert names(session) == ["a"]


async def test_an_edit_of_what_they_deleted_creates_it_again(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    async with opened(tmp_path, shelf) as session:
        ino = await put(session, "a", b"base")
        await session.sync()
        del shelf.files["/a"]
        await session.write(ino, 0, b"edit")
        assert (await session.sync()).pending == 0
        assert shelf.contents == {"/a": b"edit"}
        assert names(session) == ["a"]


async def test_what_they_changed_is_not_deleted_but_comes_back(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    async with opened(tmp_path, shelf) as session:
        await put(session, "a", b"base")
        await session.sync()
        shelf.put("/a", b"theirs")
        session.unlink(1, b"a", KERNEL)
        assert (await session.sync()).pending == 0
        assert shelf.contents == {"/a": b"theirs"}
        assert await content(session, "a") == b"theirs"


@pytest.mark.parametrize("kind", [Shelf, BigShelf])
async def test_what_they_changed_in_a_directory_that_is_removed_comes_back_with_it(
    tmp_path: Path, autojump_clock: MockClock, kind: type[Shelf]
) -> None:
    shelf = kind()
    shelf.delay = lambda: 0.01
    async with opened(tmp_path, shelf) as session:
        await put(session, "d/e/a", b"base")
        await put(session, "d/b", b"base")
        await session.sync()
        shelf.put("/d/e/a", b"theirs")
        folder = session.at(b"d").ino
        session.unlink(session.at(b"d/e").ino, b"a", KERNEL)
        session.rmdir(folder, b"e", KERNEL)
        session.unlink(folder, b"b", KERNEL)
        session.rmdir(1, b"d", KERNEL)
        with trio.fail_after(5):
            assert (await session.sync()).pending == 0
        assert shelf.contents == {"/d/e/a": b"theirs"}
        assert await content(session, "d/e/a") == b"theirs"


@pytest.mark.parametrize("now", ["a directory", "a symlink", "in a file"])
async def test_what_they_changed_stays_there_where_it_has_no_place_here(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, now: str
) -> None:
    shelf = BigShelf()
    shelf.delay = lambda: 0.01
    async with opened(tmp_path, shelf) as session:
        await put(session, "d/a", b"base")
        await session.sync()
        version = shelf.put("/d/a", b"theirs")
        folder = session.at(b"d").ino
        session.unlink(folder, b"a", KERNEL)
        if now == "a directory":
            await put(session, "d/a/b", b"ours")
        elif now == "a symlink":
            session.symlink(folder, b"a", b"target", KERNEL)
        else:
            session.rmdir(1, b"d", KERNEL)
            await put(session, "d", b"ours")
        with trio.fail_after(5):
            assert (await session.sync()).pending == 0
        assert shelf.files["/d/a"] == (b"theirs", version)
        assert "'d/a' was changed by someone else, and is left out" in caplog.text
        await session.refresh()
        assert (await session.sync()).pending == 0
        assert not session.at(b"d/a") or not session.at(b"d/a").is_file


async def test_a_move_does_not_overwrite_what_it_does_not_know(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = BigShelf()
    async with opened(tmp_path, shelf) as session:
        await put(session, "a", b"ours")
        await session.sync()
        shelf.put("/b", b"theirs")
        session.rename(1, b"a", 1, b"b", 0, KERNEL)
        assert (await session.sync()).pending == 0
        assert shelf.contents == {"/b": b"theirs", "/b.conflict-s-1": b"ours"}


@pytest.mark.parametrize("is_over_another", [False, True])
async def test_a_move_does_not_overwrite_what_is_written_while_it_is_made(
    tmp_path: Path, autojump_clock: MockClock, is_over_another: bool
) -> None:
    shelf = BigShelf()

    def write_theirs(operation: str, path: str) -> None:
        if operation == "move" and "/b.conflict-s-1" not in shelf.contents:
            shelf.put("/b", b"their new one")
            shelf.fault = lambda operation, path: None

    async with opened(tmp_path, shelf) as session:
        if is_over_another:
            await put(session, "b", b"old")
        ino = await put(session, "a", bytes(SMALL + 1))
        await session.sync()
        shelf.fault = write_theirs
        session.rename(1, b"a", 1, b"b", 0, KERNEL)
        if is_over_another:
            session.cache.trim(0)
        assert (await session.sync()).pending == 0
        assert shelf.contents == {"/b": b"their new one", "/b.conflict-s-1": bytes(SMALL + 1)}
        assert session.namespace.inodes[ino].size == SMALL + 1
        assert await content(session, "b.conflict-s-1") == bytes(SMALL + 1)


async def test_a_clean_file_that_they_changed_is_moved_with_their_change(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = BigShelf()
    async with opened(tmp_path, shelf) as session:
        await put(session, "a", b"base")
        await session.sync()
        shelf.put("/a", b"theirs")
        session.rename(1, b"a", 1, b"b", 0, KERNEL)
        assert (await session.sync()).pending == 0
        assert shelf.contents == {"/b": b"theirs"}
        assert await content(session, "b") == b"theirs"


class Careless(Ledger):
    """Neither versions nor conditions."""

    def _check(self, path: str, context: Any) -> None:
        pass

    async def on_write(self, scope: object, path: str, content: bytes, context: Any) -> Any:
        await super().on_write(scope, path, content, context)

    async def on_commit(self, scope: object, changes: Any, context: Any) -> Any:
        await super().on_commit(scope, changes, context)


@pytest.mark.parametrize("kind", [BigShelf, Careless])
@pytest.mark.parametrize("is_deleted", [False, True])
async def test_what_a_new_file_may_have_replaced_is_not_moved_to_the_new_name_of_the_old_one(
    tmp_path: Path, autojump_clock: MockClock, kind: type[Shelf], is_deleted: bool
) -> None:
    shelf = kind()

    def fault(operation: str, path: str) -> None:
        if (operation, path) != ("write", "/b"):
            raise ConnectionResetError(104, "reset")

    with pytest.raises(Crash):
        async with opened(tmp_path, shelf, ONE_BY_ONE) as session:
            await put(session, "b", b"precious")
            await session.sync()
            shelf.fault, shelf.lost = fault, lambda operation, path: operation == "write"
            session.rename(1, b"b", 1, b"a", 0, KERNEL)
            await put(session, "b", b"new")
            await trio.sleep(60)
            assert shelf.contents == {"/b": b"new"}
            if is_deleted:
                session.unlink(1, b"b", KERNEL)
            raise Crash
    shelf.fault, shelf.lost = lambda operation, path: None, lambda operation, path: False
    async with opened(tmp_path, shelf, ONE_BY_ONE) as session:
        assert (await session.sync()).pending == 0
        assert shelf.contents == {"/a": b"precious"} if is_deleted else {"/a": b"precious", "/b": b"new"}
        assert await content(session, "a") == b"precious"


class Plain(BigShelf):
    """No versions, no conditions."""

    def _check(self, path: str, context: Any) -> None:
        pass

    def ref(self, path: str) -> FileRef:
        return msgspec.structs.replace(super().ref(path), version=None)

    async def on_write(self, scope: object, path: str, content: bytes, context: Any) -> Any:
        await super().on_write(scope, path, content, context)

    async def on_move(self, scope: object, old: str, new: str, context: Any) -> Any:
        await super().on_move(scope, old, new, context)


@pytest.mark.parametrize("kind", [BigShelf, Plain])
@pytest.mark.parametrize("is_over_another", [False, True])
@pytest.mark.parametrize("then", ["stays", "is renamed again", "is renamed again, and its name taken"])
async def test_what_a_move_took_before_its_answer_was_lost_is_found(
    tmp_path: Path, autojump_clock: MockClock, kind: type[Shelf], is_over_another: bool, then: str
) -> None:
    shelf = kind()

    def fault(operation: str, path: str) -> None:
        if "/b" in shelf.contents and shelf.contents["/b"] == b"precious":
            raise ConnectionResetError(104, "reset")

    expected = {"/c": b"new", "/b" if then == "stays" else "/d": b"precious"}
    with pytest.raises(Crash):
        async with opened(tmp_path, shelf, ONE_BY_ONE) as session:
            if is_over_another:
                await put(session, "b", b"old")
            await put(session, "c", b"precious")
            await session.sync()
            session.cache.trim(0)
            shelf.fault, shelf.lost = fault, lambda operation, path: operation == "move"
            session.rename(1, b"c", 1, b"b", 0, KERNEL)
            await trio.sleep(60)
            assert shelf.contents == {"/b": b"precious"}
            await put(session, "c", b"new")
            if then != "stays":
                session.rename(1, b"b", 1, b"d", 0, KERNEL)
            if then == "is renamed again, and its name taken":
                await put(session, "b", b"other")
                expected["/b"] = b"other"
            raise Crash
    shelf.fault, shelf.lost = lambda operation, path: None, lambda operation, path: False
    async with opened(tmp_path, shelf, ONE_BY_ONE) as session:
        assert (await session.sync()).pending == 0
        assert shelf.contents == expected
        assert names(session) == [path[1:] for path in sorted(expected)]
        assert {f"/{name}": await content(session, name) for name in names(session)} == expected


async def test_what_others_deleted_is_not_taken_for_moved_over_what_is_at_its_new_name(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Plain()
    async with opened(tmp_path, shelf) as session:
        await put(session, "b", b"old file")
        await put(session, "c", b"precious")
        await session.sync()
        session.cache.trim(0)
        del shelf.files["/c"]
        session.rename(1, b"c", 1, b"b", 0, KERNEL)
        assert (await session.sync()).pending == 0
        assert names(session) == [] and shelf.contents == {}


@pytest.mark.parametrize("kind", [Shelf, BigShelf, Ledger])
async def test_what_others_deleted_before_it_was_fetched_goes_under_its_new_name(
    tmp_path: Path, autojump_clock: MockClock, kind: type[Shelf]
) -> None:
    shelf = kind()
    shelf.put("/a", b"theirs")
    async with opened(tmp_path, shelf) as session:
        del shelf.files["/a"]
        session.rename(1, b"a", 1, b"b", 0, KERNEL)
        with trio.fail_after(60):
            assert (await session.sync()).pending == 0
        assert names(session) == [] and shelf.contents == {}


@pytest.mark.parametrize("kind", [Shelf, BigShelf, Ledger])
async def test_what_others_deleted_under_one_name_stays_under_the_other(
    tmp_path: Path, autojump_clock: MockClock, kind: type[Shelf]
) -> None:
    shelf = kind()
    async with opened(tmp_path, shelf) as session:
        ino = await put(session, "a", b"precious")
        session.link(ino, 1, b"b", KERNEL)
        await session.sync()
        session.cache.trim(0)
        del shelf.files["/a"]
        session.rename(1, b"a", 1, b"c", 0, KERNEL)
        with trio.fail_after(60):
            assert (await session.sync()).pending == 0
        assert shelf.contents == {"/b": b"precious", "/c": b"precious"}
        assert await content(session, "b") == b"precious"


async def test_what_was_written_here_stays_where_others_deleted_the_rest_before_it_was_fetched(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = BigShelf()
    shelf.put("/a", b"x" * (2 * BLOCK))
    async with opened(tmp_path, shelf) as session:
        del shelf.files["/a"]
        await session.write(session.at(b"a").ino, 0, b"y" * BLOCK)
        with trio.fail_after(60):
            assert (await session.sync()).pending == 0
        assert shelf.contents == {"/a": b"y" * BLOCK + bytes(BLOCK)}


async def test_a_file_whose_content_is_nowhere_goes(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = BigShelf()
    shelf.put("/a", b"theirs")
    async with opened(tmp_path, shelf) as session:
        session.commit(Removed(b"a"))
        session.rename(1, b"a", 1, b"b", 0, KERNEL)
        with trio.fail_after(60):
            assert (await session.sync()).pending == 0
        assert names(session) == []


async def test_a_receipt_does_not_name_what_a_move_took(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = BigShelf()
    async with opened(tmp_path, shelf, ONE_BY_ONE) as session:
        await put(session, "c", b"precious")
        await trio.sleep(60)
        session.cache.trim(0)
        shelf.lost = lambda operation, path: operation == "move"
        session.rename(1, b"c", 1, b"b", 0, KERNEL)
        await trio.sleep(1)
        assert shelf.contents == {"/b": b"precious"}
        shelf.lost = lambda operation, path: False
        session.rename(1, b"b", 1, b"d", 0, KERNEL)
        receipt = await session.sync()
        assert shelf.contents == {"/d": b"precious"}
        assert list(receipt.stored) == ["d"] and receipt.stored["d"].version == shelf.files["/d"][1]


async def test_what_may_have_been_replaced_there_is_not_given_up_here(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = BigShelf()

    def fault(operation: str, path: str) -> None:
        if (operation, path) != ("write", "/b"):
            raise ConnectionResetError(104, "reset")

    async with opened(tmp_path, shelf, local_only=("kept",)) as session:
        ino = await put(session, "b", b"precious")
        await session.sync()
        shelf.fault, shelf.lost = fault, lambda operation, path: True
        session.rename(1, b"b", 1, b"kept", 0, KERNEL)
        await put(session, "b", b"new")
        await trio.sleep(60)
        assert shelf.contents == {"/b": b"new"}
        session.cache.trim(0)
        assert not session.namespace.inode(ino).remote
        shelf.fault, shelf.lost = lambda operation, path: None, lambda operation, path: False
        assert (await session.sync()).pending == 0
        assert await content(session, "kept") == b"precious"


async def test_a_program_that_has_the_file_open_goes_on_with_its_own(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    async with opened(tmp_path, shelf) as session:
        ino = await put(session, "a", b"base")
        await session.sync()
        await session.open_file(ino, os.O_RDWR, KERNEL)
        shelf.put("/a", b"theirs")
        await session.write(ino, 0, b"mine")
        await session.sync()
        await session.write(ino, 4, b" more")
        session.release(ino)
        await session.sync()
        assert shelf.contents == {"/a": b"theirs", "/a.conflict-s-1": b"mine more"}


async def test_a_crash_in_the_middle_of_a_conflict_loses_neither(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf()

    def crash(*arguments: object) -> None:
        raise Crash

    with pytest.raises(Crash):
        async with opened(tmp_path, shelf) as session:
            ino = await put(session, "a", b"base")
            await session.sync()
            shelf.put("/a", b"theirs")
            await session.write(ino, 0, b"ours")
            monkeypatch.setattr("vfs.conflict.adopt", crash)
            await session.sync(within=1)
            raise Crash
    monkeypatch.undo()
    async with opened(tmp_path, shelf) as session:
        assert (await session.sync()).pending == 0
        assert shelf.contents == {"/a": b"theirs", "/a.conflict-s-1": b"ours"}
        assert names(session) == ["a", "a.conflict-s-1"]


def test_a_conflicts_name_fits_into_a_directory() -> None:
    name = conflict_name(b"x" * 255, "session", 12)
    assert len(name) == 255
    assert name.endswith(b".conflict-session-12")
    assert conflict_name("é".encode() * 127, "session", 12).decode().endswith("é.conflict-session-12")


@pytest.mark.parametrize("becomes", ["moved", "deleted"])
async def test_what_an_upload_without_an_answer_left_is_deleted_where_nobody_wants_it_any_more(
    tmp_path: Path, autojump_clock: MockClock, becomes: str
) -> None:
    shelf = BigShelf()
    async with opened(tmp_path, shelf) as session:
        folder = session.mkdir(1, b"d", 0o755, KERNEL).ino
        await put(session, "d/a", b"ours")
        await _upload_without_answer(shelf, "/d/a")
        if becomes == "moved":
            session.rename(1, b"d", 1, b"e", 0, KERNEL)
        else:
            session.unlink(folder, b"a", KERNEL)
        assert (await session.sync()).pending == 0
        assert shelf.contents == ({"/e/a": b"ours"} if becomes == "moved" else {})
        assert not session.namespace.remote.attempts


async def test_what_someone_else_put_where_an_upload_was_tried_stays_and_comes_into_the_session(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = BigShelf()
    async with opened(tmp_path, shelf) as session:
        await put(session, "a", b"ours")
        await _upload_without_answer(shelf, "/a")
        shelf.put("/a", b"theirs")
        session.unlink(1, b"a", KERNEL)
        assert (await session.sync()).pending == 0
        await session.refresh()
        assert shelf.contents == {"/a": b"theirs"}
        assert await content(session, "a") == b"theirs"


async def _upload_without_answer(shelf: Shelf, path: str) -> None:
    shelf.lost = lambda operation, _: operation == "write"
    with trio.fail_after(60):
        while path not in shelf.contents or shelf.at_once:  # noqa: ASYNC110 - the shelf tells nobody
            await trio.sleep(0.01)
    shelf.lost = lambda operation, _: False
