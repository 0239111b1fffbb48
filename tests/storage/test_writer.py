"""A session in S3 has one writer, whichever state directories and hosts would like to be it."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from tests.storage.conftest import Open
from tests.storage.faults import FaultProxy
from tests.storage.servers import Server
from tests.vfs.shelf import content, put, routes
from vfs.options import Options
from vfs.persisted import PersistedSession
from vfs.session import Session
from vfs.storage import writer
from vfs.storage.lease import LeaseHeld
from vfs.storage.s3 import S3Storage
from vfs.storage.writer import only_reading, sole_writer
from vfs.tree import KERNEL

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


async def test_a_session_that_is_known_here_is_opened_without_its_endpoint_and_stored_when_that_answers(
    proxy: FaultProxy, moto: Server, open_s3: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "FIRST_TRY", 0.2)
    monkeypatch.setattr(writer, "PAUSE", 0.1)
    where = tmp_path / "work"
    s3 = await open_s3(proxy.url, moto.new_bucket(), read_patience=1.0, write_patience=0.3)
    async with sole_writer(s3, where) as reached, Session.open("work", tmp_path, routes=routes(s3)) as session:
        await put(session, "before", b"1")
        assert reached
    proxy.down()
    with trio.fail_after(5):
        async with AsyncExitStack() as stack:
            reached = await stack.enter_async_context(sole_writer(s3, where))
            assert not reached
            options = Options(behind=True)
            session = await stack.enter_async_context(
                Session.open("work", tmp_path, routes=routes(s3), options=options)
            )
            assert await content(session, "before") == b"1"
            await put(session, "meanwhile", b"2")
            proxy.up()
            assert (await session.sync()).pending == 0
            assert s3.lease is not None
    assert await s3.read("meanwhile") == b"2"


async def test_nothing_is_written_before_the_lease_is_taken_up(
    both: tuple[S3Storage, S3Storage], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "PAUSE", 0.0)  # asks for it all the time
    dead, other = both
    async with sole_writer(dead, tmp_path / "here"):
        await dead.write("f", b"here")
    async with sole_writer(other, tmp_path / "there"), sole_writer(dead, tmp_path / "here", adopted=True):
        for _ in range(50):
            with pytest.raises(LeaseHeld):
                await dead.write("f", b"from who was away")
            await trio.sleep(0.005)
    assert await other.read("f") == b"here"


async def test_a_bucket_that_is_deleted_and_made_again_gets_everything_once_more(
    both: tuple[S3Storage, S3Storage], moto: Server, tmp_path: Path
) -> None:
    s3, _ = both
    client, bucket = moto.client(), s3.bucket.name
    async with sole_writer(s3, tmp_path / "work"), Session.open("work", tmp_path, routes=routes(s3)) as session:
        assert isinstance(session, PersistedSession)
        session.mkdir(1, b"empty", 0o700, KERNEL)
        for name in ("kept", "edited", "deleted", "renamed"):
            await put(session, name, b"1")
        assert (await session.sync()).pending == 0
        for one in client.list_objects_v2(Bucket=bucket)["Contents"]:
            client.delete_object(Bucket=bucket, Key=one["Key"])
        client.delete_bucket(Bucket=bucket)
        await put(session, "edited", b"2")
        session.unlink(1, b"deleted", KERNEL)
        with pytest.raises(OSError, match="bucket does not exist"):
            await session.refresh()
        session.rename(1, b"renamed", 1, b"new name", 0, KERNEL)
        client.create_bucket(Bucket=bucket)
        assert (await session.refresh()).gone == 0
        assert (await session.sync()).pending == 0
        assert (await session.refresh()).gone == 0
        for name, text in (("kept", b"1"), ("edited", b"2"), ("new name", b"1")):
            assert await content(session, name) == await s3.read(name) == text
    keys = {one["Key"].removeprefix("sessions/work/") for one in client.list_objects_v2(Bucket=bucket)["Contents"]}
    own = {".mount-session/image", ".mount-session/lease"}
    assert keys == {"kept", "edited", "new name"} | own


async def test_a_lease_that_someone_deleted_costs_a_listing_and_no_upload(
    both: tuple[S3Storage, S3Storage], moto: Server, tmp_path: Path
) -> None:
    s3, _ = both
    async with sole_writer(s3, tmp_path / "work"), Session.open("work", tmp_path, routes=routes(s3)) as session:
        assert isinstance(session, PersistedSession)
        await put(session, "kept", b"1")
        assert (await session.sync()).pending == 0
        version = (await s3.stat("kept")).version
        assert s3.lease is not None
        for key in (s3.lease.key, s3.image.key):
            moto.client().delete_object(Bucket=s3.bucket.name, Key=key)
        await session.refresh()
        assert session.writeback.transfer.differs(b"kept") is False
        assert (await session.sync()).pending == 0
        assert await s3.image.load() is not None
        assert (await s3.stat("kept")).version == version
