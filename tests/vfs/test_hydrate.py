"""Content that is in the persistence comes here when it is needed: no more of it, never two versions of it, once."""

from __future__ import annotations

import errno
import os
import random
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.vfs.shelf import IN_MEMORY, BigShelf, Crash, Shelf, content, put, routes
from vfs import fill, fresh
from vfs.blockmap import BLOCK, BlockMap
from vfs.errors import DamagedState
from vfs.options import Options
from vfs.rules import Changes
from vfs.session import Session
from vfs.tree import KERNEL


def opened(tmp_path: Path, target: object, options: Options | None = None, **policy: Any) -> Any:
    return Session.open("s", tmp_path, routes=routes(target, **policy), options=options)


def some(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


async def evicted(session: Any, path: str, data: bytes) -> int:
    """A file of the session whose content is in the persistence only."""
    ino = await put(session, path, data)
    await session.sync()
    session.cache.trim(0)
    assert session.content.stat(ino) is None
    return ino


def reads(shelf: Shelf) -> list[str]:
    return [operation for operation, _ in shelf.log if operation.startswith("read")]


async def test_a_file_comes_back_when_it_is_read(tmp_path: Path, autojump_clock: MockClock) -> None:
    for kind in (Shelf, BigShelf):
        shelf = kind()
        async with Session.open(kind.__name__, tmp_path, routes=routes(shelf)) as session:
            data = some(3 * BLOCK + 17)
            ino = await evicted(session, "a", data)
            assert await content(session, "a") == data
            shelf.log.clear()
            assert await content(session, "a") == data
            assert shelf.log == []
            assert not session.namespace.inode(ino).remote


async def test_a_random_read_fetches_its_block_and_no_more(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = BigShelf()
    fetched: list[int] = []
    ranged = shelf.on_read_range

    async def on_read_range(scope: object, path: str, offset: int, size: int, context: Any) -> bytes:
        fetched.append(size)
        return await ranged(scope, path, offset, size, context)

    shelf.on_read_range = on_read_range  # type: ignore[method-assign]
    async with opened(tmp_path, shelf) as session:
        data = some(64 * BLOCK)
        ino = await evicted(session, "a", data)
        for block in (40, 3, 17):
            at = block * BLOCK + 5
            assert await session.read(ino, at, 4096) == data[at : at + 4096]
        assert fetched == [BLOCK] * 3


async def test_a_sequential_read_is_ahead_of_its_reader_in_large_parallel_requests(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = BigShelf()
    async with opened(tmp_path, shelf) as session:
        data = some(128 * BLOCK)
        ino = await evicted(session, "a", data)
        shelf.log.clear()
        shelf.most_at_once = 0
        shelf.delay = lambda: 0.05
        got = b"".join([await session.read(ino, at, 128 << 10) for at in range(0, len(data), 128 << 10)])
        assert got == data
        assert len(shelf.log) <= 128 // 16 + 8
        assert shelf.most_at_once >= 3


async def test_many_readers_of_a_block_cause_one_request(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = BigShelf()
    shelf.delay = lambda: 1.0
    async with opened(tmp_path, shelf) as session:
        data = some(BLOCK)
        ino = await evicted(session, "a", data)
        shelf.log.clear()
        async with trio.open_nursery() as nursery:
            for n in range(10):
                nursery.start_soon(session.read, ino, n, 10)
        assert len(shelf.log) == 1


async def test_a_reader_that_goes_away_takes_nothing_with_it(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = BigShelf()
    shelf.delay = lambda: 1.0
    async with opened(tmp_path, shelf) as session:
        data = some(BLOCK)
        ino = await evicted(session, "a", data)
        shelf.log.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.read, ino, 0, 10)
            await trio.sleep(0.5)
            nursery.cancel_scope.cancel()
        assert await session.read(ino, 0, 10) == data[:10]
        assert len(shelf.log) == 1


async def test_a_reader_gets_a_retry_and_then_eio_but_never_hangs(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = BigShelf()
    async with opened(tmp_path, shelf) as session:
        ino = await evicted(session, "a", some(100))
        shelf.log.clear()

        def fault(operation: str, path: str) -> None:
            raise ConnectionResetError(errno.ECONNRESET, "reset")

        shelf.fault = fault
        with pytest.raises(OSError):
            await session.read(ino, 0, 10)
        assert 2 <= len(shelf.log) <= 5
        await trio.sleep(1)
        shelf.fault = lambda operation, path: None
        shelf.delay = lambda: 1e6
        with pytest.raises(OSError) as caught:
            await session.read(ino, 0, 10)
        assert caught.value.errno in (errno.EIO, errno.ETIMEDOUT)
        failed = trio.current_time()
        with pytest.raises(OSError):  # as the kernel asks again for a page of what it did not get
            await session.read(ino, 0, 10)
        assert trio.current_time() == failed
        shelf.delay = lambda: 0.0
        await trio.sleep(300)
        assert await session.read(ino, 0, 10) == some(100)[:10]


async def test_truncating_at_open_fetches_nothing(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    async with opened(tmp_path, shelf) as session:
        ino = await evicted(session, "a", some(10 * BLOCK))
        shelf.log.clear()
        await session.open_file(ino, os.O_WRONLY | os.O_TRUNC, KERNEL)
        await session.write(ino, 0, b"new")
        session.release(ino)
        await session.sync()
        assert shelf.contents == {"/a": b"new"}
        assert reads(shelf) == []


async def test_what_was_cut_off_does_not_come_back_when_the_file_grows(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = BigShelf()
    async with opened(tmp_path, shelf) as session:
        data = some(3 * BLOCK)
        ino = await evicted(session, "a", data)
        await session.setattr(ino, Changes(size=BLOCK + 10), KERNEL)
        await session.setattr(ino, Changes(size=3 * BLOCK), KERNEL)
        assert await content(session, "a") == data[: BLOCK + 10] + bytes(2 * BLOCK - 10)
        await session.sync()
        assert shelf.contents["/a"] == data[: BLOCK + 10] + bytes(2 * BLOCK - 10)


async def test_a_write_into_a_block_that_is_elsewhere_fetches_it_first(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = BigShelf()
    async with opened(tmp_path, shelf) as session:
        data = bytearray(some(4 * BLOCK))
        ino = await evicted(session, "a", bytes(data))
        await session.write(ino, BLOCK - 2, b"1234")
        await session.write(ino, 3 * BLOCK, bytes(BLOCK))
        data[BLOCK - 2 : BLOCK + 2] = b"1234"
        data[3 * BLOCK :] = bytes(BLOCK)
        assert await content(session, "a") == data
        await session.sync()
        assert shelf.contents["/a"] == data


@pytest.mark.parametrize("kind", [Shelf, BigShelf])
async def test_content_that_is_at_its_old_path_only_is_brought_to_safety_before_that_is_overwritten(
    tmp_path: Path, autojump_clock: MockClock, kind: type[Shelf]
) -> None:
    shelf = kind()
    async with opened(tmp_path, shelf) as session:
        await evicted(session, "a", b"precious")
        session.rename(1, b"a", 1, b"b", 0, KERNEL)
        await put(session, "a", b"new")
        await session.sync()
        assert shelf.contents == {"/a": b"new", "/b": b"precious"}
        assert await content(session, "b") == b"precious"


@pytest.mark.parametrize("is_lost", [False, True])
async def test_a_file_can_be_read_while_it_is_moved_there(
    tmp_path: Path, autojump_clock: MockClock, is_lost: bool
) -> None:
    shelf = BigShelf()
    async with opened(tmp_path, shelf) as session:
        await evicted(session, "a", b"precious")
        session.rename(1, b"a", 1, b"b", 0, KERNEL)
        answers = iter([0.0, 0.0, 0.0, 2.0])  # of a stat, and of the move
        shelf.delay = lambda: next(answers, 0.0)
        shelf.lost = lambda operation, path: is_lost and operation == "move"
        await trio.sleep(1)
        assert shelf.contents == {"/b": b"precious"} and session.namespace.remote.get(b"a") is not None
        assert await content(session, "b") == b"precious"


@pytest.mark.parametrize("kind", [Shelf, BigShelf])
async def test_two_files_that_are_elsewhere_can_change_places(
    tmp_path: Path, autojump_clock: MockClock, kind: type[Shelf]
) -> None:
    shelf = kind()
    async with opened(tmp_path, shelf) as session:
        await put(session, "a", b"was a")
        await evicted(session, "b", b"was b")
        session.rename(1, b"a", 1, b"b", 2, KERNEL)
        await session.sync()
        assert shelf.contents == {"/a": b"was b", "/b": b"was a"}
        assert (await content(session, "a"), await content(session, "b")) == (b"was b", b"was a")


async def test_an_open_file_that_is_elsewhere_stays_readable_after_its_deletion(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Shelf()
    async with opened(tmp_path, shelf) as session:
        ino = await evicted(session, "a", b"still here")
        await session.open_file(ino, os.O_RDONLY, KERNEL)
        session.unlink(1, b"a", KERNEL)
        await session.sync()
        assert shelf.contents == {}
        assert await session.read(ino, 0, 100) == b"still here"


async def test_a_changed_version_in_the_middle_of_a_file_never_mixes_two(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = BigShelf()
    async with opened(tmp_path, shelf) as session:
        ino = await evicted(session, "a", b"1" * (8 * BLOCK))
        assert await session.read(ino, 0, 10) == b"1" * 10
        shelf.put("/a", b"2" * (6 * BLOCK))
        await session.read(ino, 5 * BLOCK, 10)
        assert await content(session, "a") == b"2" * (6 * BLOCK)
        assert session.getattr(ino).size == 6 * BLOCK


async def test_after_power_loss_fetched_content_is_not_trusted(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = BigShelf()
    data = some(4 * BLOCK)
    with pytest.raises(Crash):
        async with opened(tmp_path, shelf) as session:
            whole = await evicted(session, "whole", data)
            part = await evicted(session, "part", data)
            await content(session, "whole")
            await session.write(part, 2 * BLOCK, b"x" * BLOCK)
            await session.fsync(part)
            await session.read(part, 0, 10)
            raise Crash
    for ino in (whole, part):  # what the disk had not written yet
        backing = tmp_path / "s" / "content" / str(ino)
        backing.write_bytes(bytes(2 * BLOCK) + backing.read_bytes()[2 * BLOCK :])
    (tmp_path / "s" / "lock").write_text("another boot")
    async with opened(tmp_path, shelf) as session:
        assert await content(session, "whole") == data
        assert await content(session, "part") == data[: 2 * BLOCK] + b"x" * BLOCK + data[3 * BLOCK :]


async def test_a_map_that_does_not_check_has_nothing_after_power_loss_and_is_damage_otherwise(tmp_path: Path) -> None:
    for size in (0, 7, 20):
        path = tmp_path / "5.map"
        whole = BlockMap(path, 4 * BLOCK)
        whole.overwritten(2)
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(DamagedState):
            BlockMap.load(path, 4 * BLOCK, powered_off=False)
        found = BlockMap.load(path, 4 * BLOCK, powered_off=True)
        assert found.missing == 4
        found.overwritten(1)
        assert BlockMap.load(path, 4 * BLOCK, powered_off=True).missing == 3


async def test_fetched_bytes_are_joined_where_they_overlap_and_are_forgotten_where_they_are_read_or_too_many(
    tmp_path: Path,
) -> None:
    data = some(100)
    async with opened(tmp_path, BigShelf()) as session:
        inode = session.namespace.inode(await put(session, "a", data))
        kept = fresh.Fresh()
        for start, end in ((0, 40), (30, 60), (20, 90)):
            kept.keep(inode, inode.generation, start, data[start:end])
        assert not kept.has(inode, 80, 91)
        assert bytes(kept.read(inode, 10, 70) or b"") == data[10:80]
        assert bytes(kept.read(inode, 80, 10) or b"") == data[80:90]
        assert kept.read(inode, 80, 10) is None
        kept.keep(inode, inode.generation - 1, 0, data)
        assert kept.read(inode, 0, 10) is None
        kept.forget(inode.ino)
        for start in range(13):
            kept.keep(inode, inode.generation, start, bytes(8 << 20))
        assert kept.bytes == fresh.MOST
        kept.forget(inode.ino)
        assert kept.bytes == 0


async def test_who_writes_waits_for_what_is_being_filled_in_and_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()
    write_all = fill._write_all

    def slowly(fd: int, pieces: list[fill.Piece]) -> None:
        begun.set()
        assert go.wait(20)
        write_all(fd, pieces)

    shelf = BigShelf()
    async with opened(tmp_path, shelf) as session:
        data = some(4 * BLOCK)
        written = await evicted(session, "written", data)
        cut = await evicted(session, "cut", data)
        gone = await evicted(session, "gone", data)
        monkeypatch.setattr(fill, "_write_all", slowly)
        changed: list[str] = []

        async def change(ino: int) -> None:
            if ino == written:
                await session.write(ino, BLOCK, b"x" * BLOCK)
            elif ino == cut:
                await session.setattr(ino, Changes(size=BLOCK + 1), KERNEL)
            else:
                session.cache.evict([session.namespace.inode(ino)])  # waits for nothing
            changed.append("")

        for ino in (written, cut, gone):
            begun.clear()
            go.clear()
            changed.clear()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(session.hydration.complete, session.namespace.inode(ino))
                await trio.to_thread.run_sync(begun.wait, 20)
                nursery.start_soon(change, ino)
                await trio.testing.wait_all_tasks_blocked()
                assert bool(changed) == (ino == gone)
                go.set()
        assert await content(session, "written") == data[:BLOCK] + b"x" * BLOCK + data[2 * BLOCK :]
        assert await content(session, "cut") == data[: BLOCK + 1]
        assert await content(session, "gone") == data
        receipt = await session.sync()
        assert receipt.pending == 0
        assert shelf.contents["/written"] == data[:BLOCK] + b"x" * BLOCK + data[2 * BLOCK :]
        assert shelf.contents["/cut"] == data[: BLOCK + 1]


block_write = st.tuples(st.just("write"), st.integers(0, 4 * BLOCK), st.integers(1, 2 * BLOCK), st.integers(0, 255))
block_step = st.one_of(
    block_write,
    st.tuples(st.just("read"), st.integers(0, 4 * BLOCK), st.integers(1, 2 * BLOCK)),
    st.tuples(st.just("size"), st.integers(0, 5 * BLOCK)),
    st.tuples(st.just("crash")),
    st.tuples(st.just("evict")),
    st.tuples(st.just("sleep")),
)


@settings(max_examples=60)
@given(st.lists(block_step, max_size=15), st.integers(0, 1 << 30))
def test_a_file_partly_here_and_partly_elsewhere_reads_as_one(steps: list[tuple[Any, ...]], seed: int) -> None:
    chance = random.Random(seed)
    shelf = BigShelf()
    shelf.delay = lambda: chance.choice([0.0, 0.01, 0.3])
    model = bytearray(some(3 * BLOCK + 100))

    async def run(directory: Path) -> None:
        async with opened(directory, shelf, Options(stop_timeout=0)) as session:
            ino = await evicted(session, "a", bytes(model))
        left = list(steps)
        while True:
            try:
                async with opened(directory, shelf, Options(stop_timeout=0)) as session, trio.open_nursery() as readers:
                    while left:
                        await step(session, ino, readers, *left.pop(0))
                    assert await content(session, "a") == model
                    await session.sync()
                    assert shelf.contents["/a"] == model
                    return
            except BaseExceptionGroup as e:
                if e.subgroup(Crash) is None:
                    raise

    async def step(session: Any, ino: int, readers: trio.Nursery, kind: str, *arguments: Any) -> None:
        if kind == "write":
            at, size, value = arguments
            data = bytes([value]) * size
            readers.start_soon(session.read, ino, chance.randrange(4 * BLOCK), BLOCK)
            assert await session.write(ino, at, data) == size
            model.extend(bytes(max(0, at - len(model))))
            model[at : at + size] = data
        elif kind == "read":
            at, size = arguments
            assert await session.read(ino, at, size) == model[at : at + size]
        elif kind == "size":
            (size,) = arguments
            readers.start_soon(session.read, ino, chance.randrange(4 * BLOCK), BLOCK)
            await session.setattr(ino, Changes(size=size), KERNEL)
            del model[size:]
            model.extend(bytes(size - len(model)))
        elif kind == "crash":
            raise Crash
        elif kind == "sleep":
            await trio.sleep(3)
        else:
            session.cache.trim(0)

    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as directory:
        trio.run(run, Path(directory), clock=MockClock(autojump_threshold=0.002))


async def test_a_file_that_is_needed_as_a_whole_is_fetched_in_parallel(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = BigShelf()
    async with opened(tmp_path, shelf) as session:
        data = some(128 * BLOCK)
        ino = await evicted(session, "a", data)
        shelf.most_at_once = 0
        shelf.delay = lambda: 0.05
        await session.hydration.complete(session.namespace.inode(ino))
        assert not session.namespace.inode(ino).remote
        assert 4 <= shelf.most_at_once <= 9
        assert await content(session, "a") == data


async def test_a_file_that_is_deleted_while_its_content_is_on_the_way_is_deleted_there_too(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = BigShelf()
    async with opened(tmp_path, shelf) as session:
        ino = await evicted(session, "f", some(3 * BLOCK))
        await session.write(ino, BLOCK, b"edited")
        shelf.delay = lambda: 1.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.sync)
            while not shelf.at_once:  # noqa: ASYNC110 - the shelf tells nobody
                await trio.sleep(0.01)
            session.unlink(1, b"f", KERNEL)
        with trio.fail_after(60):
            assert (await session.sync()).pending == 0
        assert shelf.contents == {}
