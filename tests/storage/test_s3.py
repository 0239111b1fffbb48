"""S3Storage as programs and mounted sessions use it, on moto."""

from __future__ import annotations

import hashlib
import io
import logging
from typing import Any

import httpx
import pytest
import trio
from botocore.exceptions import ReadTimeoutError

from tests.storage.conftest import Open
from tests.storage.faults import Fault, FaultProxy, Seen
from tests.storage.servers import Server
from vfs.errors import Conflict
from vfs.fileref import FileRef
from vfs.storage import multipart, objects
from vfs.storage.base import Storage
from vfs.storage.failures import Unavailable
from vfs.storage.s3 import S3Storage
from vfs.storage.wire import Wire

pytestmark = pytest.mark.s3


async def test_it_is_a_storage_with_the_layout_of_the_contract(s3: S3Storage, moto: Server) -> None:
    assert isinstance(s3, Storage)
    ref = await s3.write("out/report.md", b"# Report\n")
    assert ref.storage_url == f"{moto.url}/{s3.bucket.name}/sessions/work/out/report.md"
    assert (ref.size, ref.content_type) == (9, "text/markdown")
    assert ref.checksum is not None and len(ref.checksum) == 64
    found = moto.client().get_object(Bucket=s3.bucket.name, Key="sessions/work/out/report.md")
    assert (found["Body"].read(), found["ContentType"]) == (b"# Report\n", "text/markdown")
    assert ref.version == found["ETag"].strip('"')
    assert [one async for one in s3.list()] == [
        FileRef(
            path="out/report.md",
            size=9,
            content_type="text/markdown",
            storage_url=ref.storage_url,
            created_at=found["LastModified"],
            version=ref.version,
        )
    ]


async def test_options_of_a_session_override_the_storages(moto: Server, s3: S3Storage) -> None:
    other = await S3Storage(
        s3.bucket.name, endpoint=moto.url, access_key_id="a", secret_access_key="b", region="us-east-1"
    ).init("other", prefix="team/")
    async with other:
        await other.write("f", b"x")
    assert moto.client().get_object(Bucket=s3.bucket.name, Key="team/other/f")["Body"].read() == b"x"
    with pytest.raises(ValueError, match="unknown option colour"):
        await other.init("other", colour="red")


async def test_what_other_tools_put_there_appears_and_what_cannot_be_a_file_is_named(
    s3: S3Storage, moto: Server, caplog: pytest.LogCaptureFixture
) -> None:
    client, prefix = moto.client(), "sessions/work/"
    for key in ("good.txt", "d/e.txt", "both", "both/in", "folder/", "a//b", "x/../y", "n" * 256, "full/"):
        client.put_object(Bucket=s3.bucket.name, Key=prefix + key, Body=b"" if key == "folder/" else b"x")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            listed = {ref.path for ref in await s3.on_list(None, {})}
    assert listed == {"good.txt", "d/e.txt", "both/in"}
    assert {one.key.removeprefix(prefix) for one in s3.misfits} == {"both", "a//b", "x/../y", "n" * 256, "full/"}
    assert len([record for record in caplog.records if "is left out" in record.getMessage()]) == 5
    assert (await s3.objects.list()).directories == ["folder"]
    assert await s3.read("d/e.txt") == b"x"


async def test_a_presigned_url_opens_one_file_to_anyone(s3: S3Storage) -> None:
    await s3.write("a b.txt", b"shared")
    url = await s3.presigned_url("a b.txt", expires=60)
    async with httpx.AsyncClient() as anyone:
        assert (await anyone.get(url)).content == b"shared"
        put = await s3.presigned_url("new.txt", expires=60, method="put_object")
        assert (await anyone.put(put, content=b"theirs")).status_code == 200
    assert await s3.read("new.txt") == b"theirs"


async def test_options_are_passed_on_with_each_kind_of_write(
    proxy: FaultProxy, moto: Server, open_s3: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "AT_ONCE", 100)
    options: dict[str, Any] = {"sse": "AES256", "requester_pays": True}
    s3 = await open_s3(proxy.url, moto.new_bucket(), **options)
    await s3.write("f", b"x")
    await s3.on_write_file(None, "/big", io.BytesIO(b"x" * 1000), {})
    await s3.on_move(None, "/f", "/g", {})
    assert [ref.path for ref in await s3.on_list(None, {})] == ["big", "g"]
    await s3.read("g")
    await s3.cleanup()
    files = [seen for seen in proxy.seen if ".mount-session" not in seen.target]
    creating = [seen for seen in files if "partNumber" not in seen.target and seen.method == "PUT"]
    creating += [seen for seen in files if seen.target.endswith("?uploads")]
    assert len(creating) == 3
    assert all(seen.headers["x-amz-server-side-encryption"] == "AES256" for seen in creating)
    assert not any("x-amz-acl" in seen.headers for seen in proxy.seen)
    unpaid = [
        seen
        for seen in files
        if "x-amz-request-payer" not in seen.headers and "x-amz-request-payer" not in seen.target.lower()
    ]
    assert [(seen.method, seen.target) for seen in unpaid if seen.method != "HEAD"] == []


async def test_a_whole_batch_of_ranges_never_mixes_two_versions(s3: S3Storage) -> None:
    ref = await s3.write("f", b"1" * 100_000)
    got: list[bytes] = []
    conflicts = 0

    async def read(offset: int) -> None:
        nonlocal conflicts
        try:
            got.append(bytes(await s3.on_read_range(None, "/f", offset, 10_000, {"if_version": ref.version})))
        except Conflict:
            conflicts += 1

    async with trio.open_nursery() as nursery:
        for offset in range(0, 100_000, 10_000):
            nursery.start_soon(read, offset)
            if offset == 50_000:
                nursery.start_soon(s3.write, "f", b"2" * 100_000)
    assert set(b"".join(got)) <= {ord("1")}
    assert len(got) + conflicts == 10


async def test_exists_says_no_only_when_it_knows(s3: S3Storage) -> None:
    await s3.write("f", b"x")
    assert await s3.exists("f")
    assert not await s3.exists("g")
    assert not await s3.exists("f/g")


async def test_files_made_elsewhere_land_here(s3: S3Storage) -> None:
    async def fetch(descriptor: Any) -> bytes:
        return f"content of {descriptor['file_id']}".encode()

    made = [{"file_id": "file_1", "filename": "chart.png"}, {"file_id": "2", "path": "d/x"}]
    refs = await s3.sync_from_remote(made, fetch)
    assert [ref.path for ref in refs] == ["chart.png", "d/x"]
    assert await s3.read("chart.png") == b"content of file_1"
    assert await s3.read("d/x") == b"content of 2"
    for bad in ({"file_id": "3"}, {"path": "../../etc/passwd"}, {"path": "/etc"}):
        with pytest.raises(OSError, match="descriptor"):
            await s3.sync_from_remote([{"path": "fine"}, bad], fetch)
    assert not await s3.exists("fine")


async def test_an_unmounted_session_without_a_cache_has_no_local_path(s3: S3Storage, tmp_path: Any) -> None:
    with pytest.raises(OSError, match="mounted"):
        await s3.local_path()
    s3.mountpoint = tmp_path
    assert await s3.local_path() == tmp_path


async def test_a_file_that_shrinks_while_it_is_uploaded_is_not_uploaded(s3: S3Storage) -> None:
    class Shrinking(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            self.truncate(10)
            return super().read(size)

    with pytest.raises(OSError, match="became shorter"):
        await s3.on_write_file(None, "/f", Shrinking(b"x" * 1000), {})
    with pytest.raises(OSError, match="became shorter"):
        await s3.on_write_file(None, "/f", Shrinking(b"x" * (20 << 20)), {})
    assert not await s3.exists("f")


async def test_an_upload_that_fails_leaves_no_parts_behind(proxy: FaultProxy, moto: Server, open_s3: Open) -> None:
    s3 = await open_s3(proxy.url, moto.new_bucket())
    ref = await s3.write("f", b"theirs")
    big = b"x" * (20 << 20)
    proxy.add(Fault("status", "PUT", "partNumber=3", times=1, status=403, code="AccessDenied"))
    with pytest.raises(PermissionError):
        await s3.on_write_file(None, "/f", io.BytesIO(big), {"if_version": ref.version})
    with trio.CancelScope() as scope:

        def cancel(seen: Seen) -> bool:
            token.run_sync_soon(scope.cancel)
            return False

        token = trio.lowlevel.current_trio_token()
        proxy.add(Fault("reset", "PUT", "partNumber=1", when=cancel))
        await s3.on_write_file(None, "/f", io.BytesIO(big), {"if_version": ref.version})
    assert scope.cancelled_caught
    assert [seen.method for seen in proxy.seen if "?uploads" in seen.target] == ["POST", "POST"]
    assert moto.client().list_multipart_uploads(Bucket=s3.bucket.name).get("Uploads", []) == []
    assert (await s3.stat("f")).version == ref.version


async def test_a_part_that_a_slow_link_does_not_carry_in_time_is_sent_again_among_fewer(
    moto: Server, open_s3: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3 = await open_s3(moto, moto.new_bucket(), write_patience=0.0)
    send, late = Wire.send, 0

    async def send_slowly(self: Wire, method: str, url: str, headers: dict[str, str], body: bytes = b"") -> Any:
        nonlocal late
        if "partNumber=2" in url and late < 3:
            late += 1
            raise ReadTimeoutError(endpoint_url=url, error="late")
        return await send(self, method, url, headers, body)

    monkeypatch.setattr(Wire, "send", send_slowly)
    content = bytes(range(256)) * (80 << 10)
    await s3.on_write_file(None, "/f", io.BytesIO(content), {"if_version": None})
    assert late == 3 and await s3.read("f") == content
    assert s3.bucket.writes.limiter.total_tokens < 16
    late -= multipart.TRIES
    with pytest.raises(Unavailable, match="timeout"):
        await s3.on_write_file(None, "/f", io.BytesIO(content), {})


async def test_what_others_write_during_an_upload_in_parts_is_not_overwritten(
    proxy: FaultProxy, moto: Server, open_s3: Open
) -> None:
    s3 = await open_s3(proxy.url, moto.new_bucket())
    client = moto.client()
    ref = await s3.write("f", b"ours")

    def write_theirs(seen: Seen) -> bool:
        client.put_object(Bucket=s3.bucket.name, Key="sessions/work/f", Body=b"theirs")
        return False

    proxy.add(Fault("reset", "PUT", "partNumber=2", when=write_theirs))
    with pytest.raises(Conflict):
        await s3.on_write_file(None, "/f", io.BytesIO(b"x" * (20 << 20)), {"if_version": ref.version})
    assert await s3.read("f") == b"theirs"


@pytest.mark.parametrize("code", ["ConditionalRequestConflict", "OperationAborted"])
async def test_a_request_that_met_another_half_way_is_made_again(
    proxy: FaultProxy, moto: Server, open_s3: Open, code: str
) -> None:
    s3 = await open_s3(proxy.url, moto.new_bucket())
    await s3.check()
    version = None
    for content in (b"one", b"two"):
        proxy.add(Fault("status", "PUT", times=2, status=409, code=code))
        version = (await s3.on_write(None, "/f", content, {"if_version": version})).version
        assert await s3.read("f") == content
    proxy.add(Fault("status", "DELETE", times=2, status=409, code=code))
    await s3.on_delete(None, "/f", {"if_version": version})
    assert s3.bucket.counts["retries"] == 6 and not await s3.exists("f")


async def test_a_refusal_though_nobody_has_changed_anything_is_no_conflict(
    proxy: FaultProxy, moto: Server, open_s3: Open
) -> None:
    s3 = await open_s3(proxy.url, moto.new_bucket())
    ref = await s3.write("f", b"one")
    refusing = proxy.add(Fault("status", "PUT|DELETE", status=409, code="Busy"))
    for path, version in (("/f", ref.version), ("/g", None)):
        with pytest.raises(Unavailable, match="though it is the version"):
            await s3.on_write(None, path, b"two", {"if_version": version})
    refusing.status, refusing.code = 412, "PreconditionFailed"
    with pytest.raises(Unavailable, match="though it is the version"):
        await s3.on_delete(None, "/f", {"if_version": ref.version})
    assert refusing.met == 3


async def test_an_etag_that_a_proxy_has_made_weak_is_the_same_version(
    proxy: FaultProxy, moto: Server, open_s3: Open
) -> None:
    proxy.weak = True
    s3 = await open_s3(proxy.url, moto.new_bucket())
    first = await s3.on_write(None, "/f", b"one", {"if_version": None})
    assert (await s3.stat("f")).version == first.version == hashlib.md5(b"one").hexdigest()
    second = await s3.on_write(None, "/f", b"two", {"if_version": first.version})
    for plain in (False, True):
        s3.bucket.plain_ranges = plain
        assert bytes(await s3.on_read_range(None, "/f", 0, 3, {"if_version": second.version})) == b"two"
    moved = await s3.on_move(None, "/f", "/g", {"if_version": second.version})
    await s3.on_delete(None, "/g", {"if_version": moved.version})
    assert await s3.on_list(None, {}) == []
    lease = await s3.acquire("one", "this test")
    await lease.renew()


async def test_nothing_is_asked_for_in_another_encoding(proxy: FaultProxy, moto: Server, open_s3: Open) -> None:
    s3 = await open_s3(proxy.url, moto.new_bucket())
    lease = await s3.acquire("one", "this test")
    await lease.release()
    await s3.acquire("one", "this test")
    await s3.on_list(None, {})
    await s3.write("f", b"x")
    await s3.on_read_range(None, "/f", 0, 1, {})
    encodings = {seen.headers.get("accept-encoding", "identity") for seen in proxy.seen}
    assert encodings == {"identity"}


async def test_a_range_may_come_without_a_date(proxy: FaultProxy, moto: Server, open_s3: Open) -> None:
    s3 = await open_s3(proxy.url, moto.new_bucket())
    ref = await s3.write("f", b"content")
    proxy.lacking = "Last-Modified"
    assert bytes(await s3.on_read_range(None, "/f", 3, 10, {"if_version": ref.version})) == b"tent"
    assert s3.bucket.counts["retries"] == 0


async def test_a_refusal_may_come_in_chunks(proxy: FaultProxy, moto: Server, open_s3: Open) -> None:
    s3 = await open_s3(proxy.url, moto.new_bucket())
    await s3.write("f", b"content")
    proxy.chunked = True
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            await s3.on_read_range(None, "/absent", 0, 10, {})
        assert bytes(await s3.on_read_range(None, "/f", 7, 10, {})) == b""
    assert s3.bucket.counts["retries"] == 0


@pytest.mark.parametrize("plain", [True, False], ids=["sockets", "obstore"])
async def test_metadata_that_is_not_ascii_is_in_nobodys_way(
    proxy: FaultProxy, moto: Server, open_s3: Open, plain: bool
) -> None:
    s3 = await open_s3(proxy.url, moto.new_bucket())
    target = {"Bucket": s3.bucket.name, "Metadata": {"author": "Renee"}}
    moto.client().put_object(Key="sessions/work/f", Body=b"content", **target)  # type: ignore[arg-type]
    moto.client().put_object(Key="sessions/work/empty", Body=b"", **target)  # type: ignore[arg-type]
    proxy.replaced = (b"Renee", "Renée".encode())
    await s3.check()
    s3.bucket.plain_ranges = plain
    ref = await s3.on_stat(None, "/f", {})
    assert await s3.on_read(None, "/f", {"if_version": ref.version}) == b"content"
    assert await s3.read("empty") == b""
    assert bytes(await s3.on_read_range(None, "/f", 3, 9, {"if_version": ref.version})) == b"tent"
    await s3.on_move(None, "/f", "/g", {"if_version": ref.version})
    assert [one.path for one in await s3.on_list(None, {})] == ["empty", "g"]


async def test_where_a_delete_cannot_be_conditional_it_asks_first(
    proxy: FaultProxy, moto: Server, open_s3: Open, caplog: pytest.LogCaptureFixture
) -> None:
    client = moto.client()
    for number, code in enumerate(["", "NotImplemented"]):
        s3 = await open_s3(proxy.url, moto.new_bucket())
        if code:
            refused = Fault("status", "DELETE", status=501, code=code, when=lambda seen: "if-match" in seen.headers)
            proxy.add(refused)
        else:
            proxy.unheeded = ("DELETE", "if-match")
        with caplog.at_level(logging.WARNING):
            ref = await s3.write("f", b"ours")
        assert (s3.bucket.conditional, s3.bucket.conditional_deletes) == (True, False)
        assert len([r for r in caplog.records if "no conditional deletes" in r.getMessage()]) == number + 1
        client.put_object(Bucket=s3.bucket.name, Key="sessions/work/f", Body=b"theirs")
        with pytest.raises(Conflict):
            await s3.on_delete(None, "/f", {"if_version": ref.version})
        assert await s3.read("f") == b"theirs"
        await s3.on_delete(None, "/f", {"if_version": (await s3.stat("f")).version})
        assert await s3.on_list(None, {}) == []
        proxy.unheeded = None


async def test_a_storage_without_a_session_says_what_to_do() -> None:
    with pytest.raises(OSError, match="call init first"):
        _ = S3Storage("b").session_id
    with pytest.raises(ValueError, match="bucket"):
        S3Storage("")
    assert "hush" not in repr(S3Storage("b", access_key_id="a", secret_access_key="hush").endpoint)
