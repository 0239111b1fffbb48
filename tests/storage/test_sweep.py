from __future__ import annotations

from typing import Any

import pytest
import trio

from tests.storage.conftest import Open
from tests.storage.faults import Fault, FaultProxy
from tests.storage.servers import Server
from vfs.storage import sweep
from vfs.storage.failures import CleanupIncomplete
from vfs.storage.s3 import S3Storage

pytestmark = pytest.mark.s3


async def test_versions_delete_markers_and_unfinished_uploads_go_too(s3: S3Storage, moto: Server) -> None:
    client, bucket = moto.client(), s3.bucket.name
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for number in range(3):
        await s3.write("f", b"x" * number)
    await s3.delete("f")
    await s3.on_save_image(None, b"image", {"if_version": None})
    client.create_multipart_upload(Bucket=bucket, Key="sessions/work/big")
    client.create_multipart_upload(Bucket=bucket, Key="sessions/other/big")
    client.put_object(Bucket=bucket, Key="sessions/other/f", Body=b"x")
    await s3.cleanup()
    left = client.list_object_versions(Bucket=bucket)
    assert [one["Key"] for one in left.get("Versions", []) + left.get("DeleteMarkers", [])] == ["sessions/other/f"]
    assert [one["Key"] for one in client.list_multipart_uploads(Bucket=bucket)["Uploads"]] == ["sessions/other/big"]


async def test_thousands_of_objects_go_in_few_requests(proxy: FaultProxy, moto: Server, open_s3: Open) -> None:
    s3 = await open_s3(proxy.url, moto.new_bucket())
    client = moto.client()
    direct = await open_s3(moto, s3.bucket.name)
    async with trio.open_nursery() as nursery:
        for number in range(1050):
            nursery.start_soon(direct.write, f"{number}", b"")
    await s3.cleanup()
    assert client.list_objects_v2(Bucket=s3.bucket.name)["KeyCount"] == 0
    assert len(proxy.seen) <= 10


@pytest.mark.parametrize("one_by_one", [False, True])
async def test_versions_that_may_not_be_listed_are_said_to_remain(
    proxy: FaultProxy, moto: Server, open_s3: Open, one_by_one: bool
) -> None:
    s3 = await open_s3(proxy.url, moto.new_bucket())
    client, bucket = moto.client(), s3.bucket.name
    client.put_object(Bucket=bucket, Key="sessions/work/.mount-session/image", Body=b"x")
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"})
    for content in (b"1", b"2"):
        await s3.write("f", content)
    proxy.add(Fault("status", "GET", r"[?&]versions", status=403, code="AccessDenied"))
    if one_by_one:
        proxy.add(Fault("status", "POST", "delete", status=501, code="NotImplemented"))
    with pytest.raises(CleanupIncomplete) as caught:
        await s3.cleanup()
    assert "sessions/work/f: its older versions could not be listed, and remain" in caught.value.remaining
    assert client.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    proxy.clear()
    await s3.cleanup()
    left = client.list_object_versions(Bucket=bucket)
    assert left.get("Versions", []) + left.get("DeleteMarkers", []) == []


async def test_uploads_that_may_not_be_listed_are_said_with_all_else_that_remains(
    proxy: FaultProxy, moto: Server, open_s3: Open
) -> None:
    s3 = await open_s3(proxy.url, moto.new_bucket())
    await s3.write("f", b"x")
    proxy.add(Fault("status", "POST|DELETE", "", status=403, code="AccessDenied"))
    proxy.add(Fault("status", "GET", r"[?&]uploads", status=403, code="AccessDenied"))
    with pytest.raises(CleanupIncomplete) as caught:
        await s3.cleanup()
    first, *_, last = caught.value.remaining
    assert first.startswith("sessions/work/") and last.startswith("sessions/work/ (unfinished uploads")


async def test_a_listing_of_versions_may_have_none(
    s3: S3Storage, moto: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await s3.write("f", b"x")
    page = sweep._version_page

    def without(*args: Any) -> Any:
        found = page(*args)
        for one in found.get("Versions", []):
            del one["VersionId"]
        return found

    monkeypatch.setattr(sweep, "_version_page", without)
    await s3.cleanup()
    assert moto.client().list_objects_v2(Bucket=s3.bucket.name)["KeyCount"] == 0


async def test_what_could_not_be_removed_is_said_and_all_else_is_removed(
    proxy: FaultProxy, moto: Server, open_s3: Open
) -> None:
    s3 = await open_s3(proxy.url, moto.new_bucket(), write_patience=0.5)
    for number in range(3):
        await s3.write(f"f{number}", b"x")
    proxy.add(Fault("status", "POST", "delete", status=403, code="AccessDenied"))
    proxy.add(Fault("status", "DELETE", r"/f1(\?|$)", status=403, code="AccessDenied"))
    with pytest.raises(CleanupIncomplete) as caught:
        await s3.cleanup()
    [remaining] = caught.value.remaining
    assert remaining.startswith("sessions/work/f1: ") and "AccessDenied" in remaining
    keys = [one["Key"] for one in moto.client().list_objects_v2(Bucket=s3.bucket.name)["Contents"]]
    assert keys == ["sessions/work/f1"]
    proxy.clear()
    await s3.cleanup()
    assert moto.client().list_objects_v2(Bucket=s3.bucket.name)["KeyCount"] == 0
