"""With an `on_commit` what is pending goes out in whole batches, each all or nothing; with an `on_write_many` small
files go out many at a time, each written or not."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.vfs.shelf import BigShelf, Crate, Desk, Ledger, Shelf, put, routes
from vfs.call import Caller
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


@pytest.mark.parametrize("kind", [BigShelf, Ledger])
async def test_a_receipt_names_a_file_that_was_stored_and_then_moved_where_it_is_only(
    tmp_path: Path, autojump_clock: MockClock, kind: type[Shelf]
) -> None:
    shelf = kind()
    async with opened(tmp_path, shelf) as session:
        await put(session, "old", b"x")
        await trio.sleep(20)
        assert shelf.contents == {"/old": b"x"}
        session.rename(1, b"old", 1, b"new", 0, KERNEL)
        receipt = await session.sync()
        assert shelf.calls[-1][0] in ("move", "commit") and list(receipt.stored) == ["new"]


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


def crated(tmp_path: Path, crate: Shelf, concurrency: int = 4) -> Any:
    options = Options(refresh_interval=None, concurrency=concurrency, max_concurrency=concurrency)
    return Session.open("s", tmp_path, routes=routes(crate), options=options)


async def test_small_files_go_many_at_a_time_where_more_wait_than_may_be_in_flight(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    crate = Crate()
    crate.delay = lambda: 0.01
    async with crated(tmp_path, crate) as session:
        for n in range(200):
            await put(session, f"d/{n}", b"%d" % n)
        receipt = await session.sync()
        assert (receipt.pending, len(receipt.stored), session.traffic.uploads) == (0, 200, 200)
        assert crate.contents == {f"/d/{n}": b"%d" % n for n in range(200)}
        assert max(came for came, _ in crate.crates) == 16
        assert sum(written for _, written in crate.crates) > 150, "the last few go one by one"
        assert crate.most_at_once == 4
        assert all(crate.files["/" + path][1] == stored.version for path, stored in receipt.stored.items())


async def test_a_few_files_do_not_wait_for_each_other(tmp_path: Path, autojump_clock: MockClock) -> None:
    crate = Crate()
    crate.delay = lambda: 1.0
    async with crated(tmp_path, crate, 8) as session:
        for n in range(8):
            await put(session, str(n), b"x")
        assert (await session.sync()).pending == 0
        assert (crate.crates, crate.most_at_once) == ([], 8)


async def test_what_is_not_small_or_may_be_moved_goes_alone(tmp_path: Path, autojump_clock: MockClock) -> None:
    crate = Crate()
    async with crated(tmp_path, crate, 1) as session:
        await put(session, "old", b"moved")
        await session.sync()
        crate.log.clear()
        session.rename(1, b"old", 1, b"new", 0, KERNEL)
        await put(session, "large", bytes((64 << 10) + 1))
        for n in range(10):
            await put(session, f"{n}", b"%d" % n)
        assert (await session.sync()).pending == 0
        assert ("move", "/old -> /new") in crate.calls
        assert 0 < sum(came for came, _ in crate.crates) <= 10
        small = {f"/{n}": b"%d" % n for n in range(10)}
        assert crate.contents == {"/new": b"moved", "/large": bytes((64 << 10) + 1), **small}


async def test_one_file_of_many_that_is_refused_or_in_conflict_does_not_hold_up_the_others(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    crate = Crate()

    def fault(operation: str, path: str) -> None:
        if path == "/3":
            raise PermissionError(errno.EACCES, "no")

    crate.fault = fault
    async with crated(tmp_path, crate, 1) as session:
        crate.put("/5", b"theirs")
        for n in range(12):
            await put(session, str(n), b"%d" % n)
        receipt = await session.sync()
        [reason] = receipt.reasons
        assert (reason.path, receipt.pending) == ("3", 1)
        assert crate.contents == {
            **{f"/{n}": b"%d" % n for n in range(12) if n not in (3, 5)},
            "/5": b"theirs",
            "/5.conflict-s-1": b"5",
        }
        crate.fault = lambda operation, path: None
        assert (await session.sync()).pending == 0
        assert crate.contents["/3"] == b"3"


async def test_what_is_written_or_removed_while_many_are_on_their_way_is_not_lost(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    crate = Crate()
    crate.delay = lambda: 0.5
    async with crated(tmp_path, crate, 1) as session:
        for n in range(12):
            await put(session, str(n), b"%d" % n)
        await trio.sleep(3)
        assert crate.at_once == 1 and not crate.crates
        for n in range(12):
            await put(session, str(n), b"newer %d" % n)
        session.unlink(1, b"11", KERNEL)
        session.rename(1, b"10", 1, b"ten", 0, KERNEL)
        assert (await session.sync()).pending == 0
        assert crate.contents == {**{f"/{n}": b"newer %d" % n for n in range(10)}, "/ten": b"newer 10"}
        assert crate.crates


async def test_an_answer_about_many_that_is_lost_is_no_conflict(tmp_path: Path, autojump_clock: MockClock) -> None:
    crate = Crate()
    lost = [True]
    crate.lost = lambda operation, path: path == "/6" and lost.pop() if lost else False
    async with crated(tmp_path, crate, 1) as session:
        for n in range(12):
            await put(session, str(n), b"%d" % n)
        assert (await session.sync()).pending == 0
        assert crate.contents == {f"/{n}": b"%d" % n for n in range(12)}
        assert not lost and session.traffic.conflicts == 0


@pytest.fixture
def together(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many calls were made in one thread, each time."""
    counts: list[int] = []
    each = Caller.call_each

    async def counted(self: Caller, callback: str, seconds: float, calls: Any) -> Any:
        counts.append(len(calls))
        return await each(self, callback, seconds, calls)

    monkeypatch.setattr(Caller, "call_each", counted)
    return counts


async def test_many_writes_of_sync_callbacks_are_made_in_one_thread(
    tmp_path: Path, autojump_clock: MockClock, together: list[int]
) -> None:
    desk = Desk()

    def fault(operation: str, path: str) -> None:
        if (operation, path) == ("write", "/7"):
            raise PermissionError(errno.EACCES, "no")

    desk.fault = fault
    async with crated(tmp_path, desk, 1) as session:
        for n in range(100):
            await put(session, str(n), b"%d" % n)
        receipt = await session.sync()
        assert [reason.path for reason in receipt.reasons] == ["7"]
        assert desk.contents == {f"/{n}": b"%d" % n for n in range(100) if n != 7}
        assert desk.log.count(("write", "/20")) == 1, "what was written is not written again"
        assert max(together) == 16
        desk.fault = lambda operation, path: None
        assert (await session.sync()).pending == 0
        assert desk.contents["/7"] == b"7"


async def test_many_deletes_of_sync_callbacks_are_made_in_one_thread(
    tmp_path: Path, autojump_clock: MockClock, together: list[int]
) -> None:
    desk = Desk()

    def fault(operation: str, path: str) -> None:
        if (operation, path) == ("delete", "/d/7"):
            raise PermissionError(errno.EACCES, "no")

    desk.fault = fault
    async with crated(tmp_path, desk, 1) as session:
        for n in range(40):
            await put(session, f"d/{n}", b"%d" % n)
        await session.sync()
        together.clear()
        desk.put("/d/5", b"theirs")
        del desk.files["/d/9"]
        directory = session.lookup(1, b"d").ino
        session.rename(directory, b"3", 1, b"kept", 0, KERNEL)
        for n in range(40):
            if n != 3:
                session.unlink(directory, b"%d" % n, KERNEL)
        desk.log.clear()
        receipt = await session.sync()
        assert [reason.path for reason in receipt.reasons] == ["d/7"]
        assert desk.contents == {"/kept": b"3", "/d/5": b"theirs", "/d/7": b"7"}
        assert desk.log.count(("delete", "/d/20")) == 1 and max(together) == 16
        assert session.lookup(directory, b"5"), "what someone else has written is kept"
        desk.fault = lambda operation, path: None
        assert (await session.sync()).pending == 0
        assert desk.contents.keys() == {"/kept", "/d/5"}
