"""kill -9 at every failure point of the S3 backend, then the same again by another process that knows nothing."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.storage.conftest import Open
from tests.storage.servers import ACCESS, SECRET, Server
from vfs.failpoints import POINTS
from vfs.storage.s3 import S3Storage

pytestmark = pytest.mark.s3

SIZE = (17 << 20) + 5  # two parts, and a third
CHILD = """
import io, sys, trio
from vfs.storage.s3 import S3Storage

async def main(url, bucket, what):
    async with S3Storage(bucket, endpoint=url, region="us-east-1") as s3:
        await s3.init("work")
        if what == "write":
            await s3.on_write(None, "/f", b"new", {"if_version": (await s3.stat("f")).version})
        elif what == "multipart":
            await s3.on_write_file(None, "/f", io.BytesIO(b"n" * SIZE), {"if_version": (await s3.stat("f")).version})
        elif what == "delete":
            await s3.on_delete(None, "/f", {"if_version": (await s3.stat("f")).version})
        elif what == "move":
            await s3.on_move(None, "/f", "/g", {"if_version": (await s3.stat("f")).version})
        elif what == "image":
            await s3.on_save_image(None, b"new image", {"if_version": (await s3.on_load_image(None, {}))[1]})
        elif what == "lease":
            lease = await s3.acquire("holder", "a host")
            await lease.renew()

SIZE = int(sys.argv.pop())
trio.run(main, *sys.argv[1:])
"""


def points(what: str) -> list[str]:
    found = sorted(point for point in POINTS if point.startswith(f"s3.{what}."))
    assert found
    return found


def killed(server: Server, s3: S3Storage, what: str, point: str) -> None:
    """Run `what` in a process of its own that dies at `point`; fails if it does not."""
    process = subprocess.run(
        [sys.executable, "-c", CHILD, server.url, s3.bucket.name, what, str(SIZE)],
        cwd=Path(__file__).parents[2],
        env={
            **os.environ,
            "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "MOUNT_SESSION_FAILPOINT": point,
        },
        capture_output=True,
        timeout=60,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()


@pytest.mark.parametrize("point", points("write"))
async def test_a_write_is_there_or_not_and_is_finished_by_the_next(s3: S3Storage, moto: Server, point: str) -> None:
    ref = await s3.write("f", b"old")
    killed(moto, s3, "write", point)
    assert await s3.read("f") in (b"old", b"new")
    again = await s3.on_write(None, "/f", b"new", {"if_version": ref.version})
    assert (await s3.on_read(None, "/f", {"if_version": again.version})) == b"new"


@pytest.mark.parametrize("point", points("multipart"))
async def test_an_upload_in_parts_is_there_whole_or_not_at_all(s3: S3Storage, moto: Server, point: str) -> None:
    ref = await s3.write("f", b"old")
    killed(moto, s3, "multipart", point)
    assert await s3.read("f") in (b"old", b"n" * SIZE)
    again = await s3.on_write_file(None, "/f", io.BytesIO(b"n" * SIZE), {"if_version": ref.version})
    assert (await s3.on_read(None, "/f", {"if_version": again.version})) == b"n" * SIZE
    await s3.cleanup()
    assert moto.client().list_multipart_uploads(Bucket=s3.bucket.name).get("Uploads", []) == []


@pytest.mark.parametrize("point", points("delete"))
async def test_a_delete_can_be_repeated(s3: S3Storage, moto: Server, point: str) -> None:
    ref = await s3.write("f", b"old")
    killed(moto, s3, "delete", point)
    await s3.on_delete(None, "/f", {"if_version": ref.version})
    assert not await s3.exists("f")


@pytest.mark.parametrize("point", points("move"))
async def test_a_move_never_loses_the_file_and_can_be_repeated(s3: S3Storage, moto: Server, point: str) -> None:
    ref = await s3.write("f", b"content")
    killed(moto, s3, "move", point)
    there = {one.path for one in await s3.on_list(None, {})}
    assert there in ({"f"}, {"f", "g"}, {"g"})
    moved = await s3.on_move(None, "/f", "/g", {"if_version": ref.version})
    assert await s3.on_read(None, "/g", {"if_version": moved.version}) == b"content"
    assert {one.path for one in await s3.on_list(None, {})} == {"g"}


@pytest.mark.parametrize("point", points("image"))
async def test_an_image_is_the_old_or_the_new_one(s3: S3Storage, moto: Server, point: str) -> None:
    version = await s3.on_save_image(None, b"old image", {"if_version": None})
    killed(moto, s3, "image", point)
    loaded = await s3.on_load_image(None, {})
    assert loaded is not None and loaded[0] in (b"old image", b"new image")
    saved = await s3.on_save_image(None, b"new image", {"if_version": version})
    assert await s3.on_load_image(None, {}) == (b"new image", saved)


@pytest.mark.parametrize("point", points("lease"))
async def test_a_lease_goes_on_with_the_next_process_of_its_holder(
    s3: S3Storage, moto: Server, open_s3: Open, point: str
) -> None:
    killed(moto, s3, "lease", point)
    other = await open_s3(moto, s3.bucket.name)
    with pytest.raises(OSError, match="a host"):
        await other.acquire("another", "another host")
    lease = await s3.acquire("holder", "a host")
    await lease.renew()
    await lease.release()
    await other.acquire("another", "another host")
