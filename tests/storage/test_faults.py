"""Faults between us and a real server: what is promised of reads and writes while networks and servers fail."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import pytest
import trio

from tests.storage.conftest import Open
from tests.storage.faults import Fault, FaultProxy, Kind
from tests.storage.servers import ACCESS, SECRET, Server
from vfs.callbacks import PIECE, Change
from vfs.errors import Conflict
from vfs.storage.bucket import RENEWAL_PAUSE
from vfs.storage.failures import AccessDenied, BucketMissing, Unavailable
from vfs.storage.pages import pages
from vfs.storage.s3 import S3Storage

pytestmark = pytest.mark.s3

Attempts: TypeAlias = list[Callable[[], Awaitable[object]]]

PASSING = [
    Fault("reset", times=2),
    Fault("reset after", times=2),
    Fault("reset body", times=2),
    Fault("truncate", times=2),
    Fault("status", times=2, status=500),
    Fault("status", times=2, status=503, code="SlowDown"),
    Fault("status", times=2, status=429, code="TooManyRequests"),
]


def named(fault: Fault) -> str:
    return f"{fault.kind} {fault.status if fault.kind == 'status' else ''}".strip()


@pytest.fixture
async def through(proxy: FaultProxy, moto: Server, open_s3: Open) -> S3Storage:
    """A session whose requests go through the proxy, ready to write."""
    s3 = await open_s3(proxy.url, moto.new_bucket(), request_timeout=20.0, read_patience=20.0, write_patience=20.0)
    await s3.check()
    proxy.seen.clear()
    return s3


@pytest.fixture
async def impatient(proxy: FaultProxy, moto: Server, open_s3: Open) -> S3Storage:
    """The same, which gives up early."""
    s3 = await open_s3(proxy.url, moto.new_bucket(), request_timeout=1.0, read_patience=1.5, write_patience=1.5)
    await s3.bucket.clients()  # what it takes to make them is no server's slowness
    await s3.check()
    return s3


@pytest.mark.parametrize("fault", PASSING, ids=named)
async def test_a_read_survives_a_passing_fault(proxy: FaultProxy, through: S3Storage, fault: Fault) -> None:
    content = os.urandom(100_000)
    ref = await through.write("f", content)
    for plain in (False, True):  # through obstore, and through sockets of our own
        through.bucket.plain_ranges = plain
        proxy.add(Fault(fault.kind, "GET", times=2, status=fault.status, code=fault.code))
        assert await through.on_read_range(None, "/f", 10, 50_000, {"if_version": ref.version}) == content[10:50_010]
    assert through.bucket.counts["retries"] == 4
    proxy.add(Fault(fault.kind, "GET", "list-type", times=1, status=fault.status, code=fault.code))
    assert [one.path for one in await through.on_list(None, {})] == ["f"]


@pytest.mark.parametrize("plain", [True, False], ids=["sockets", "obstore"])
@pytest.mark.parametrize("kind", ["reset body", "truncate"])
async def test_a_stream_that_breaks_has_given_what_came_and_leaves_nothing_open(
    proxy: FaultProxy, through: S3Storage, kind: Kind, plain: bool
) -> None:
    content = os.urandom(4 * PIECE)
    ref = await through.write("f", content)
    through.bucket.plain_ranges = plain
    proxy.add(Fault("status", "GET", times=1, status=503))
    proxy.add(Fault(kind, "GET", times=1))
    got = bytearray()
    with pytest.raises(Unavailable) as caught:
        async for piece in through.on_read_stream(None, "/f", 0, len(content), {"if_version": ref.version}):
            got += piece
    assert caught.value.errno == 5
    assert len(got) % PIECE == 0 and len(got) <= 2 * PIECE and got == content[: len(got)]
    gc.collect()  # a connection that nobody closed would be a warning, and so an error
    async for piece in through.on_read_stream(None, "/f", len(got), len(content), {"if_version": ref.version}):
        got += piece
    assert got == content


async def test_a_stream_that_is_not_read_to_its_end_leaves_nothing_open(proxy: FaultProxy, through: S3Storage) -> None:
    await through.write("f", bytes(4 * PIECE))
    for _ in range(3):
        async with contextlib.aclosing(through.on_read_stream(None, "/f", 0, 4 * PIECE, {})) as stream:
            await anext(stream)
    gc.collect()
    assert bytes(await through.on_read_range(None, "/f", 5, 5, {})) == bytes(5)


async def test_connections_that_the_server_has_closed_meanwhile_are_not_used(
    proxy: FaultProxy, through: S3Storage
) -> None:
    await through.write("f", b"x" * 1000)

    async def read() -> bytes:
        return bytes(await through.on_read_range(None, "/f", 0, 10, {}))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(read)
    proxy.down()
    proxy.up()
    assert await read() == b"x" * 10
    assert through.bucket.counts["retries"] == 0


@pytest.mark.parametrize("fault", PASSING, ids=named)
async def test_a_write_survives_a_passing_fault_and_happens_once(
    proxy: FaultProxy, through: S3Storage, fault: Fault
) -> None:
    proxy.add(Fault(fault.kind, "PUT", times=2, status=fault.status, code=fault.code))
    ref = await through.on_write(None, "/f", b"content", {"if_version": None})
    assert await through.read("f") == b"content"
    proxy.add(Fault(fault.kind, "PUT", times=1, status=fault.status, code=fault.code))
    again = await through.on_write(None, "/f", b"content 2", {"if_version": ref.version})
    assert (await through.stat("f")).version == again.version
    proxy.add(Fault(fault.kind, "DELETE", times=1, status=fault.status, code=fault.code))
    await through.on_delete(None, "/f", {"if_version": again.version})
    assert not await through.exists("f")


def many(number: int) -> list[Change]:
    return [Change("write", f"/{n}", {"if_version": None}, file=io.BytesIO(b"%d" % n)) for n in range(number)]


async def test_many_writes_end_at_the_first_that_fails_and_begin_again_where_it_is_the_very_first(
    proxy: FaultProxy, through: S3Storage
) -> None:
    slow = Fault("status", "PUT", "work/3$", times=1, status=503, code="SlowDown")
    proxy.add(slow)
    assert [ref.path for ref in await through.on_write_many(None, many(8), {})] == ["0", "1", "2"]
    assert slow.met == 1 and through.bucket.counts["retries"] == 0
    before = through.bucket.writes.limiter.total_tokens
    proxy.add(Fault("status", "PUT", "work/3$", times=2, status=503, code="SlowDown"))
    assert [ref.path for ref in await through.on_write_many(None, many(8)[3:], {})] == ["3", "4", "5", "6", "7"]
    assert through.bucket.counts["retries"] == 2 and through.bucket.writes.limiter.total_tokens < before
    assert [await through.read(str(n)) for n in range(8)] == [b"%d" % n for n in range(8)]
    with pytest.raises(Conflict):
        await through.on_write_many(None, many(8), {})


@pytest.mark.parametrize("fault", PASSING, ids=named)
@pytest.mark.parametrize("step", ["uploads$", "partNumber=2", "uploadId=[^&]+$"], ids=["create", "part", "complete"])
async def test_an_upload_in_parts_survives_a_passing_fault(
    proxy: FaultProxy, through: S3Storage, moto: Server, fault: Fault, step: str
) -> None:
    content = os.urandom((17 << 20) + 1)
    rule = proxy.add(Fault(fault.kind, "POST|PUT", step, times=1, status=fault.status, code=fault.code))
    ref = await through.on_write_file(None, "/big", io.BytesIO(content), {"if_version": None})
    assert rule.times == 0, "the fault was never met"
    assert await through.on_read(None, "/big", {"if_version": ref.version}) == content


async def test_a_lost_answer_is_no_conflict_but_another_writer_is(
    proxy: FaultProxy, through: S3Storage, moto: Server
) -> None:
    proxy.add(Fault("reset after", "PUT", times=1))
    ref = await through.on_write(None, "/f", b"ours", {"if_version": None})
    assert through.bucket.counts["writes that had arrived before"] == 1
    moto.client().put_object(Bucket=through.bucket.name, Key="sessions/work/f", Body=b"them")
    proxy.add(Fault("reset after", "PUT", times=1))
    with pytest.raises(Conflict):
        await through.on_write(None, "/f", b"us 2", {"if_version": ref.version})
    assert await through.read("f") == b"them"


async def test_a_write_over_what_is_gone_is_a_conflict_where_the_server_says_404(
    proxy: FaultProxy, through: S3Storage, moto: Server
) -> None:
    ref = await through.write("f", b"1")
    moto.client().delete_object(Bucket=through.bucket.name, Key="sessions/work/f")
    gone = Fault("status", "PUT", times=1, status=404, code="NoSuchKey", when=lambda seen: "if-match" in seen.headers)
    proxy.add(gone)
    with pytest.raises(Conflict):
        await through.on_write(None, "/f", b"2", {"if_version": ref.version})
    assert gone.times == 0


@pytest.mark.parametrize("kind", ["slow", "reset", "truncate", "reset body", "status"])
async def test_a_read_ends_with_eio_in_bounded_time(
    proxy: FaultProxy, impatient: S3Storage, open_s3: Open, kind: str
) -> None:
    await impatient.write("f", b"x" * 10_000)
    proxy.add(Fault(kind, status=503, code="SlowDown"))  # type: ignore[arg-type]
    attempts: Attempts = [lambda: impatient.on_read_range(None, "/f", 0, 100, {}), lambda: impatient.on_list(None, {})]
    if kind == "slow":
        attempts.append(lambda: anext(impatient.on_read_stream(None, "/f", 0, 10_000, {})))
        other = await open_s3(proxy.url, impatient.bucket.name, request_timeout=1.0, read_patience=1.5)
        await other.bucket.clients()
        other.bucket.plain_ranges = False
        attempts.append(lambda: other.on_read_range(None, "/f", 0, 100, {}))
        attempts.append(lambda: anext(other.on_read_stream(None, "/f", 0, 10_000, {})))
    if kind not in ("truncate", "reset body"):  # the answer to its HEAD has no body
        attempts.append(lambda: impatient.exists("f"))
    await each_is_unavailable(attempts, within=1.5 + 2.0)


async def each_is_unavailable(attempts: Attempts, within: float) -> None:
    """All at once."""

    async def one(attempt: Callable[[], Awaitable[object]]) -> None:
        started = time.monotonic()
        with pytest.raises(Unavailable) as caught:
            await attempt()
        assert caught.value.errno == 5
        assert time.monotonic() - started < within

    async with trio.open_nursery() as nursery:
        for attempt in attempts:
            nursery.start_soon(one, attempt)


async def test_a_slow_server_cannot_hold_a_write_for_ever(proxy: FaultProxy, impatient: S3Storage) -> None:
    proxy.add(Fault("slow", "PUT|POST|DELETE"))
    attempts: Attempts = [
        lambda: impatient.write("f", b"x"),
        lambda: impatient.on_write_file(None, "/big", io.BytesIO(b"x" * (17 << 20)), {}),
        lambda: impatient.delete("f"),
    ]
    await each_is_unavailable(attempts, within=1.5 + 2 * 1.0 + 2.0)
    assert impatient.bucket.writes.limiter.total_tokens < 16, "what does not come in time is asked for less at once"


async def test_work_goes_on_when_connections_are_accepted_again(proxy: FaultProxy, impatient: S3Storage) -> None:
    await impatient.write("f", b"1")
    proxy.down()
    attempts: Attempts = [
        lambda: impatient.read("f"),
        lambda: impatient.write("f", b"2"),
        lambda: impatient.on_list(None, {}),
    ]
    for attempt in attempts:
        with pytest.raises(Unavailable):
            await attempt()
    proxy.up()
    assert await impatient.read("f") == b"1"
    await impatient.write("f", b"3")
    assert await impatient.read("f") == b"3"


async def test_a_short_outage_is_not_seen(proxy: FaultProxy, through: S3Storage) -> None:
    await through.write("f", b"1")
    proxy.down()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def recover() -> None:
            while through.bucket.counts["retries"] == 0:  # noqa: ASYNC110 - there is nobody who tells
                await trio.sleep(0.01)
            proxy.up()

        assert await through.read("f") == b"1"
    assert through.bucket.counts["retries"] >= 1


async def test_rotated_credentials_are_found_and_used(
    proxy: FaultProxy, moto: Server, open_s3: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    profile = "[default]\naws_access_key_id = {}\naws_secret_access_key = {}\n"
    file.write_text(profile.format("old-key", SECRET))
    s3 = await open_s3(proxy.url, moto.new_bucket(), access_key_id=None, secret_access_key=None)
    await s3.write("f", b"1")
    passing = proxy.add(Fault("status", times=0))
    expired = Fault("status", status=403, code="ExpiredToken", when=lambda seen: "old-key" in str(seen))
    proxy.add(expired)
    with pytest.raises(AccessDenied) as caught:
        await s3.read("f")
    assert caught.value.errno == 13 and "ExpiredToken" in str(caught.value)
    file.write_text(profile.format(ACCESS, SECRET))
    await trio.sleep(RENEWAL_PAUSE)
    passing.times = 1  # a refusal that comes second is looked into all the same
    assert await s3.read("f") == b"1"
    assert s3.bucket.counts["credentials rotated"] == 1
    await s3.write("f", b"2")
    assert [one.path for one in await s3.on_list(None, {})] == ["f"]
    assert await s3.read("f") == b"2"


async def test_credentials_that_a_program_provides_are_asked_for_again_when_they_are_refused(
    proxy: FaultProxy, moto: Server, open_s3: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"

    def provide(token: str) -> None:
        expires = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        keys = {"AccessKeyId": ACCESS, "SecretAccessKey": SECRET, "SessionToken": token, "Expiration": expires}
        told.write_text(json.dumps({"Version": 1, **keys}))

    (tmp_path / "config").write_text(f"[default]\ncredential_process = cat {told}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    provide("token-1")
    s3 = await open_s3(proxy.url, moto.new_bucket(), access_key_id=None, secret_access_key=None)
    await s3.write("f", b"1")
    revoked = Fault("status", status=403, code="ExpiredToken", when=lambda seen: "token-1" in str(seen))
    proxy.add(revoked)
    provide("token-2")  # long before the first one was to expire
    assert await s3.read("f") == b"1"
    await s3.write("f", b"2")
    assert [one.path for one in await s3.on_list(None, {})] == ["f"]
    assert revoked.met == 1


async def test_a_clock_that_is_wrong_is_said_to_be(proxy: FaultProxy, impatient: S3Storage) -> None:
    proxy.add(Fault("status", status=403, code="RequestTimeTooSkewed"))
    with pytest.raises(AccessDenied, match="clock is wrong"):
        await impatient.read("f")


async def test_a_bucket_that_is_gone_is_not_an_empty_one(moto: Server, open_s3: Open) -> None:
    s3 = await open_s3(moto, moto.new_bucket())
    await s3.write("f", b"x")
    await s3.delete("f")
    moto.client().delete_object(Bucket=s3.bucket.name, Key="sessions/work/f")
    moto.client().delete_bucket(Bucket=s3.bucket.name)
    attempts: Attempts = [
        lambda: s3.read("f"),
        lambda: s3.stat("f"),
        lambda: s3.exists("f"),
        lambda: s3.on_list(None, {}),
        lambda: s3.write("f", b"y"),
        lambda: s3.on_load_image(None, {}),
        lambda: s3.check(),
    ]
    for attempt in attempts:
        with pytest.raises(BucketMissing):
            await attempt()


async def test_a_listing_that_changes_while_it_is_paged_has_what_stayed(moto: Server, open_s3: Open) -> None:
    s3 = await open_s3(moto, moto.new_bucket())
    client, bucket = moto.client(), s3.bucket.name
    async with trio.open_nursery() as nursery:
        for number in range(1010):
            nursery.start_soon(s3.write, f"f{number:04d}", b"")
    keys: list[str] = []
    async for page in pages(s3.bucket, s3.keys.prefix):
        if not keys:
            client.delete_object(Bucket=bucket, Key="sessions/work/f0000")
            client.delete_object(Bucket=bucket, Key="sessions/work/f1005")
            client.put_object(Bucket=bucket, Key="sessions/work/f1004a", Body=b"")
        keys += [entry.key.removeprefix("sessions/work/") for entry in page]
    assert len(keys) == len(set(keys))
    assert {f"f{number:04d}" for number in range(1010)} - set(keys) <= {"f0000", "f1005"}
    assert "f1004a" in keys


async def test_slow_down_lowers_the_number_of_requests_at_once(proxy: FaultProxy, through: S3Storage) -> None:
    await through.write("f", b"x")
    before = through.bucket.reads.limiter.total_tokens
    proxy.add(Fault("status", "GET", times=1, status=503, code="SlowDown"))
    assert await through.read("f") == b"x"
    assert through.bucket.reads.limiter.total_tokens == before // 2


async def test_content_that_is_not_what_its_etag_says_is_read_again(proxy: FaultProxy, through: S3Storage) -> None:
    content = os.urandom(100_000)
    await through.write("f", content)
    fault = proxy.add(Fault("corrupt", "GET", times=1))
    assert await through.read("f") == content
    assert fault.times == 0
    assert through.bucket.counts["spoiled answers"] == 1
    # A server may have ETags that only look like an MD5; what comes twice the same is what it has.
    proxy.add(Fault("corrupt", "GET", times=2))
    assert await through.read("f") == bytes(byte ^ 1 for byte in content)


async def test_who_only_reads_learns_from_that_what_etags_say(proxy: FaultProxy, moto: Server, open_s3: Open) -> None:
    client, bucket = moto.client(), moto.new_bucket()
    for name in "ab":
        client.put_object(Bucket=bucket, Key=f"sessions/work/{name}", Body=name.encode() * 1000)
    reader = await open_s3(proxy.url, bucket)
    for plain in (False, True):
        reader.bucket.plain_ranges = plain
        assert await reader.on_read_range(None, "/a", 0, 1000, {}) == b"a" * 1000
        proxy.add(Fault("corrupt", "GET", times=1))
        assert await reader.on_read_range(None, "/b", 0, 1000, {}) == b"b" * 1000
    assert reader.bucket.counts["spoiled answers"] == 2
