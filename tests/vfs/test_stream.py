"""Content that is read far ahead comes in streams: long ranges, piece by piece, none of which is lost, mixed with
another version, or waited for by who wants something else."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.vfs.shelf import BigShelf, content, put, routes
from vfs import answers, fetch
from vfs.blockmap import BLOCK
from vfs.callbacks import PIECE, Context
from vfs.persistence import Persistence
from vfs.readahead import MUCH, ReadAhead
from vfs.session import Session
from vfs.tree import KERNEL

STEP = 1 << 20  # bytes of a read


async def at_once(nth: int) -> None:
    await trio.lowlevel.checkpoint()


class Stream(BigShelf):
    """With streams: `asked` has offset and size of each, `pieces` how many of it were taken, `ranges` what else was
    read; `before` is called with the number of each piece of a stream, from 0 on."""

    timeout = math.inf  # content is filled in by threads, for which a mocked clock does not wait

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[int, int]] = []
        self.pieces: list[int] = []
        self.ranges: list[tuple[int, int]] = []
        self.before: Callable[[int], Awaitable[None]] = at_once

    async def on_read_range(self, scope: object, path: str, offset: int, size: int, context: Context) -> bytes:
        self.ranges.append((offset, size))
        return await super().on_read_range(scope, path, offset, size, context)

    async def on_read_stream(
        self, scope: object, path: str, offset: int, size: int, context: Context
    ) -> AsyncIterator[bytes]:
        self.asked.append((offset, size))
        self.pieces.append(0)
        mine = len(self.pieces) - 1
        for nth, at in enumerate(range(offset, offset + size, PIECE)):
            await self.before(nth)
            piece = self._read(path, context)[at : min(at + PIECE, offset + size)]
            self.pieces[mine] += 1
            yield piece


def some(size: int) -> bytes:
    return random.Random(1).randbytes(size)


def opened(tmp_path: Path, shelf: Stream) -> Any:
    return Session.open("s", tmp_path, routes=routes(shelf))


async def elsewhere(session: Any, data: bytes) -> int:
    """A file whose content is in the persistence only."""
    ino = await put(session, "a", data)
    await session.sync()
    session.cache.trim(0)
    return ino


async def read_on(session: Any, ino: int, first: int, end: int) -> bytes:
    return b"".join([bytes(await session.read(ino, at, min(STEP, end - at))) for at in range(first, end, STEP)])


async def test_a_sequential_read_comes_in_streams_and_is_whole(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Stream()
    async with opened(tmp_path, shelf) as session:
        data = some((96 << 20) + 12345)
        ino = await elsewhere(session, data)
        assert await read_on(session, ino, 0, len(data)) == data
        assert shelf.asked and max(size for _, size in shelf.asked) > fetch.SPAN * BLOCK
        assert sum(size for _, size in [*shelf.asked, *shelf.ranges]) == len(data), "nothing is fetched twice"
        assert len(shelf.asked) + len(shelf.ranges) < len(data) / (8 << 20)
        await session.hydration.complete(session.namespace.inode(ino))
        assert await content(session, "a") == data


async def test_a_whole_file_comes_in_parallel_streams(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Stream()
    async with opened(tmp_path, shelf) as session:
        data = some((80 << 20) + 1)
        ino = await elsewhere(session, data)
        most = 0

        async def before(nth: int) -> None:
            nonlocal most
            most = max(most, sum(pieces > 0 for pieces in shelf.pieces))
            await trio.sleep(0.01)

        shelf.before = before
        await session.hydration.complete(session.namespace.inode(ino))
        size = fetch.STREAM * BLOCK
        assert sorted(shelf.asked) == [(0, size), (size, size), (2 * size, (16 << 20) + 1)]
        assert shelf.ranges == [] and most == 3
        assert await content(session, "a") == data


async def test_who_wants_what_a_stream_has_not_come_near_does_not_wait_for_it(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Stream()
    go_on = trio.Event()

    async def before(nth: int) -> None:
        if nth:
            await go_on.wait()

    shelf.before = before
    async with opened(tmp_path, shelf) as session:
        data = some(fetch.STREAM * BLOCK)
        ino = await elsewhere(session, data)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.hydration.complete, session.namespace.inode(ino))
            while not shelf.pieces:  # noqa: ASYNC110 - the shelf tells nobody
                await trio.sleep(0.01)
            far = 24 << 20
            with trio.fail_after(1):
                assert await session.read(ino, far, 10) == data[far : far + 10]
            assert shelf.ranges == [(far, BLOCK)]
            with trio.move_on_after(1) as near:
                await session.read(ino, PIECE, 10)
            assert near.cancelled_caught and len(shelf.ranges) == 1, "the next piece is waited for"
            go_on.set()
        assert len(shelf.asked) == 1
        assert await content(session, "a") == data


async def test_a_stream_that_breaks_goes_on_where_it_broke(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    shelf = Stream()

    async def before(nth: int) -> None:
        if nth == 2:
            raise ConnectionResetError(errno.ECONNRESET, "reset by peer")

    shelf.before = before
    async with opened(tmp_path, shelf) as session:
        data = some(fetch.STREAM * BLOCK)
        ino = await elsewhere(session, data)
        with caplog.at_level(logging.WARNING):
            assert await read_on(session, ino, 0, len(data)) == data
            await session.hydration.complete(session.namespace.inode(ino))
        assert 2 in shelf.pieces, "some broke"
        for (offset, size), pieces in zip(shelf.asked, shelf.pieces, strict=True):
            if pieces == 2 and size > 3 * PIECE:
                assert any(at == offset + 2 * PIECE for at, _ in [*shelf.asked, *shelf.ranges])
        assert "it is tried again" in caplog.text


async def test_a_stream_that_always_breaks_is_an_error_in_bounded_time(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Stream()

    async def before(nth: int) -> None:
        raise ConnectionResetError(errno.ECONNRESET, "reset by peer")

    shelf.before = before
    async with opened(tmp_path, shelf) as session:
        ino = await elsewhere(session, some(fetch.STREAM * BLOCK))
        with trio.fail_after(30), pytest.raises(ConnectionResetError):
            await session.hydration.complete(session.namespace.inode(ino))
        assert len(shelf.asked) == len(fetch.PAUSES) + 1


async def test_a_file_that_changes_within_a_stream_is_the_new_one_and_never_mixed(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Stream()
    size = fetch.STREAM * BLOCK

    async def before(nth: int) -> None:
        if nth == 3 and len(shelf.asked) == 1:
            shelf.put("/a", b"2" * (size - 5))

    shelf.before = before
    async with opened(tmp_path, shelf) as session:
        ino = await elsewhere(session, b"1" * size)
        await session.hydration.complete(session.namespace.inode(ino))
        assert session.getattr(ino).size == size - 5
        assert await content(session, "a") == b"2" * (size - 5)


async def test_a_stream_that_ends_early_is_not_a_short_file(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Stream()
    data = some(fetch.STREAM * BLOCK)

    async def short(scope: object, path: str, offset: int, size: int, context: Context) -> AsyncIterator[bytes]:
        shelf.asked.append((offset, size))
        yield data[offset : offset + (size if len(shelf.asked) > 1 else PIECE + 7)]

    shelf.on_read_stream = short  # type: ignore[method-assign]
    async with opened(tmp_path, shelf) as session:
        ino = await elsewhere(session, data)
        await session.hydration.complete(session.namespace.inode(ino))
        assert await content(session, "a") == data
        assert len(shelf.asked) == 2


async def test_the_stream_of_a_file_that_is_gone_ends(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Stream()
    async with opened(tmp_path, shelf) as session:
        ino = await elsewhere(session, some(fetch.STREAM * BLOCK))

        async def before(nth: int) -> None:
            if nth == 1:
                session.unlink(1, b"a", KERNEL)

        shelf.before = before
        with trio.fail_after(10):
            await session.hydration.complete(session.namespace.inode(ino))
        assert shelf.pieces == [2]
        assert (await session.sync()).pending == 0
        assert shelf.contents == {}


async def test_a_session_that_ends_ends_its_streams(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Stream()
    ended = False

    async def before(nth: int) -> None:
        nonlocal ended
        try:
            await trio.sleep(math.inf if nth else 0)
        finally:
            ended = True

    shelf.before = before
    async with opened(tmp_path, shelf) as session, trio.open_nursery() as nursery:
        ino = await elsewhere(session, some(fetch.STREAM * BLOCK))
        nursery.start_soon(session.hydration.complete, session.namespace.inode(ino))
        while not shelf.pieces:  # noqa: ASYNC110 - the shelf tells nobody
            await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    assert ended


def test_far_ahead_is_no_more_than_what_was_read() -> None:
    ahead, far, at, asked, most = ReadAhead(), 16 * MUCH, 0, 0, 0
    ahead.wanted(1, 0, STEP, lambda: far)
    while at < 40 * MUCH * BLOCK:
        at += STEP
        if (found := ahead.wanted(1, at, at + STEP, lambda: far)) is not None:
            assert found[0] == max(asked, (at + STEP) // BLOCK), "nothing is left out"
            asked = found[1]
        beyond = asked - (at + STEP) // BLOCK
        assert beyond <= max(MUCH, (at + STEP) // BLOCK)
        most = max(most, beyond)
    assert most == far
    assert ahead.wanted(1, 0, STEP, lambda: far) is None


# The callback


PARTS = [b"abc", b"", b"defgh", b"i" * 11, b"jk"]


def sync(*_: object) -> Iterator[bytes]:
    assert threading.current_thread() is not threading.main_thread()
    yield from PARTS


def ready(*_: object) -> list[bytes]:
    return PARTS


async def on_trio(*_: object) -> AsyncIterator[bytes]:
    for part in PARTS:
        await trio.lowlevel.checkpoint()
        yield part


async def on_asyncio(*_: object) -> AsyncIterator[bytes]:
    for part in PARTS:
        await asyncio.sleep(0)
        yield part


on_asyncio.async_library = "asyncio"  # type: ignore[attr-defined]


async def awaited(*_: object) -> Iterator[bytes]:
    await trio.lowlevel.checkpoint()
    return iter(PARTS)


def streaming(callback: Callable[..., Any], **options: Any) -> Persistence:
    return Persistence({"on_read_range": lambda *_: b"", "on_read_stream": callback}, name="mine", **options)


async def taken(files: Persistence, size: int = 100) -> list[bytes]:
    return [bytes(piece) async for piece in files.read_stream("a", 0, size)]


@pytest.mark.parametrize("callback", [sync, ready, on_trio, on_asyncio, awaited])
async def test_what_a_callback_yields_is_taken_as_it_comes(callback: Callable[..., Any]) -> None:
    files = streaming(callback)
    assert await taken(files) == [b"".join(PARTS)]
    assert files.telemetry.tallies["on_read_stream"].calls == 1
    await files.aclose()


@given(st.lists(st.binary(max_size=30), max_size=12))
def test_pieces_of_any_size_become_pieces_of_one(parts: list[bytes]) -> None:
    async def run() -> None:
        whole = b"".join(parts)
        pieces = await taken(streaming(lambda *_: [memoryview(part) for part in parts]), len(whole))
        assert b"".join(pieces) == whole
        assert all(len(piece) == 10 for piece in pieces[:-1])
        assert all(0 < len(piece) <= 10 for piece in pieces[-1:])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "PIECE", 10)
        trio.run(run)


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        (["text"], errno.EIO),
        (None, errno.EIO),
        ([b"12345", b"678901"], errno.EIO),
        (b"1234567890", errno.EIO),
        (FileNotFoundError("a"), errno.ENOENT),
    ],
    ids=["no bytes", "nothing", "too many", "no pieces", "failure"],
)
async def test_a_wrong_stream_is_an_error_with_callback_and_path(
    answer: Any, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    def callback(*_: object) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    with pytest.raises(OSError) as caught:
        await taken(streaming(callback), 10)
    assert caught.value.errno == number
    assert ("on_read_stream('a')" in caplog.text) is (number == errno.EIO)


async def test_each_piece_has_its_time_and_no_more(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(answers, "PIECE", 2)
    slow = 20.0
    closed: list[float] = []

    async def on_read_stream(*_: object) -> AsyncIterator[bytes]:
        try:
            while True:
                await trio.sleep(slow)
                yield b"x"
        finally:
            closed.append(trio.current_time())

    files = streaming(on_read_stream, timeout=30.0)
    got = []
    with pytest.raises(OSError) as caught:
        async for piece in files.read_stream("a", 0, 100):
            got.append(bytes(piece))
            slow = 20.0 if len(got) < 3 else 3600.0
    assert caught.value.errno == errno.ETIMEDOUT
    assert got == [b"xx"] * 3
    assert len(closed) == 1
    assert "on_read_stream('a') did not answer within" in caplog.text


@pytest.mark.parametrize("library", ["sync", "trio", "asyncio"])
async def test_a_stream_that_nobody_wants_any_more_is_closed(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "PIECE", 1)
    closed = threading.Event()

    def in_thread(*_: object) -> Iterator[bytes]:
        try:
            while True:
                yield b"x"
        finally:
            closed.set()

    async def in_loop(*_: object) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x"
        finally:
            closed.set()

    files = streaming(in_thread if library == "sync" else in_loop, async_library=None if library == "sync" else library)
    stream = files.read_stream("a", 0, 100)
    assert await anext(stream) == b"x"
    assert not closed.is_set()
    await stream.aclose()
    assert closed.is_set()
    await files.aclose()
