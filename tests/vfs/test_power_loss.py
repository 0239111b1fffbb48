"""Power loss while the persistence is ahead of what the disk has: what was fsynced is there, and nothing over it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.vfs.shelf import BigShelf, Crash, Crate, Ledger, Shelf, content, put, routes
from tests.vfs.strict_disk import StrictDisk
from tests.vfs.test_hydrate import evicted, some
from vfs.blockmap import BLOCK
from vfs.options import Options
from vfs.session import Session
from vfs.tree import KERNEL


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StrictDisk]:
    with contextlib.closing(StrictDisk(tmp_path, monkeypatch)) as disk:
        yield disk


def opened(disk: StrictDisk, target: object, **policy: Any) -> Any:
    return Session.open("s", disk.root, routes=routes(target, **policy), options=Options(refresh_interval=None))


@pytest.mark.parametrize("durably", ["fsync", "sync"])
async def test_what_was_written_and_synced_of_a_file_that_is_partly_here_is_there(
    disk: StrictDisk, durably: str
) -> None:
    shelf, data = BigShelf(), some(4 * BLOCK)
    wanted = data[:10] + b"within" + data[16 : 2 * BLOCK] + b"x" * BLOCK + data[3 * BLOCK :]
    with pytest.raises(Crash):
        async with opened(disk, shelf, debounce=1000, max_wait=1000) as session:
            ino = await evicted(session, "part", data)
            await session.write(ino, 10, b"within")
            await session.write(ino, 2 * BLOCK, b"x" * BLOCK)
            if durably == "fsync":
                await session.fsync(ino)
            else:

                def down(operation: str, path: str) -> None:
                    raise ConnectionResetError(104, "reset")

                shelf.fault = down
                await session.sync(within=0)
            raise Crash
    disk.lose_power()
    shelf.fault = lambda operation, path: None
    async with opened(disk, shelf) as session:
        assert await content(session, "part") == wanted
        await session.sync()
    assert shelf.contents == {"/part": wanted}


async def test_what_was_fetched_for_a_file_that_was_written_here_is_on_disk_before_it_counts_as_here(
    disk: StrictDisk,
) -> None:
    shelf, data = BigShelf(), some(4 * BLOCK)
    wanted = data[: 2 * BLOCK] + b"x" * BLOCK + data[3 * BLOCK :]

    def no_writes(operation: str, path: str) -> None:
        if operation == "write":
            raise ConnectionResetError(104, "reset")

    with pytest.raises(Crash):
        async with opened(disk, shelf, debounce=0) as session:
            ino = await evicted(session, "part", data)
            other = await put(session, "other", b"o")
            shelf.fault = no_writes
            await session.write(ino, 2 * BLOCK, b"x" * BLOCK)
            await session.fsync(ino)
            with trio.fail_after(20):
                while session.namespace.inode(ino).remote:
                    await session.writeback.progressed.wait()
            await session.fsync(other)
            raise Crash
    disk.lose_power()
    shelf.fault = lambda operation, path: None
    async with opened(disk, shelf) as session:
        assert await content(session, "part") == wanted
        await session.sync()
    assert shelf.contents["/part"] == wanted


@pytest.mark.parametrize("how", ["rename", "save over", "to local"])
@pytest.mark.parametrize("kind", [Shelf, BigShelf, Ledger])
async def test_a_file_that_was_renamed_and_synced_is_there_wherever_its_content_has_got_to(
    disk: StrictDisk, kind: type[Shelf], how: str
) -> None:
    shelf = kind()
    target = "b.local" if how == "to local" else "b"
    with pytest.raises(Crash):
        async with opened(disk, shelf, local_only=["*.local"]) as session:
            if how == "save over":
                await put(session, "b", b"the one before")
            ino = await put(session, "a", b"precious")
            await session.sync()
            session.rename(1, b"a", 1, target.encode(), 0, KERNEL)
            await session.fsync(1)
            with trio.fail_after(20):
                while "/a" in shelf.contents:
                    await session.writeback.progressed.wait()
            assert session.namespace.inode(ino).nlink
            raise Crash
    disk.lose_power()
    async with opened(disk, shelf, local_only=["*.local"]) as session:
        assert await content(session, target) == b"precious"
        assert (await session.sync()).pending == 0
        assert await content(session, target) == b"precious"
    assert shelf.contents.get("/b") == (None if how == "to local" else b"precious")
    assert "/a" not in shelf.contents


@pytest.mark.parametrize("kind", [Shelf, Crate, Ledger])
async def test_content_that_only_the_persistence_has_got_is_the_files_again(
    disk: StrictDisk, kind: type[Shelf]
) -> None:
    shelf, data = kind(), some(1000)
    with pytest.raises(Crash):
        async with opened(disk, shelf) as session:
            # Another program's fsync, as the upload is under way.
            shelf.fault = lambda operation, path: session.journal.sync()
            await put(session, "f", data)
            await put(session, "g", data)
            with trio.fail_after(20):
                while len(shelf.contents) < 2 or session.writeback.transfer.busy:
                    await session.writeback.progressed.wait()
            raise Crash
    disk.lose_power()
    shelf.fault = lambda operation, path: None
    async with opened(disk, shelf) as session:
        await session.sync()
        assert await content(session, "f") == data
        await session.files.append("f", b"more")
        assert (await session.sync()).pending == 0
    assert shelf.contents == {"/f": data + b"more", "/g": data}
