"""Sizes of files that were listed as bare paths: found in few calls and little memory, and waited for not too long."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from tests.vfs.shelf import BigShelf, Shelf, routes
from vfs.callbacks import Context
from vfs.persistence import Persistence
from vfs.session import Session
from vfs.sizes import PIECE, measure


class Bare(Shelf):
    """Lists paths; what is called `hangs` is never read to its end."""

    async def on_list(self, scope: object, context: Context) -> list[str]:  # type: ignore[override]
        return list(self.files)

    async def on_read(self, scope: object, path: str, context: Context) -> bytes:
        if path.endswith("hangs"):
            self.log.append(("read", path))
            await trio.sleep_forever()
        return await super().on_read(scope, path, context)


async def test_a_directory_is_listed_though_one_file_of_it_cannot_be_read(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    shelf = Bare()
    for name in ("a", "b", "hangs"):
        shelf.put(f"/{name}", b"1234")
    async with Session.open("s", tmp_path, routes=routes(shelf)) as session:
        began = trio.current_time()
        await session.settle_directory(1)
        assert trio.current_time() < began + 1.5
        sizes = {name: session.namespace.walk(name).size for name in (b"a", b"b")}
        assert sizes == {b"a": 4, b"b": 4}
        hanging = session.namespace.walk(b"hangs")
        assert not session.is_settled(hanging)
        assert "the persistence does not answer" in caplog.text
        began = trio.current_time()
        await session.settle_directory(1)
        assert trio.current_time() == began
        with pytest.raises(OSError, match="timed out"):
            await session.settle(hanging)
        assert trio.current_time() < began + 35
        began = trio.current_time()
        with pytest.raises(OSError, match="timed out"):
            await session.settle(hanging)
        assert trio.current_time() == began
        await trio.sleep(15)
        with trio.move_on_after(1):
            await session.settle(hanging)
        assert shelf.calls.count(("read", "/hangs")) == 2


async def test_a_directory_is_waited_for_as_long_as_sizes_come(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Bare()
    shelf.delay = lambda: 0.4
    for number in range(200):
        shelf.put(f"/{number}", b"1234")
    async with Session.open("s", tmp_path, routes=routes(shelf)) as session:
        began = trio.current_time()
        await session.settle_directory(1)
        assert trio.current_time() > began + 5
        assert all(inode.size == 4 for inode in session.namespace.inodes.values() if inode.is_file)


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE, 3 * PIECE + 7, (2 << 30) + 123])
async def test_ranges_find_the_size_of_a_file_however_large_in_little_memory(size: int) -> None:
    asked = []

    def on_read_range(scope: object, path: str, offset: int, length: int, context: Context) -> bytes:
        asked.append(length)
        return bytes(max(0, min(length, size - offset)))

    def on_read(scope: object, path: str, context: Context) -> bytes:
        raise AssertionError("it would be held in memory")

    persistence = Persistence({"on_read_range": on_read_range, "on_read": on_read})
    found = await measure(persistence, "big", {})
    assert found.size == size
    assert found.content is None or len(found.content) == size < PIECE
    assert len(asked) < 40 and sum(asked) < 3 * PIECE


async def test_a_range_without_end_is_an_error() -> None:
    persistence = Persistence({"on_read_range": lambda scope, path, offset, length, context: bytes(length)})
    with pytest.raises(OSError, match="finds no end") as e:
        await measure(persistence, "endless", {})
    assert e.value.errno == errno.EFBIG


async def test_a_file_of_unknown_size_over_the_limit_is_read_by_ranges(tmp_path: Path) -> None:
    class Ranges(BigShelf):
        on_stat = None  # type: ignore[assignment]

        async def on_list(self, scope: object, context: Context) -> list[str]:  # type: ignore[override]
            return list(self.files)

    shelf = Ranges()
    shelf.put("/big", bytes(range(256)) * 20_000)
    target = routes(shelf)
    next(iter(target)).persistence.max_file_size = 1 << 20  # type: ignore[union-attr]
    async with Session.open("s", tmp_path, routes=target) as session:
        inode = session.namespace.walk(b"big")
        await session.settle(inode)
        assert inode.size == 256 * 20_000
        assert await session.read(inode.ino, 5_000_000, 100) == (bytes(range(256)) * 20_000)[5_000_000:5_000_100]
