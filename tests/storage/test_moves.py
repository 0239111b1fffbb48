"""Moves on S3: a copy on the server and a delete, conditional at both ends."""

from __future__ import annotations

import os

import pytest

from tests.storage.conftest import Open
from tests.storage.faults import Fault, FaultProxy, Seen
from tests.storage.servers import Server
from vfs.errors import Conflict
from vfs.storage import multipart, objects
from vfs.storage.bucket import ANY
from vfs.storage.s3 import S3Storage

pytestmark = pytest.mark.s3


async def test_a_file_over_the_limit_of_one_copy_is_moved_in_parts(
    s3: S3Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(11 << 20)
    ref = await s3.on_write(None, "/old", content, {"mode": 0o700, "mtime_ns": 3})
    monkeypatch.setattr(objects, "COPY_AT_ONCE", 1 << 20)
    monkeypatch.setattr(multipart, "COPY_PART", 5 << 20)
    monkeypatch.setattr(multipart.copy_in_parts, "__defaults__", (ANY, 5 << 20))
    moved = await s3.on_move(None, "/old", "/new", {"if_version": ref.version})
    assert moved.version is not None and moved.version.endswith("-3")
    found = await s3.stat("new")
    assert (found.version, found.mode, found.mtime_ns, found.size) == (moved.version, 0o700, 3, len(content))
    assert await s3.read("new") == content
    assert not await s3.exists("old")


async def test_a_move_keeps_the_headers_that_others_gave_an_object(s3: S3Storage, moto: Server, in_parts: bool) -> None:
    headers = {
        "ContentType": "text/css",
        "CacheControl": "max-age=9",
        "ContentDisposition": "attachment",
        "ContentEncoding": "gzip",
        "ContentLanguage": "de",
        "Metadata": {"author": "ann"},
    }
    moto.client().put_object(Bucket=s3.bucket.name, Key="sessions/work/old", Body=b"x", **headers)  # type: ignore[arg-type]
    await s3.on_move(None, "/old", "/new", {"if_version": (await s3.stat("old")).version})
    found = moto.client().head_object(Bucket=s3.bucket.name, Key="sessions/work/new")
    assert {name: found.get(name) for name in headers} == headers


async def test_a_move_that_was_done_already_is_done(s3: S3Storage) -> None:
    ref = await s3.write("old", b"content")
    await s3.on_move(None, "/old", "/new", {"if_version": ref.version})
    assert (await s3.on_move(None, "/old", "/new", {"if_version": ref.version})).version == ref.version
    with pytest.raises(FileNotFoundError):
        await s3.on_move(None, "/old", "/new", {"if_version": "another"})


async def test_what_others_write_before_a_move_copies_it_is_not_taken_for_ours(
    proxy: FaultProxy, moto: Server, open_s3: Open
) -> None:
    s3 = await open_s3(proxy.url, moto.new_bucket())
    client = moto.client()
    ref = await s3.write("f", b"ours")

    def write_theirs(seen: Seen) -> bool:
        if "x-amz-copy-source" in seen.headers:
            client.put_object(Bucket=s3.bucket.name, Key="sessions/work/f", Body=b"theirs")
        return False

    proxy.add(Fault("reset", "PUT", when=write_theirs))
    with pytest.raises(Conflict):
        await s3.on_move(None, "/f", "/g", {"if_version": ref.version})
    assert await s3.read("f") == b"theirs"
    # moto ignores this condition, and keeps us only from deleting theirs; AWS keeps the copy from being made too.
    [copy] = [seen for seen in proxy.seen if "x-amz-copy-source" in seen.headers]
    assert copy.headers["x-amz-copy-source-if-match"] == f'"{ref.version}"'


@pytest.fixture(params=[False, True], ids=["at once", "in parts"])
def in_parts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param:
        monkeypatch.setattr(objects, "COPY_AT_ONCE", 0)
    return bool(request.param)


def refusing_as_aws(proxy: FaultProxy, server: Server, bucket: str, key: str) -> Fault:
    """Makes moto refuse a copy onto what is there."""

    def is_refused(seen: Seen) -> bool:
        there = server.client().list_objects_v2(Bucket=bucket, Prefix=key).get("Contents", [])
        return "if-none-match" in seen.headers and bool(there)

    return proxy.add(
        Fault("status", "PUT|POST", rf"{key}(\?uploadId=[^&]+)?$", None, 412, "PreconditionFailed", is_refused)
    )


async def test_what_others_write_at_a_moves_target_while_it_copies_is_not_overwritten(
    proxy: FaultProxy, moto: Server, open_s3: Open, in_parts: bool
) -> None:
    s3 = await open_s3(proxy.url, moto.new_bucket())
    ref = await s3.write("f", b"ours")
    before = "work/g?uploadId" if in_parts else "work/g"

    def write_theirs(seen: Seen) -> bool:
        if before in seen.target and "if-none-match" in seen.headers:
            moto.client().put_object(Bucket=s3.bucket.name, Key="sessions/work/g", Body=b"them")
        return False

    proxy.add(Fault("reset", "PUT|POST", when=write_theirs))
    refusing_as_aws(proxy, moto, s3.bucket.name, "sessions/work/g")
    with pytest.raises(Conflict):
        await s3.on_move(None, "/f", "/g", {"if_version": ref.version, "if_target": None})
    assert (await s3.read("f"), await s3.read("g")) == (b"ours", b"them")
    there = await s3.stat("g")
    with pytest.raises(Conflict):
        await s3.on_move(None, "/f", "/g", {"if_version": ref.version, "if_target": None})
    proxy.clear()
    await s3.on_move(None, "/f", "/g", {"if_version": ref.version, "if_target": there.version})
    assert await s3.read("g") == b"ours"


async def test_a_move_whose_answer_was_lost_is_no_conflict(
    proxy: FaultProxy, moto: Server, open_s3: Open, in_parts: bool
) -> None:
    s3 = await open_s3(proxy.url, moto.new_bucket())
    ref = await s3.on_write(None, "/f", b"ours", {"mode": 0o700})
    lost = proxy.add(Fault("reset after", "PUT|POST", r"work/g(\?uploadId=[^&]+)?$", times=1))
    refused = refusing_as_aws(proxy, moto, s3.bucket.name, "sessions/work/g")
    moved = await s3.on_move(None, "/f", "/g", {"if_version": ref.version, "if_target": None})
    assert (lost.met, refused.met) == (1, 1)
    assert (moved.version, moved.mode) == ((await s3.stat("g")).version, 0o700)
    assert await s3.read("g") == b"ours" and not await s3.exists("f")


async def test_a_server_that_knows_no_conditions_on_a_copys_target_copies_without(
    proxy: FaultProxy, moto: Server, open_s3: Open
) -> None:
    s3 = await open_s3(proxy.url, moto.new_bucket())
    ref = await s3.write("f", b"ours")
    unknown = Fault(
        "status", "PUT", "work/g", None, 501, "NotImplemented", lambda seen: "if-none-match" in seen.headers
    )
    proxy.add(unknown)
    await s3.on_move(None, "/f", "/g", {"if_version": ref.version, "if_target": None})
    assert unknown.met == 1 and await s3.read("g") == b"ours" and not await s3.exists("f")
