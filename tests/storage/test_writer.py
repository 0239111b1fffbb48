"""A session in S3 has one writer, whichever state directories and hosts would like to be it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.storage.conftest import Open
from tests.storage.faults import FaultProxy
from tests.storage.servers import Server
from tests.vfs.shelf import put, routes
from vfs.session import Session
from vfs.storage.lease import LeaseHeld
from vfs.storage.s3 import S3Storage
from vfs.storage.writer import only_reading, sole_writer

pytestmark = pytest.mark.s3


@pytest.fixture
async def both(moto: Server, open_s3: Open) -> tuple[S3Storage, S3Storage]:
    """The same session of the same bucket, as two hosts have it."""
    bucket = moto.new_bucket()
    return await open_s3(moto, bucket), await open_s3(moto, bucket)


async def test_a_second_writer_is_told_who_the_first_is(both: tuple[S3Storage, S3Storage], tmp_path: Path) -> None:
    here, there = both
    async with sole_writer(here, tmp_path / "here"):
        with pytest.raises(LeaseHeld, match=r"state .*/here since .* --steal"):
            async with sole_writer(there, tmp_path / "there"):
                pass
    async with sole_writer(there, tmp_path / "there"):
        pass


async def test_the_next_worker_on_the_same_state_is_not_refused(
    both: tuple[S3Storage, S3Storage], tmp_path: Path
) -> None:
    dead, successor = both
    async with sole_writer(dead, tmp_path / "here"), sole_writer(successor, tmp_path / "here"):
        pass


async def test_who_only_reads_needs_no_lease_and_writes_nothing(
    both: tuple[S3Storage, S3Storage], tmp_path: Path
) -> None:
    here, there = both
    async with sole_writer(here, tmp_path / "here"):
        await here.write("file", b"here")
        only_reading(there)
        assert await there.read("file") == b"here"
        with pytest.raises(OSError, match="read-only"):
            await there.on_write(None, "/file", b"there", {})


async def test_what_a_fenced_writer_could_not_store_is_pending_and_overwrites_nothing(
    both: tuple[S3Storage, S3Storage], tmp_path: Path
) -> None:
    loser, thief = both
    where = tmp_path / "loser"
    async with sole_writer(loser, where), Session.open("work", where, routes=routes(loser)) as session:
        await put(session, "file", b"loser's")
        assert (await session.sync()).pending == 0
        async with sole_writer(thief, tmp_path / "thief", steal=True):
            image = await thief.image.load()
            await put(session, "late", b"loser's too")
            receipt = await session.sync()
            assert receipt.pending > 0
            assert any("taken over" in reason.error for reason in receipt.reasons)
            await put(session, "later", b"never stored by the loser")
            assert (await session.sync()).pending > 1
            assert await thief.image.load() == image
            assert not await thief.exists("later")
    async with sole_writer(loser, where), Session.open("work", where, routes=routes(loser)) as session:
        assert (await session.sync()).pending == 0
    assert await thief.read("later") == b"never stored by the loser"


async def test_a_worker_that_follows_another_does_not_wait_for_an_endpoint_that_is_down(
    proxy: FaultProxy, moto: Server, open_s3: Open, tmp_path: Path
) -> None:
    s3 = await open_s3(proxy.url, moto.new_bucket(), read_patience=0.5, write_patience=0.5)
    proxy.down()
    with trio.fail_after(5):
        async with sole_writer(s3, tmp_path, adopted=True):
            await trio.lowlevel.checkpoint()
    with pytest.raises(OSError):
        async with sole_writer(s3, tmp_path):
            pass
