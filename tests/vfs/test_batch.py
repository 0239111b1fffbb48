"""With an `on_commit` what is pending goes out in whole batches, each all or nothing."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import trio
from trio.testing import MockClock

from tests.vfs.shelf import BigShelf, Ledger, put, routes
from vfs.options import Options
from vfs.session import Session
from vfs.tree import KERNEL


def opened(tmp_path: Path, target: object) -> Any:
    return Session.open("s", tmp_path, routes=routes(target), options=Options(refresh_interval=None))


async def test_a_burst_of_files_is_one_transaction(tmp_path: Path, autojump_clock: MockClock) -> None:
    ledger = Ledger()
    async with opened(tmp_path, ledger) as session:
        for n in range(100):
            await put(session, f"d/{n}", b"%d" % n)
        receipt = await session.sync()
        assert (receipt.pending, len(receipt.stored)) == (0, 100)
        assert ledger.contents == {f"/d/{n}": b"%d" % n for n in range(100)}
        assert [operation for operation, _ in ledger.calls] == ["commit"]


async def test_a_renamed_directory_moves_in_one_transaction(tmp_path: Path, autojump_clock: MockClock) -> None:
    ledger = Ledger()
    async with opened(tmp_path, ledger) as session:
        for n in range(10):
            await put(session, f"old/{n}", b"%d" % n)
        await session.sync()
        ledger.log.clear()
        session.rename(1, b"old", 1, b"new", 0, KERNEL)
        assert (await session.sync()).pending == 0
        assert ledger.contents == {f"/new/{n}": b"%d" % n for n in range(10)}
        assert [operation for operation, _ in ledger.calls] == ["commit"]


async def test_one_file_that_is_refused_does_not_hold_up_the_others(tmp_path: Path, autojump_clock: MockClock) -> None:
    ledger = Ledger()

    def fault(operation: str, path: str) -> None:
        if "/bad" in path:
            raise PermissionError(errno.EACCES, "no")

    ledger.fault = fault
    async with opened(tmp_path, ledger) as session:
        for name in ("a", "bad", "c"):
            await put(session, name, b"x")
        receipt = await session.sync()
        assert receipt.pending == 1
        assert ledger.contents.keys() == {"/a", "/c"}
        ledger.fault = lambda operation, path: None
        assert (await session.sync()).pending == 0
        assert ledger.contents.keys() == {"/a", "/bad", "/c"}


async def test_a_conflict_in_a_batch_keeps_both_and_brings_the_rest(tmp_path: Path, autojump_clock: MockClock) -> None:
    ledger = Ledger()
    async with opened(tmp_path, ledger) as session:
        await put(session, "a", b"base")
        await session.sync()
        ledger.put("/a", b"theirs")
        await put(session, "a", b"ours")
        await put(session, "b", b"b")
        assert (await session.sync()).pending == 0
        assert ledger.contents == {"/a": b"theirs", "/a.conflict-s-1": b"ours", "/b": b"b"}


class Complete(BigShelf, Ledger):
    """Every callback there is."""


async def test_a_rename_whose_answer_was_lost_ends_in_one_more_look(tmp_path: Path, autojump_clock: MockClock) -> None:
    """The two paths of a rename once claimed each other in turns, for ever, at full speed."""
    shelf = Complete()

    def fault(operation: str, path: str) -> None:
        if len(shelf.calls) > 10:
            raise OSError(errno.EIO, "enough")

    shelf.fault = fault
    async with opened(tmp_path, shelf) as session:
        for n in range(30):  # trio shuffles its tasks: it took the right order
            await put(session, f"old{n}", b"x")
            await session.sync()
            shelf.log.clear()
            shelf.lost = lambda operation, path: len(shelf.calls) == 1
            session.rename(1, f"old{n}".encode(), 1, f"new{n}".encode(), 0, KERNEL)
            with trio.fail_after(600):
                assert (await session.sync()).pending == 0
            assert f"/new{n}" in shelf.contents and f"/old{n}" not in shelf.contents
