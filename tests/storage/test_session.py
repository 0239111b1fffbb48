"""A session whose persistence is a bucket: written here, found again elsewhere from an empty state directory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.storage.conftest import Open
from tests.storage.faults import Fault, FaultProxy
from tests.storage.servers import Server
from tests.vfs.shelf import content, put, routes
from vfs.persisted import PersistedSession
from vfs.rules import Changes
from vfs.session import Session
from vfs.tree import KERNEL

pytestmark = pytest.mark.s3


async def test_a_session_is_found_again_from_an_empty_state_directory(
    any_server: Server, open_s3: Open, tmp_path: Path
) -> None:
    bucket = any_server.new_bucket()
    big = os.urandom((17 << 20) + 3)
    async with Session.open("work", tmp_path / "here", routes=routes(await open_s3(any_server, bucket))) as session:
        folder = session.mkdir(1, b"d", 0o755, KERNEL).ino
        report = await put(session, "report.md", b"# Report")
        await session.setattr(report, Changes(mode=0o751, mtime_ns=10**18 + 7), KERNEL)
        session.symlink(folder, b"link", b"../report.md", KERNEL)
        session.mkdir(1, b"empty", 0o700, KERNEL)
        session.link(report, folder, b"twin", KERNEL)
        await put(session, "big.bin", big)
        await put(session, "old", b"moved")
        await session.sync()
        session.rename(1, b"old", folder, b"new", 0, KERNEL)
        receipt = await session.sync()
        assert receipt.pending == 0
    s3 = await open_s3(any_server, bucket)
    async with Session.open("work", tmp_path / "there", routes=routes(s3)) as session:
        assert isinstance(session, PersistedSession)
        assert await content(session, "report.md") == b"# Report"
        assert await content(session, "big.bin") == big
        assert await content(session, "d/new") == b"moved"
        assert session.at(b"old") is None
        found, link, empty = session.at(b"report.md"), session.at(b"d/link"), session.at(b"empty")
        assert found is not None and link is not None and empty is not None
        assert (found.mode & 0o777, found.mtime_ns, found.nlink) == (0o751, 10**18 + 7, 2)
        assert session.at(b"d/twin") is found
        assert link.target == b"../report.md"
        assert empty.mode & 0o777 == 0o700


async def test_what_fails_on_the_way_is_there_in_the_end(
    proxy: FaultProxy, moto: Server, open_s3: Open, tmp_path: Path
) -> None:
    bucket = moto.new_bucket()
    s3 = await open_s3(proxy.url, bucket, read_patience=1.0, write_patience=0.2)
    proxy.add(Fault("reset after", "PUT", times=3))
    proxy.add(Fault("status", "PUT", times=3, status=503, code="SlowDown"))
    async with Session.open("work", tmp_path / "here", routes=routes(s3)) as session:
        for number in range(20):
            await put(session, f"f{number}", b"%d" % number)
        assert (await session.sync()).pending == 0
    keys = {one["Key"] for one in moto.client().list_objects_v2(Bucket=bucket)["Contents"]}
    files = {key for key in keys if "/.mount-session/" not in key}
    assert files == {f"sessions/work/f{number}" for number in range(20)}
