"""A session on a real database: what is written is rows within the debounce, whatever happens to the database."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from sqlalchemy import select
from sqlalchemy.orm import Session as Transaction

from examples.database import DatabaseFiles, File, Piece
from tests.postgres import Postgres
from tests.vfs.shelf import content, put
from vfs.persistence import Persistence
from vfs.routes import Route, Routes
from vfs.session import Session
from vfs.tree import KERNEL

ALICE, BOB = {"user": "alice"}, {"user": "bob"}


def rows(database: DatabaseFiles) -> dict[tuple[str, str], bytes]:
    """What any other program sees in the database: (owner, path) -> content."""
    with Transaction(database.engine) as db:
        return {
            (file.owner, file.path): b"".join(
                db.scalars(select(Piece.content).where(Piece.file_id == file.id).order_by(Piece.number))
            )
            for file in db.scalars(select(File))
        }


def opened(state: Path, database: DatabaseFiles, user: object = ALICE, session: str = "s", **policy: Any) -> Any:
    return Session.open(session, state, routes=Routes([Route("", Persistence(database, user), **policy)]))


async def until(condition: Callable[[], bool], seconds: float = 30) -> float:
    """Seconds until the condition held."""
    start = trio.current_time()
    with trio.fail_after(seconds):
        while not await trio.to_thread.run_sync(condition):  # noqa: ASYNC110 - a database tells nobody
            await trio.sleep(0.02)
    return trio.current_time() - start


async def test_what_a_session_writes_is_rows_within_the_debounce(database: DatabaseFiles, tmp_path: Path) -> None:
    async with opened(tmp_path, database, debounce=0.5, max_wait=2) as session:
        ino = await put(session, "src/main.py", b"print(1)\n")
        await until(lambda: rows(database) == {("alice", "/src/main.py"): b"print(1)\n"}, 2)
        await session.write(ino, 6, b"2")
        taken = await until(lambda: rows(database) == {("alice", "/src/main.py"): b"print(2)\n"}, 5)
        assert taken >= 0.4, "an edit waits for the debounce"
        session.rename(1, b"src", 1, b"lib", 0, KERNEL)
        await until(lambda: rows(database) == {("alice", "/lib/main.py"): b"print(2)\n"}, 5)
        session.unlink(session.lookup(1, b"lib").ino, b"main.py", KERNEL)
        await until(lambda: rows(database) == {}, 5)


async def test_two_sessions_of_two_users_keep_the_same_paths_apart(database: DatabaseFiles, tmp_path: Path) -> None:
    async with opened(tmp_path, database, ALICE, "a") as alice, opened(tmp_path, database, BOB, "b") as bob:
        await put(alice, "same", b"alice")
        await put(bob, "same", b"bob")
        for session in (alice, bob):
            assert (await session.sync()).pending == 0
        assert rows(database) == {("alice", "/same"): b"alice", ("bob", "/same"): b"bob"}
        alice.unlink(1, b"same", KERNEL)
        await alice.sync()
        assert await content(bob, "same") == b"bob"
        assert rows(database) == {("bob", "/same"): b"bob"}


async def test_a_row_that_another_program_changed_is_not_overwritten(database: DatabaseFiles, tmp_path: Path) -> None:
    async with opened(tmp_path, database) as session:
        ino = await put(session, "shared", b"ours")
        await session.sync()
        await Persistence(database, ALICE).write("shared", b"theirs")
        await session.write(ino, 0, b"OURS")
        await session.sync()
        found = rows(database)
    assert sorted(found.values()) == [b"OURS", b"theirs"], "both are kept"
    assert {path for _, path in found} > {"/shared"}


async def test_a_killed_database_stops_nobody_and_gets_all_when_it_is_back(
    postgres: Postgres, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = DatabaseFiles(postgres.url)
    with Transaction(database.engine) as db, db.begin():
        for file in db.scalars(select(File)):
            db.delete(file)
    state = tmp_path / "state"
    async with opened(state, database) as session:
        await put(session, "before", b"0")
        await session.sync()
        await trio.to_thread.run_sync(postgres.kill)
        try:
            for n in range(50):
                await put(session, f"d/{n}", b"%d" % n)
            session.rename(1, b"before", 1, b"after", 0, KERNEL)
            assert await content(session, "d/7") == b"7"
            await until(lambda: "not available" in str(session.receipt().reasons))
            assert session.receipt().pending >= 50
        finally:
            await trio.to_thread.run_sync(postgres.start)
        with trio.fail_after(120):
            receipt = await session.sync()
        assert receipt.pending == 0
        assert rows(database) == {("alice", "/after"): b"0"} | {("alice", f"/d/{n}"): b"%d" % n for n in range(50)}
    assert not [record for record in caplog.records if record.exc_info]
    database.engine.dispose()
