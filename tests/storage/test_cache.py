"""A session that is not mounted: copies in a local directory."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest
import trio
import trio.testing

from tests.storage.conftest import Open
from tests.storage.faults import Fault, FaultProxy
from tests.storage.servers import Server
from vfs.callbacks import Context
from vfs.errors import Conflict
from vfs.fileref import FileRef
from vfs.storage.bucket import Blob
from vfs.storage.failures import CleanupIncomplete
from vfs.storage.s3 import S3Storage

pytestmark = pytest.mark.s3


@pytest.fixture
async def cached(moto: Server, open_s3: Open, tmp_path: Path) -> S3Storage:
    return await open_s3(moto, moto.new_bucket(), cache_path=tmp_path, cache_bytes=1000)


async def test_local_path_is_the_cache_and_has_what_was_written_and_read(
    cached: S3Storage, moto: Server, tmp_path: Path
) -> None:
    directory = await cached.local_path()
    assert directory == tmp_path / "mount-session_s3_work"
    await cached.write("d/f", b"x")
    moto.client().put_object(Bucket=cached.bucket.name, Key="sessions/work/theirs", Body=b"y")
    assert await cached.read("theirs") == b"y"
    assert (directory / "d/f").read_bytes() == b"x"
    assert (directory / "theirs").read_bytes() == b"y"


async def test_a_copy_is_used_only_while_it_is_current(cached: S3Storage, moto: Server) -> None:
    await cached.write("f", b"one")
    read = cached.bucket.counts["bytes read"]
    assert await cached.read("f") == b"one"
    assert cached.bucket.counts["bytes read"] == read, "the copy was not used"
    moto.client().put_object(Bucket=cached.bucket.name, Key="sessions/work/f", Body=b"two")
    assert await cached.read("f") == b"two"
    moto.client().delete_object(Bucket=cached.bucket.name, Key="sessions/work/f")
    with pytest.raises(FileNotFoundError):
        await cached.read("f")


async def test_clean_copies_are_evicted_least_recently_used_first(cached: S3Storage) -> None:
    directory = await cached.local_path()
    for name in ("a", "b", "c"):
        await cached.write(name, name.encode() * 300)
    await cached.read("a")
    await cached.write("d", b"d" * 300)
    assert sorted(path.name for path in directory.iterdir()) == ["a", "c", "d"]
    assert await cached.read("b") == b"b" * 300
    await cached.write("huge", b"h" * 5000)
    assert not (directory / "huge").exists()
    assert await cached.read("huge") == b"h" * 5000


async def test_sync_uploads_what_a_container_wrote_into_the_directory(cached: S3Storage, moto: Server) -> None:
    directory = await cached.local_path()
    await cached.write("known", b"1")
    (directory / "sub").mkdir()
    (directory / "sub/new.txt").write_bytes(b"from the container")
    (directory / "known").write_bytes(b"edited")
    (directory / "link").symlink_to("/etc/passwd")
    assert sorted(ref.path for ref in await cached.sync_to_remote()) == ["known", "sub/new.txt"]
    assert await cached.sync_to_remote() == []
    body = moto.client().get_object(Bucket=cached.bucket.name, Key="sessions/work/sub/new.txt")["Body"].read()
    assert body == b"from the container"
    assert await cached.read("known") == b"edited"


async def test_what_a_container_edited_is_read_and_kept_until_it_is_uploaded(cached: S3Storage, moto: Server) -> None:
    directory = await cached.local_path()
    await cached.write("report", b"v1")
    (directory / "report").write_bytes(b"v2 by the container")
    (directory / "new").write_bytes(b"not known to anyone")
    assert await cached.read("report") == b"v2 by the container"
    assert await cached.read("new") == b"not known to anyone"
    assert sorted(ref.path for ref in await cached.sync_to_remote()) == ["new", "report"]
    body = moto.client().get_object(Bucket=cached.bucket.name, Key="sessions/work/report")["Body"].read()
    assert body == b"v2 by the container"


async def test_what_a_container_edits_while_it_is_read_is_not_replaced(
    cached: S3Storage, moto: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = await cached.local_path()
    await cached.write("report", b"v1")
    moto.client().put_object(Bucket=cached.bucket.name, Key="sessions/work/report", Body=b"theirs")
    read = cached.objects.read

    async def edited(path: str) -> Blob:
        blob = await read(path)
        (directory / path).write_bytes(b"by the container")
        return blob

    monkeypatch.setattr(cached.objects, "read", edited)
    await cached.read("report")
    assert (directory / "report").read_bytes() == b"by the container"
    assert os.listdir(directory) == ["report"]


@pytest.mark.parametrize("uploaded", [True, False])
async def test_a_read_that_a_write_overtakes_does_not_bring_the_old_content_back(
    proxy: FaultProxy,
    moto: Server,
    open_s3: Open,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uploaded: bool,
) -> None:
    s3 = await open_s3(proxy.url, moto.new_bucket(), cache_path=tmp_path)
    await s3.check()
    moto.client().put_object(Bucket=s3.bucket.name, Key="sessions/work/f", Body=b"old")
    refused = proxy.add(Fault("status", "PUT", "work/f", status=403, code="AccessDenied"))
    refused.times = 0 if uploaded else 1
    read = s3.objects.read

    async def overtaken(path: str) -> Blob:
        blob = await read(path)
        with contextlib.nullcontext() if uploaded else pytest.raises(OSError):
            await s3.write(path, b"NEW")
        return blob

    monkeypatch.setattr(s3.objects, "read", overtaken)
    await s3.read("f")
    assert (await s3.local_path() / "f").read_bytes() == b"NEW"
    assert len(await s3.sync_to_remote()) == (0 if uploaded else 1)
    assert moto.client().get_object(Bucket=s3.bucket.name, Key="sessions/work/f")["Body"].read() == b"NEW"


async def test_a_read_that_a_deletion_overtakes_leaves_no_copy(
    cached: S3Storage, moto: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    moto.client().put_object(Bucket=cached.bucket.name, Key="sessions/work/f", Body=b"old")
    read = cached.objects.read

    async def overtaken(path: str) -> Blob:
        blob = await read(path)
        await cached.delete(path)
        return blob

    monkeypatch.setattr(cached.objects, "read", overtaken)
    assert await cached.read("f") == b"old"
    assert os.listdir(await cached.local_path()) == []


async def test_what_a_container_edited_is_not_evicted(cached: S3Storage, moto: Server) -> None:
    directory = await cached.local_path()
    await cached.write("a", b"a" * 300)
    (directory / "a").write_bytes(b"edited")
    for name in ("b", "c", "d", "e"):
        await cached.write(name, name.encode() * 300)
    assert sorted(os.listdir(directory)) == ["a", "c", "d", "e"]
    assert [ref.path for ref in await cached.sync_to_remote()] == ["a"]
    assert moto.client().get_object(Bucket=cached.bucket.name, Key="sessions/work/a")["Body"].read() == b"edited"


def body_of(server: Server, s3: S3Storage, path: str) -> bytes:
    return server.client().get_object(Bucket=s3.bucket.name, Key=f"sessions/work/{path}")["Body"].read()


async def test_after_a_restart_old_copies_replace_nothing_and_bring_nothing_back(
    moto: Server, open_s3: Open, tmp_path: Path
) -> None:
    bucket = moto.new_bucket()
    async with await open_s3(moto, bucket, cache_path=tmp_path) as before:
        for name in ("replaced", "deleted", "same", "caf\udce9"):
            await before.write(name, b"v1")
    moto.client().put_object(Bucket=bucket, Key="sessions/work/replaced", Body=b"v2 by someone else")
    moto.client().delete_object(Bucket=bucket, Key="sessions/work/deleted")
    after = await open_s3(moto, bucket, cache_path=tmp_path)
    assert await after.sync_to_remote() == []
    assert body_of(moto, after, "replaced") == b"v2 by someone else"
    assert not await after.exists("deleted")
    assert await after.read("replaced") == b"v2 by someone else"
    read = after.bucket.counts["bytes read"]
    assert await after.read("same") == b"v1" and after.bucket.counts["bytes read"] == read


async def test_after_a_restart_edits_are_uploaded_unless_someone_else_changed_the_object(
    moto: Server, open_s3: Open, tmp_path: Path
) -> None:
    bucket = moto.new_bucket()
    async with await open_s3(moto, bucket, cache_path=tmp_path) as before:
        directory = await before.local_path()
        for name in ("edited", "both", "deleted"):
            await before.write(name, b"v1")
    for name in ("edited", "both", "deleted", "new"):
        (directory / name).write_bytes(b"by the container")
    moto.client().put_object(Bucket=bucket, Key="sessions/work/both", Body=b"theirs")
    moto.client().delete_object(Bucket=bucket, Key="sessions/work/deleted")
    after = await open_s3(moto, bucket, cache_path=tmp_path)
    with pytest.raises(ExceptionGroup) as caught:
        await after.sync_to_remote()
    assert {e.filename for e in caught.value.exceptions if isinstance(e, Conflict)} == {"both", "deleted"}
    assert len(caught.value.exceptions) == 2
    assert body_of(moto, after, "edited") == body_of(moto, after, "new") == b"by the container"
    assert body_of(moto, after, "both") == b"theirs" and not (await listed(after)) & {"deleted"}
    assert (directory / "both").read_bytes() == (directory / "deleted").read_bytes() == b"by the container"
    await after.write("both", b"merged")
    await after.delete("deleted")
    assert await after.sync_to_remote() == []
    assert body_of(moto, after, "both") == b"merged"


async def listed(s3: S3Storage) -> set[str]:
    return {ref.path async for ref in s3.list()}


async def test_what_a_container_edits_while_it_is_uploaded_is_uploaded_next(
    cached: S3Storage, moto: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = await cached.local_path()
    await cached.write("f", b"v1")
    (directory / "f").write_bytes(b"edited")
    write_file = cached.objects.write_file

    async def edited(path: str, file: BinaryIO, context: Context) -> FileRef:
        ref = await write_file(path, file, context)
        (directory / path).write_bytes(b"edited again")
        return ref

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(cached.objects, "write_file", edited)
        await cached.sync_to_remote()
    assert body_of(moto, cached, "f") == b"edited"
    await cached.sync_to_remote()
    assert body_of(moto, cached, "f") == b"edited again"


async def test_an_upload_behind_whose_failure_is_not_lost(
    proxy: FaultProxy, moto: Server, open_s3: Open, tmp_path: Path
) -> None:
    s3 = await open_s3(proxy.url, moto.new_bucket(), cache_path=tmp_path, async_upload=True)
    await s3.check()
    fault = proxy.add(Fault("status", "PUT", "bad", status=403, code="AccessDenied"))
    ref = await s3.write("bad.txt", b"precious")
    assert (ref.size, ref.version) == (8, None)
    await s3.write("good.txt", b"fine")
    assert await s3.exists("bad.txt") and await s3.read("bad.txt") == b"precious"
    with pytest.raises(ExceptionGroup) as caught:
        await s3.sync_to_remote()
    assert "AccessDenied" in str(caught.value.exceptions[0])
    fault.times = 0
    assert [one.path for one in await s3.sync_to_remote()] == ["bad.txt"]
    body = moto.client().get_object(Bucket=s3.bucket.name, Key="sessions/work/bad.txt")["Body"].read()
    assert body == b"precious"


async def test_an_upload_behind_happens_without_being_asked(moto: Server, open_s3: Open, tmp_path: Path) -> None:
    s3 = await open_s3(moto, moto.new_bucket(), cache_path=tmp_path, async_upload=True)
    await s3.write("f", b"x")
    assert s3.cache is not None
    with trio.fail_after(10):
        while s3.cache.is_pending("f"):  # noqa: ASYNC110
            await trio.sleep(0.01)
    assert moto.client().get_object(Bucket=s3.bucket.name, Key="sessions/work/f")["Body"].read() == b"x"


@pytest.mark.parametrize("removal", ["delete", "cleanup"])
async def test_an_upload_behind_that_is_under_way_brings_nothing_back_after(
    removal: str, moto: Server, open_s3: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3 = await open_s3(moto, moto.new_bucket(), cache_path=tmp_path, async_upload=True)
    await s3.check()
    write_file, begun, slow, arrived = s3.objects.write_file, trio.Event(), trio.Event(), trio.Event()

    async def written_late(path: str, file: BinaryIO, context: Context) -> FileRef:
        begun.set()
        await slow.wait()
        ref = await write_file(path, file, context)
        arrived.set()
        return ref

    monkeypatch.setattr(s3.objects, "write_file", written_late)
    await s3.write("f", b"1")
    with trio.fail_after(20):
        await begun.wait()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(s3.delete, "f") if removal == "delete" else s3.cleanup)
            await trio.testing.wait_all_tasks_blocked(0.05)
            slow.set()
        await arrived.wait()
    assert moto.client().list_objects_v2(Bucket=s3.bucket.name, Prefix="sessions/work/f")["KeyCount"] == 0
    assert not await s3.exists("f")


async def test_cleanup_removes_the_cache_and_delete_the_copy(cached: S3Storage) -> None:
    directory = await cached.local_path()
    await cached.write("f", b"x")
    await cached.delete("f")
    assert not (directory / "f").exists()
    await cached.write("g", b"x")
    await cached.cleanup()
    assert not directory.exists()


async def test_a_cleanup_that_was_incomplete_can_be_repeated(
    proxy: FaultProxy, moto: Server, open_s3: Open, tmp_path: Path
) -> None:
    s3 = await open_s3(proxy.url, moto.new_bucket(), cache_path=tmp_path)
    await s3.write("f", b"x")
    refused = proxy.add(Fault("status", "POST|DELETE", status=403, code="AccessDenied"))
    with pytest.raises(CleanupIncomplete):
        await s3.cleanup()
    refused.times = 0
    await s3.cleanup()
    assert moto.client().list_objects_v2(Bucket=s3.bucket.name)["KeyCount"] == 0
    assert os.listdir(tmp_path) == [] and await s3.sync_to_remote() == []


async def test_no_path_leaves_the_cache(cached: S3Storage, tmp_path: Path) -> None:
    with pytest.raises(OSError):
        await cached.write("../outside", b"x")
    assert not (tmp_path / "outside").exists()


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A directory of the host's that the container has nothing to do with."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/passwd").write_bytes(b"the host's")
    return tmp_path / "outside"


async def test_a_symlink_that_a_container_made_leads_neither_writes_nor_deletions_out(
    cached: S3Storage, outside: Path
) -> None:
    directory = await cached.local_path()
    (directory / "out").symlink_to(outside)
    for path in ("out/passwd", "out/new"):
        with pytest.raises(OSError) as caught:
            await cached.write(path, b"x")
        assert caught.value.errno == errno.EXDEV
    await cached.delete("out/passwd")
    assert os.listdir(outside) == ["passwd"]
    assert (outside / "passwd").read_bytes() == b"the host's"


async def test_a_directory_of_copies_that_became_a_symlink_loses_nothing_beyond_it(
    cached: S3Storage, outside: Path
) -> None:
    directory = await cached.local_path()
    await cached.write("out/passwd", b"a" * 600)
    shutil.rmtree(directory / "out")
    (directory / "out").symlink_to(outside)
    await cached.write("other", b"b" * 600)  # evicts the copy of out/passwd
    assert (outside / "passwd").read_bytes() == b"the host's"


async def test_what_a_container_put_in_a_copys_place_is_in_nobodys_way(cached: S3Storage) -> None:
    directory = await cached.local_path()
    for name in ("link", "directory"):
        await cached.write(name, b"a" * 300)
        (directory / name).unlink()
    (directory / "link").symlink_to("elsewhere")
    (directory / "directory").mkdir()
    await cached.write("other", b"b" * 900)  # evicts both
    assert sorted(os.listdir(directory)) == ["directory", "link", "other"]
    await cached.delete("directory")
    assert not await cached.exists("directory")


async def test_a_file_that_became_a_symlink_is_neither_uploaded_nor_read(
    cached: S3Storage, moto: Server, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = await cached.local_path()
    await cached.write("known", b"ours")
    for name in ("known", "new"):
        (directory / name).write_bytes(b"from the container")
    assert cached.cache is not None
    monkeypatch.setattr(cached.cache, "_open", swapped(directory, outside / "passwd", cached.cache._open))
    with pytest.raises(ExceptionGroup) as caught:
        await cached.sync_to_remote()
    assert {e.errno for e in caught.value.exceptions if isinstance(e, OSError)} == {errno.ELOOP}
    listed = moto.client().list_objects_v2(Bucket=cached.bucket.name, Prefix="sessions/work/").get("Contents", ())
    assert [(one["Key"], one["Size"]) for one in listed] == [("sessions/work/known", 4)]
    with pytest.raises(OSError):
        await cached.read("new")


def swapped(directory: Path, target: Path, then: Callable[[str], BinaryIO]) -> Callable[[str], BinaryIO]:
    """`then`, before which the container puts a symlink in the file's place."""

    def open_(path: str) -> BinaryIO:
        (directory / path).unlink()
        (directory / path).symlink_to(target)
        return then(path)

    return open_
