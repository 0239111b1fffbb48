"""What others do in the persistence appears in the session, and nothing of ours is touched by it."""

from __future__ import annotations

import errno
import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock

from tests.vfs.shelf import BigShelf, Crash, Shelf, content, put, routes
from vfs.callbacks import Context
from vfs.fileref import FileRef
from vfs.options import Options
from vfs.persistence import Persistence
from vfs.routes import Route, Routes
from vfs.rules import Changes
from vfs.session import Session
from vfs.tree import KERNEL


def opened(tmp_path: Path, target: object, options: Options | None = None, **policy: Any) -> Any:
    return Session.open("s", tmp_path, routes=routes(target, **policy), options=options)


def names(session: Any, path: bytes = b"") -> list[str]:
    return sorted(os.fsdecode(name) for name in session.namespace.walk(path).entries)


async def test_what_the_persistence_holds_is_there_at_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    shelf.put("/a", b"one")
    shelf.put("/d/e/b", b"three")
    shelf.put("/empty", b"")
    async with opened(tmp_path, shelf) as session:
        assert names(session) == ["a", "d", "empty"]
        assert names(session, b"d/e") == ["b"]
        assert [session.namespace.walk(path).size for path in (b"a", b"d/e/b", b"empty")] == [3, 5, 0]
        assert [operation for operation, _ in shelf.log] == ["list"]
        assert await content(session, "d/e/b") == b"three"
        assert await content(session, "empty") == b""
        assert (await session.sync()).pending == 0
        assert "write" not in [operation for operation, _ in shelf.log]


class Library:
    """Fifty thousand files that are only listed."""

    async_library = "trio"

    async def on_list(self, scope: object, context: Context) -> list[FileRef]:
        made = datetime.now(UTC)
        return [FileRef(path=f"/{n % 100}/{n}", size=n, version="1", created_at=made) for n in range(50_000)]

    async def on_read(self, scope: object, path: str, context: Context) -> bytes:
        raise AssertionError("nobody asked for content")


async def test_fifty_thousand_files_are_there_within_two_seconds_of_their_listing(tmp_path: Path) -> None:
    library = Library()
    began = time.process_time()
    await Persistence(library).list()
    listing = time.process_time() - began
    began = time.process_time()
    async with opened(tmp_path, library) as session:
        took = time.process_time() - began - listing
        assert session.namespace.walk(b"99/49999").size == 49_999
        assert session.receipt().pending == 0
    assert took < 2
    async with opened(tmp_path, library) as session:
        assert session.namespace.walk(b"99/49999").size == 49_999


async def test_a_refresh_brings_what_is_new_changed_and_gone(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    shelf.put("/changes", b"old")
    shelf.put("/goes", b"x")
    async with opened(tmp_path, shelf) as session:
        told: list[Any] = []
        session.invalidate = lambda names, inos: told.append((names, inos))
        assert await content(session, "changes") == b"old"
        changed = session.namespace.walk(b"changes").ino
        shelf.put("/changes", b"newer")
        shelf.put("/d/new", b"n")
        del shelf.files["/goes"]
        result = await session.refresh()
        assert (result.new, result.changed, result.gone) == (1, 1, 1)
        assert names(session) == ["changes", "d"]
        assert await content(session, "changes") == b"newer"
        assert await content(session, "d/new") == b"n"
        assert ([], [changed]) in told
        assert ([(1, b"goes")], []) in told
        assert any((1, b"d") in names for names, _ in told)


async def test_a_receipt_says_nothing_of_what_others_have_overwritten_or_deleted(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = BigShelf()
    async with opened(tmp_path, shelf) as session:
        for name in ("kept", "theirs", "gone"):
            await put(session, name, b"ours")
        await trio.sleep(1)
        assert len(shelf.contents) == 3
        shelf.put("/theirs", b"theirs")
        del shelf.files["/gone"]
        await session.refresh()
        assert set((await session.sync()).stored) == {"kept"}


async def test_what_others_write_under_one_name_of_a_file_goes_to_its_others(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = BigShelf()
    async with opened(tmp_path, shelf) as session:
        ino = await put(session, "a", b"base")
        session.link(ino, 1, b"b", KERNEL)
        await session.sync()
        shelf.put("/a", b"theirs")
        await session.refresh()
        assert (await session.sync()).pending == 0
        assert await content(session, "b") == b"theirs"
        assert shelf.contents == {"/a": b"theirs", "/b": b"theirs"}


async def test_others_changes_appear_within_the_interval(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    async with opened(tmp_path, shelf, Options(refresh_interval=30)) as session:
        await trio.sleep(1)
        shelf.put("/a", b"x")
        await trio.sleep(31)
        assert names(session) == ["a"]
        session.apply(session.policy.changed({"refresh_seconds": 5}))
        shelf.put("/b", b"x")
        await trio.sleep(6)
        assert names(session) == ["a", "b"]
        session.apply(session.policy.changed({"refresh_seconds": 0}))
        shelf.put("/c", b"x")
        await trio.sleep(1000)
        assert names(session) == ["a", "b"]


async def test_a_dirty_file_is_left_alone(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    shelf.put("/edited", b"old")
    shelf.put("/deleted", b"old")
    async with opened(tmp_path, shelf, debounce=50, max_wait=100) as session:
        shelf.fault = lambda operation, path: _refuse() if operation in ("write", "delete") else None
        ino = session.namespace.walk(b"edited").ino
        await session.write(ino, 0, b"mine")
        await put(session, "new", b"mine")
        session.unlink(1, b"deleted", KERNEL)
        del shelf.files["/edited"]
        result = await session.refresh()
        assert (result.new, result.changed, result.gone) == (0, 0, 0)
        assert names(session) == ["edited", "new"]
        assert await content(session, "edited") == b"mine"
        shelf.fault = lambda operation, path: None
        await session.sync()
        assert shelf.contents == {"/edited": b"mine", "/new": b"mine"}


def _refuse() -> None:
    raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")


async def test_a_listing_that_is_older_than_an_upload_undoes_nothing(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    async with opened(tmp_path, shelf) as session:
        await trio.sleep(1)
        listed = [shelf.ref(path) for path in shelf.files]

        async def on_list(scope: object, context: Context) -> list[FileRef]:
            await put(session, "a", b"written while the listing was on its way")
            await trio.sleep(5)
            return listed

        session.routes.root.route.persistence._caller._functions["on_list"] = on_list
        await session.refresh()
        assert names(session) == ["a"]
        assert shelf.contents.keys() == {"/a"}


@pytest.mark.parametrize("kind", [Shelf, BigShelf])
@pytest.mark.parametrize("then", ["renamed", "linked"])
async def test_what_is_gone_there_and_was_only_there_is_gone_under_its_new_name_too(
    tmp_path: Path, autojump_clock: MockClock, kind: type[Shelf], then: str
) -> None:
    shelf = kind()
    shelf.put("/a", b"theirs")
    async with opened(tmp_path, shelf, Options(refresh_interval=None)) as session:
        await session.sync()
        del shelf.files["/a"]
        if then == "renamed":
            session.rename(1, b"a", 1, b"b", 0, KERNEL)
        else:
            session.link(session.at(b"a").ino, 1, b"b", KERNEL)
        await session.refresh()  # before write-back has looked
        with trio.fail_after(60):
            assert (await session.sync()).pending == 0
        assert names(session) == [] and shelf.contents == {}


async def test_bare_paths_get_their_sizes_when_they_are_looked_at(tmp_path: Path, autojump_clock: MockClock) -> None:
    class Bare(Shelf):
        async def on_list(self, scope: object, context: Context) -> list[str]:  # type: ignore[override]
            self.log.append(("list", ""))
            return [path.removeprefix("/") for path in self.files]

    shelf = Bare()
    shelf.put("/a", b"four")
    shelf.put("/b", b"x" * 1000)
    async with opened(tmp_path, shelf) as session:
        assert [operation for operation, _ in shelf.log] == ["list"]
        inode = session.namespace.walk(b"a")
        await session.settle(inode)
        assert inode.size == 4
        assert await content(session, "a") == b"four"
        assert [operation for operation, _ in shelf.log] == ["list", "read"]
        ino = session.namespace.walk(b"b").ino
        await session.write(ino, 998, b"yyyy")
        await session.sync()
        assert shelf.contents["/b"] == b"x" * 998 + b"yyyy"
        shelf.put("/a", b"changed")
        await session.refresh()
        await session.settle(session.namespace.walk(b"a"))
        assert await content(session, "a") == b"changed"


async def test_a_persistence_without_versions_shows_changes_by_size_or_mtime(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    class Dated(Shelf):
        def ref(self, path: str) -> FileRef:
            text, version = self.files[path]
            return FileRef(path=path, size=len(text), mtime_ns=int(version[1:]), created_at=datetime.now(UTC))

        def _check(self, path: str, context: Context) -> None:
            pass

    shelf = Dated()
    shelf.put("/a", b"one")
    async with opened(tmp_path, shelf) as session:
        assert await content(session, "a") == b"one"
        shelf.put("/a", b"two")
        assert (await session.refresh()).changed == 1
        assert await content(session, "a") == b"two"
        assert (await session.refresh()).changed == 0


async def test_a_name_that_is_a_directory_here_is_refused_and_named(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    async with opened(tmp_path, shelf) as session:
        session.mkdir(1, b"d", 0o755, KERNEL)
        shelf.put("/d", b"a file")
        shelf.put("/ok", b"x")
        assert (await session.refresh()).new == 1
        assert session.listing.refused.keys() == {"d"}


async def test_a_session_without_anything_fails_to_open_where_it_cannot_list(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Shelf()
    shelf.put("/a", b"x")
    shelf.fault = lambda operation, path: _refuse()
    with pytest.raises(ConnectionRefusedError):
        async with opened(tmp_path, shelf):
            pass
    shelf.fault = lambda operation, path: None
    async with opened(tmp_path, shelf):
        pass
    shelf.fault = lambda operation, path: _refuse()
    async with opened(tmp_path, shelf) as session:
        assert names(session) == ["a"]


async def test_what_is_hidden_or_local_only_is_not_taken_from_there(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    shelf.put("/cache/x", b"theirs")
    shelf.put("/.env", b"secret")
    shelf.put("/a", b"x")
    async with opened(tmp_path, shelf, local_only=["cache"], hidden=[".env"]) as session:
        assert names(session) == ["a"]
        await put(session, "cache/x", b"mine")
        await session.sync()
        await session.refresh()
        assert await content(session, "cache/x") == b"mine"
        assert shelf.contents == {"/cache/x": b"theirs", "/.env": b"secret", "/a": b"x"}


async def test_routes_have_a_persistence_each_and_a_file_can_move_between_them(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    one, two = BigShelf(), Shelf()
    one.put("/a", b"in one")
    two.put("/data/b", b"in two")
    both = Routes(
        [
            Route("", Persistence(one, name="one")),
            Route("data", Persistence(two, name="two", base_directory="data")),
        ]
    )
    async with Session.open("s", tmp_path, routes=both) as session:
        assert names(session) == ["a", "data"]
        data = session.lookup(1, b"data").ino
        assert await content(session, "data/b") == b"in two"
        session.rename(1, b"a", data, b"a", 0, KERNEL)
        assert (await session.sync()).pending == 0
        assert one.contents == {}
        assert two.contents == {"/data/a": b"in one", "/data/b": b"in two"}
        session.mkdir(1, b"dir", 0o755, KERNEL)
        with pytest.raises(OSError) as caught:
            session.rename(1, b"dir", data, b"dir", 0, KERNEL)
        assert caught.value.errno == errno.EXDEV
        with pytest.raises(OSError) as caught:
            session.rename(1, b"data", 1, b"elsewhere", 0, KERNEL)
        assert caught.value.errno == errno.EXDEV


async def test_a_read_only_route_is_read_only(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    shelf.put("/ro/a", b"x")
    only = Routes([Route("ro", Persistence(shelf, name="ro", base_directory="ro"), read_only=True)])
    async with Session.open("s", tmp_path, routes=only) as session:
        directory, ino = session.namespace.walk(b"ro").ino, session.namespace.walk(b"ro/a").ino
        assert await content(session, "ro/a") == b"x"
        await put(session, "elsewhere", b"fine")
        elsewhere = session.lookup(1, b"elsewhere").ino
        for change in (
            lambda: session.mkdir(directory, b"d", 0o755, KERNEL),
            lambda: session.unlink(directory, b"a", KERNEL),
            lambda: session.rename(1, b"elsewhere", directory, b"b", 0, KERNEL),
            lambda: session.rename(directory, b"a", 1, b"b", 0, KERNEL),
            lambda: session.link(elsewhere, directory, b"l", KERNEL),
            lambda: session.setxattr(ino, b"user.x", b"1", KERNEL),
        ):
            with pytest.raises(OSError) as caught:
                change()
            assert caught.value.errno == errno.EROFS
        for act in (session.write(ino, 0, b"y"), session.setattr(ino, Changes(mode=0o600), KERNEL)):
            with pytest.raises(OSError) as caught:
                await act
            assert caught.value.errno == errno.EROFS


async def test_a_hidden_name_does_not_exist(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with opened(tmp_path, Shelf(), hidden=["secret", "*.key"]) as session:
        with pytest.raises(FileNotFoundError):
            session.lookup(1, b"secret")
        with pytest.raises(FileNotFoundError):
            session.mkdir(1, b"secret", 0o755, KERNEL)
        with pytest.raises(FileNotFoundError):
            session.create(1, b"a.key", 0o644, KERNEL)


async def test_metadata_from_the_persistence_is_visible_as_xattrs(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    shelf.put("/a", b"x")
    shelf.ref = lambda path: msgspec.structs.replace(Shelf.ref(shelf, path), metadata={"title": "A"})  # type: ignore[method-assign]
    async with opened(tmp_path, shelf) as session:
        ino = session.namespace.walk(b"a").ino
        assert session.getxattr(ino, b"user.title") == b"A"
        assert session.listxattr(ino) == [b"user.title"]
        await session.write(ino, 0, b"y")
        await session.sync()
        assert shelf.contexts["/a"]["metadata"] == {"title": "A"}


async def test_a_file_that_went_while_its_session_was_down_is_gone_and_an_edited_one_is_not(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Shelf()
    with pytest.raises(Crash):
        async with opened(tmp_path, shelf, debounce=50, max_wait=100) as session:
            await put(session, "clean", b"1")
            ino = await put(session, "edited", b"1")
            await session.sync()
            await session.write(ino, 0, b"2")
            raise Crash
    shelf.files.clear()
    async with opened(tmp_path, shelf) as session:
        assert names(session) == ["edited"]
        await session.sync()
        assert shelf.contents == {"/edited": b"2"}


async def test_what_cannot_be_listed_is_asked_for_by_name(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    shelf.put("/a", b"by name")
    without = {"on_read": shelf.on_read, "on_write": shelf.on_write, "on_delete": shelf.on_delete}
    async with opened(tmp_path, without) as session:
        assert names(session) == []
        assert await session.find(1, b"nothing") is None
        inode = await session.find(1, b"a")
        assert (inode.size, await content(session, "a")) == (7, b"by name")
        session.unlink(1, b"a", KERNEL)
        assert await session.find(1, b"a") is None
        await session.sync()
        assert shelf.contents == {}


async def test_the_next_worker_of_a_mount_does_not_wait_for_a_listing(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Shelf()
    async with opened(tmp_path, shelf) as session:
        await put(session, "a", b"x")
    shelf.put("/b", b"theirs")
    shelf.delay = lambda: 10.0
    began = trio.current_time()
    async with Session.open("s", tmp_path, routes=routes(shelf), adopted=True) as session:
        assert trio.current_time() - began < 1
        assert names(session) == ["a"]
        await trio.sleep(21)
        assert names(session) == ["a", "b"]
