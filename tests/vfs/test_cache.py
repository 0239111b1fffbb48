"""The cache keeps to its limit, and nothing that is not in the persistence is ever dropped for it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.vfs.shelf import BigShelf, Shelf, content, put, routes
from vfs.blockmap import BLOCK
from vfs.capture import SMALL
from vfs.options import Options
from vfs.policy import Policy
from vfs.session import Session
from vfs.tree import KERNEL

KIB = 1 << 10


def opened(tmp_path: Path, target: object, limit: int, **options: Any) -> Any:
    return Session.open(
        "s",
        tmp_path,
        routes=routes(target),
        policy=Policy(cache_bytes=limit),
        options=Options(refresh_interval=None, **options),
    )


def here(tmp_path: Path) -> int:
    return sum(path.stat().st_size for path in (tmp_path / "s" / "content").iterdir())


async def test_clean_files_go_least_recently_used_first(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    async with opened(tmp_path, shelf, 300 * KIB) as session:
        inos = []
        for n in range(3):
            inos.append(await put(session, f"{n}", b"%d" % n * (100 * KIB)))
            await session.sync()
        await content(session, "0")
        inos.append(await put(session, "3", b"3" * (100 * KIB)))
        assert [session.namespace.inode(ino).remote for ino in inos] == [False, True, False, False]
        assert here(tmp_path) <= 300 * KIB
        for n in range(4):
            assert await content(session, f"{n}") == b"%d" % n * (100 * KIB)


async def test_reading_more_than_the_limit_keeps_to_it(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = BigShelf()
    for n in range(20):
        shelf.put(f"/{n}", b"%d" % (n % 10) * (100 * KIB))
    async with opened(tmp_path, shelf, 300 * KIB) as session:
        for n in range(20):
            assert await content(session, f"{n}") == b"%d" % (n % 10) * (100 * KIB)
            assert here(tmp_path) <= 400 * KIB


async def test_writers_wait_for_uploads_and_no_byte_is_lost(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = Shelf()
    shelf.delay = lambda: 0.5
    async with opened(tmp_path, shelf, 300 * KIB) as session:
        for n in range(10):
            await put(session, f"{n}", b"%d" % n * (100 * KIB))
            assert here(tmp_path) <= 400 * KIB
        assert (await session.sync()).pending == 0
        assert shelf.contents == {f"/{n}": b"%d" % n * (100 * KIB) for n in range(10)}


@pytest.mark.parametrize("limit", [0, 1, 100 * KIB])
async def test_a_write_larger_than_the_cache_goes_through(
    tmp_path: Path, autojump_clock: MockClock, limit: int
) -> None:
    shelf = Shelf()
    async with opened(tmp_path, shelf, limit) as session:
        for name in ("a", "b", "c"):
            await put(session, name, name.encode() * (300 * KIB))
        assert (await session.sync()).pending == 0
    assert shelf.contents == {f"/{name}": name.encode() * (300 * KIB) for name in ("a", "b", "c")}


async def test_a_cache_full_of_dirty_data_is_enospc_after_a_while_and_deletes_always_work(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Shelf()
    down = True

    def fault(operation: str, path: str) -> None:
        if down:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    async with opened(tmp_path, shelf, 300 * KIB, cache_wait=20, stop_timeout=1) as session:
        shelf.fault = fault
        for n in range(3):
            await put(session, f"{n}", b"x" * (100 * KIB))
        ino = session.create(1, b"more", 0o644, KERNEL).ino
        began = trio.current_time()
        with pytest.raises(OSError) as caught:
            await session.write(ino, 0, b"x" * (100 * KIB))
        assert caught.value.errno == errno.ENOSPC
        assert 20 <= trio.current_time() - began < 21
        session.apply(session.policy.changed({"cache_wait": 3}))
        began = trio.current_time()
        with pytest.raises(OSError):
            await session.write(ino, 0, b"x" * (100 * KIB))
        assert 3 <= trio.current_time() - began < 4
        assert await content(session, "1") == b"x" * (100 * KIB)
        session.unlink(1, b"0", KERNEL)
        assert await session.write(ino, 0, b"x" * (100 * KIB)) == 100 * KIB
        down = False
        session.release(ino)
        assert (await session.sync()).pending == 0


async def test_what_was_changed_in_the_persistence_while_it_was_dropped_is_what_comes_back(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = Shelf()
    async with opened(tmp_path, shelf, 100 * KIB) as session:
        await put(session, "a", b"a" * (90 * KIB))
        await session.sync()
        await put(session, "b", b"b" * (90 * KIB))
        shelf.put("/a", b"theirs")
        assert await content(session, "a") == b"theirs"


async def test_content_with_two_names_does_not_go_while_another_file_replaces_it_under_one(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    shelf = BigShelf()
    old, new = b"old" * SMALL, b"new" * SMALL  # not so small that one write replaces the other at once
    async with opened(tmp_path, shelf, 10 * SMALL) as session:
        ino = await put(session, "a", old)
        await session.sync()
        session.link(ino, 1, b"b", KERNEL)
        await put(session, "saved", new)
        assert (await session.sync()).pending == 0
        shelf.delay = lambda: 0.5
        session.rename(1, b"saved", 1, b"a", 0, KERNEL)
        while shelf.contents["/a"] != new:
            await trio.sleep(0.1)
            if b"a" in session.writeback.transfer.busy:
                session.cache.trim(0)
        shelf.delay = lambda: 0.0  # but the answer is still on its way
        assert await content(session, "b") == old
        assert b"a" in session.writeback.transfer.busy
        assert (await session.sync()).pending == 0
        assert shelf.contents == {"/a": new, "/b": old}
        assert await content(session, "b") == old
        assert not session.writeback.transfer.differs(b"b")


async def test_a_file_larger_than_the_cache_is_written_back_a_few_times_not_at_every_write(tmp_path: Path) -> None:
    shelf = BigShelf()
    data = b"".join(b"%7d." % n for n in range(16 * BLOCK // 8))
    async with opened(tmp_path, shelf, 4 * BLOCK) as session:
        ino = await put(session, "a", b"")
        for at in range(0, len(data), BLOCK // 2):
            await session.write(ino, at, data[at : at + BLOCK // 2])
        assert (await session.sync()).pending == 0
        assert shelf.contents == {"/a": data}
        assert len([operation for operation, _ in shelf.calls if operation.startswith("write")]) <= 7


async def test_what_no_persistence_takes_fills_no_cache(tmp_path: Path, autojump_clock: MockClock) -> None:
    shelf = BigShelf()
    policy = Policy(cache_bytes=2 << 20)
    async with Session.open("s", tmp_path, routes=routes(shelf, local_only=["*.local"]), policy=policy) as session:
        for n in range(4):
            await put(session, f"{n}.local", b"x" * (1 << 20))
        before = trio.current_time()
        await put(session, "f", b"y" * 1000)
        assert trio.current_time() == before
        assert await content(session, "0.local") == b"x" * (1 << 20)
    assert shelf.contents == {"/f": b"y" * 1000}
