"""The example is a complete integrator: on SQLite and on a real PostgreSQL it keeps every promise of the contract."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import trio
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session

from examples.database import PIECE, DatabaseFiles, File, Piece
from tests.postgres import Postgres
from vfs.callbacks import Change
from vfs.errors import Conflict
from vfs.fileref import FileRef
from vfs.persistence import Persistence

ALICE, BOB = {"user": "alice"}, {"user": "bob"}


def of(database: DatabaseFiles, user: object = ALICE) -> Persistence:
    return Persistence(database, user)


def count(database: DatabaseFiles, table: type[File] | type[Piece]) -> int | None:
    with Session(database.engine) as db:
        return db.scalar(select(func.count()).select_from(table))


async def raised(call: Callable[..., Any], *arguments: object) -> OSError:
    with pytest.raises(OSError) as caught:
        await call(*arguments)
    return caught.value


async def test_two_users_with_the_same_paths_never_see_each_others_files(database: DatabaseFiles) -> None:
    alice, bob = of(database), of(database, BOB)
    await alice.write("notes/a.md", b"alice's", {"if_version": None})
    assert await bob.list() == []
    for call in (bob.stat, bob.read):
        assert (await raised(call, "notes/a.md")).errno == errno.ENOENT
    await bob.delete("notes/a.md")
    assert (await raised(bob.move, "notes/a.md", "b")).errno == errno.ENOENT
    theirs = await bob.write("notes/a.md", b"bob's own", {"if_version": None})
    [mine] = await alice.list()
    assert await alice.read("notes/a.md") == b"alice's"
    assert await bob.read("notes/a.md") == b"bob's own"
    assert isinstance(await raised(alice.write, "notes/a.md", b"", {"if_version": theirs.version}), Conflict)
    await alice.delete("notes/a.md", {"if_version": mine.version})
    assert await bob.read("notes/a.md") == b"bob's own"


async def test_what_was_written_is_listed_with_all_that_is_known(database: DatabaseFiles) -> None:
    files = of(database)
    content = b"# hello"
    written = await files.write("x.md", content, {"content_type": "text/markdown", "mode": 0o640, "mtime_ns": 123})
    [listed] = await files.list()
    assert listed == written == await files.stat("x.md")
    assert (listed.size, listed.content_type, listed.mode, listed.mtime_ns) == (7, "text/markdown", 0o640, 123)
    assert listed.checksum == hashlib.sha256(content).hexdigest()
    assert listed.metadata["id"].isdecimal()


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5])
async def test_content_of_any_size_comes_back_whole_and_by_ranges(database: DatabaseFiles, size: int) -> None:
    files = of(database)
    content = os.urandom(size)
    assert (await files.write_file("x", io.BytesIO(content))).size == size
    assert await files.read("x") == content
    for offset, length in ((0, 10), (PIECE - 3, 7), (PIECE, PIECE), (size, 5), (max(0, size - 2), 9), (0, size + 1)):
        assert await files.read_range("x", offset, length) == content[offset : offset + length]
    assert count(database, Piece) == -(-size // PIECE)


async def test_a_write_goes_through_only_on_the_version_that_it_knows(database: DatabaseFiles) -> None:
    files = of(database)
    first = await files.write("x", b"1", {"if_version": None})
    assert isinstance(await raised(files.write, "x", b"2", {"if_version": None}), Conflict)
    second = await files.write("x", b"2", {"if_version": first.version})
    for version in (first.version, "nonsense"):
        error = await raised(files.write, "x", b"3", {"if_version": version})
        assert isinstance(error, Conflict) and error.found == second.version
        assert isinstance(await raised(files.delete, "x", {"if_version": version}), Conflict)
        assert isinstance(await raised(files.move, "x", "y", {"if_version": version}), Conflict)
        assert isinstance(await raised(files.read, "x", {"if_version": version}), Conflict)
        assert isinstance(await raised(files.read_range, "x", 0, 1, {"if_version": version}), Conflict)
    assert await files.read("x", {"if_version": second.version}) == b"2"
    await files.delete("x", {"if_version": second.version})
    assert isinstance(await raised(files.write, "x", b"4", {"if_version": second.version}), Conflict)
    again = await files.write("x", b"1", {"if_version": None})
    assert again.version not in (first.version, second.version)
    assert count(database, Piece) == 1


@pytest.mark.parametrize("exists", [True, False])
async def test_of_writers_at_the_same_time_one_wins(database: DatabaseFiles, exists: bool) -> None:
    files = of(database)
    version = (await files.write("x", b"0")).version if exists else None
    won: list[bytes] = []

    async def write(content: bytes) -> None:
        try:
            await files.write("x", content, {"if_version": version})
        except Conflict:
            return
        won.append(content)

    async with trio.open_nursery() as nursery:
        for n in range(8):
            nursery.start_soon(write, b"%d" % n)
    assert len(won) == 1
    assert await files.read("x") == won[0]


async def test_a_writer_waits_for_one_that_was_first_and_then_sees_its_version(postgres: Postgres) -> None:
    database = DatabaseFiles(postgres.url)
    files = of(database)
    version = (await files.write("contended", b"0")).version
    looked, go_on = threading.Event(), threading.Event()

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            looked.set()
            go_on.wait()
            return super().read(size)

    results: list[object] = []

    async def write(content: io.BytesIO) -> None:
        try:
            results.append(await files.write_file("contended", content, {"if_version": version}))
        except Conflict as e:
            results.append(e)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write, Slow(b"first"))
        assert await trio.to_thread.run_sync(looked.wait, 10)
        nursery.start_soon(write, io.BytesIO(b"second"))
        try:
            with trio.fail_after(10):
                while not (results or waiting(database)):  # noqa: ASYNC110 - the server tells nobody
                    await trio.sleep(0.01)
        finally:
            go_on.set()
    assert [type(result) for result in results] == [FileRef, Conflict]
    assert await files.read("contended") == b"first"
    database.engine.dispose()


def waiting(database: DatabaseFiles) -> bool:
    """Whether a connection waits for another one's lock."""
    with database.engine.begin() as connection:
        found = connection.execute(text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"))
        return bool(found.scalar())


async def test_a_move_replaces_and_keeps_the_content(database: DatabaseFiles) -> None:
    files = of(database)
    old = await files.write("a", b"content")
    await files.write("b", b"replaced")
    moved = await files.move("a", "b", {"if_version": old.version})
    assert moved.path == "b"
    assert await files.read("b") == b"content"
    assert [ref.path for ref in await files.list()] == ["b"]
    assert (await files.move("b", "b")).size == 7
    assert count(database, Piece) == 1


async def test_a_batch_is_all_or_nothing(database: DatabaseFiles) -> None:
    files = of(database)
    old = await files.write("old", b"old")
    await files.write("gone", b"gone")
    one, two, none = await files.commit(
        [
            Change("write", "new", {"if_version": None}, file=io.BytesIO(b"new")),
            Change("move", "moved", {"if_version": old.version}, source="old"),
            Change("delete", "gone", {}),
        ]
    )
    assert one and two and none is None
    assert {ref.path: ref.version for ref in await files.list()} == {"new": one.version, "moved": two.version}
    error = await raised(
        files.commit,
        [
            Change("write", "more", {"if_version": None}, file=io.BytesIO(b"more")),
            Change("delete", "new", {}),
            Change("write", "moved", {"if_version": "stale"}, file=io.BytesIO(b"x")),
        ],
    )
    assert isinstance(error, Conflict)
    assert {ref.path for ref in await files.list()} == {"new", "moved"}


async def test_any_name_is_kept_byte_for_byte(database: DatabaseFiles) -> None:
    files = of(database)
    names = [os.fsdecode(b"caf\xe9/\xff\xfe"), "100%", "%41", "a\\b'\"", "ü/\u2028", "x" * 255]
    for name in names:
        await files.write(name, b"")
    assert {ref.path for ref in await files.list()} == set(names)
    assert (await raised(files.write, "x/" * 1500 + "x", b"")).errno == errno.ENAMETOOLONG


async def test_a_killed_database_is_an_error_until_it_is_back(
    postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    database = DatabaseFiles(postgres.url)
    files = of(database)
    await files.write("kept", b"kept")
    postgres.kill()
    try:
        for _ in range(2):
            assert (await raised(files.read, "kept")).errno == errno.EIO
            assert (await raised(files.write, "lost", b"")).errno == errno.EIO
        assert not [record for record in caplog.records if record.exc_info], "no traceback for a database that is down"
    finally:
        postgres.start()
    assert await files.read("kept") == b"kept"
    await files.write("more", b"")
    postgres.kill()
    postgres.start()
    assert await files.read("kept") == b"kept", "connections from before are not used"
    database.engine.dispose()
