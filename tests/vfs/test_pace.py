"""Write-back beside the requests of programs: in their lulls, after its patience a little at a time, at once for who
waits for it."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.vfs.shelf import BigShelf, Shelf, put, routes
from vfs import pace
from vfs.options import Options
from vfs.session import Session


class Programs:
    """Requests that come one after another, as a mount counts them."""

    def __init__(self, session: Session, count: int = 0) -> None:
        self.count = count
        session.requests = lambda: self.count

    async def work(self, seconds: float) -> None:
        end = trio.current_time() + seconds
        while trio.current_time() < end:
            self.count += 1
            await trio.sleep(0.005)


@contextlib.asynccontextmanager
async def busy(directory: Path, seconds: float) -> AsyncIterator[tuple[Session, Shelf]]:
    """A session and its shelf, with programs at work in it for so long, or until the block ends."""
    shelf = Shelf()
    async with Session.open("s", directory, routes=routes(shelf)) as session, trio.open_nursery() as nursery:
        nursery.start_soon(Programs(session).work, seconds)
        await trio.sleep(0.1)
        yield session, shelf
        nursery.cancel_scope.cancel()


async def test_write_back_waits_for_a_lull_and_begins_with_it(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with busy(tmp_path, 5) as (session, shelf):
        for n in range(100):
            await put(session, f"{n}", b"x")
        await trio.sleep(4.8)
        assert shelf.calls == []
        await trio.sleep(0.3)
        assert len(shelf.contents) == 100


async def test_little_is_begun_in_a_lull_that_is_over_at_once(tmp_path: Path, autojump_clock: MockClock) -> None:
    async with busy(tmp_path, 1) as (session, shelf):
        shelf.delay = lambda: 0.02
        for n in range(100):
            await put(session, f"{n}", b"x")
        while not shelf.at_once:  # noqa: ASYNC110 - the shelf is not told when a lull is found
            await trio.sleep(0.001)
        await Programs(session, 1_000_000).work(2)
        assert shelf.most_at_once <= 8
        assert len(shelf.contents) <= 8
        await trio.sleep(1)
        assert len(shelf.contents) == 100


async def test_in_a_long_lull_as_much_is_under_way_as_the_persistence_bears(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with busy(tmp_path, 0) as (session, shelf):
        shelf.delay = lambda: 10
        for n in range(100):
            await put(session, f"{n}", b"x")
        await trio.sleep(1)
        assert shelf.at_once == Options().concurrency


async def test_a_single_file_is_not_kept_waiting_by_the_request_that_closed_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Shelf()
    async with Session.open("s", tmp_path, routes=routes(shelf)) as session:
        programs = Programs(session)
        await programs.work(0.01)
        await put(session, "a", b"x")
        await trio.sleep(0.08)
        assert shelf.contents == {"/a": b"x"}


async def test_what_has_waited_long_goes_out_a_little_at_a_time_though_there_is_no_lull(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with busy(tmp_path, 60) as (session, shelf):
        for n in range(400):
            await put(session, f"{n}", b"x")
        await trio.sleep(10.1)
        begun = len(shelf.calls)
        assert 0 < begun < 80
        await trio.sleep(1)
        assert begun + 100 < len(shelf.calls) < begun + 300
        await trio.sleep(2)
        assert len(shelf.contents) == 400
        await put(session, "late", b"x")  # all was done: it has the same patience again
        await trio.sleep(9)
        assert "/late" not in shelf.contents


async def test_who_waits_for_write_back_itself_does_not_wait_for_a_lull(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with busy(tmp_path, 60) as (session, shelf):
        for n in range(200):
            await put(session, f"{n}", b"x")
        await trio.sleep(1)
        assert shelf.calls == []
        began = trio.current_time()
        receipt = await session.sync()
        assert receipt.pending == 0 and len(shelf.contents) == 200
        assert trio.current_time() < began + 1


async def test_a_program_that_writes_without_a_mount_has_the_same_peace(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Shelf()
    async with Session.open("s", tmp_path, routes=routes(shelf)) as session:
        for number in range(1000):
            await put(session, f"{number}", b"x")
            await trio.sleep(0.001)
        assert len(shelf.contents) < 20
        await trio.sleep(0.3)
        assert len(shelf.contents) == 1000


async def test_a_large_file_on_its_way_gives_way_to_requests(
    tmp_path: Path, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("vfs.pace.time.sleep", pauses.append)
    shelf = BigShelf()
    async with Session.open("s", tmp_path, routes=routes(shelf)) as session:
        ino = await put(session, "a", bytes(64 << 20))
        numbers = itertools.count()
        session.requests = lambda: next(numbers)
        while not shelf.files:  # noqa: ASYNC110 - the shelf tells nobody
            await trio.sleep(0.1)
        assert 14 <= len(pauses) <= 16, "every 8 MiB, of the checksum and of the upload"
        assert set(pauses) == {pace.LULL}
        pauses.clear()
        session.requests = lambda: 0
        await session.write(ino, 0, b"x")
        await trio.sleep(60)
        assert shelf.contents["/a"][:1] == b"x"
        assert pauses == [], "nothing was asked meanwhile"


def test_who_waits_for_write_back_is_not_kept_waiting_by_its_courtesy(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("vfs.pace.time.sleep", pauses.append)
    urgent = True
    numbers = itertools.count()
    give = pace.Pace(lambda: next(numbers), lambda: urgent).way()
    give()
    assert pauses == []
    urgent = False
    give()
    assert pauses == [pace.LULL]
