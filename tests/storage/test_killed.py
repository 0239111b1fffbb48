"""kill -9 at every failure point on the way to the bucket; then the session from an empty state directory elsewhere.

Every file that a receipt named is there, byte for byte, with modes, links, times and empty directories; what was under
way is there as it was or as it should become, and nothing is there in part. Then from the state directory that was left
behind: all that was done is there and in the bucket, once, and in conflict with nobody."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.storage import killing
from tests.storage.conftest import Open
from tests.storage.servers import ACCESS, SECRET, Server
from tests.vfs.shelf import routes
from vfs.failpoints import POINTS
from vfs.session import Session
from vfs.storage.writer import sole_writer

pytestmark = pytest.mark.s3

ON_THE_WAY = sorted(point for point in POINTS if point.startswith(("s3.", "upload.", "move.", "delete.")))
PARTS = [point for point in ON_THE_WAY if point.startswith("s3.multipart.")]
MANY = ["s3.many.one-written", "batch.before-record"]
CASES = [*((point, "") for point in ON_THE_WAY if point not in MANY), *((point, "copy") for point in PARTS)]
assert len(PARTS) == 3

DIRECTORIES = {"renamed", "tree", "tree/deep"}


def killed(server: Server, bucket: str, state: Path, point: str, last: str) -> dict[str, list[Any]]:
    """What the receipt promised of a process that has died at the point; fails if it has not."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.storage.killing", server.url, bucket, state, point, *filter(None, [last])],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET},
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    promised: dict[str, list[Any]] = json.loads(done.stdout)
    assert len(promised) == 14
    return promised


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(("point", "copy"), CASES)
async def test_what_a_receipt_named_is_there_from_an_empty_state(
    moto: Server, open_s3: Open, tmp_path: Path, point: str, copy: str
) -> None:
    bucket = moto.new_bucket()
    promised = killed(moto, bucket, tmp_path / "here", point, copy)
    s3 = await open_s3(moto, bucket, read_patience=25.0)
    there = tmp_path / "there"
    async with (
        sole_writer(s3, there / killing.SESSION, steal=True),
        Session.open(killing.SESSION, there, routes=routes(s3)) as session,
    ):
        found = await killing.described(session)
        assert session.getxattr(session.lookup(1, b"kept").ino, b"user.note") == b"\0\xff"
        assert session.lookup(1, b"kept") is session.namespace.walk(b"folder/twin")
    moves = {"moved": "moved here", "tree/one": "renamed/one", "tree/deep/two": "renamed/deep/two", "big": "big here"}
    for path, entry in promised.items():
        if path in ("gone", "edited", "mode", *moves) and not (path == "big" and not copy):
            continue
        assert path in DIRECTORIES or found[path] == entry, path
    inside = {path: entry[3] for path, entry in promised.items()}
    for old, new in moves.items():
        assert {found[path][3] for path in (old, new) if path in found} == {inside[old]}, old
    assert found["edited"][3] in (inside["edited"], sha(killing.EDITED))
    assert found["mode"][3] == inside["mode"]
    assert found.get("gone", promised["gone"]) == promised["gone"]
    for path, content in (("new", killing.NEW), ("new big", killing.NEW_BIG)):
        assert path not in found or found[path][3] == sha(content)

    here = tmp_path / "here"
    async with (
        sole_writer(s3, here / killing.SESSION),
        Session.open(killing.SESSION, here, routes=routes(s3)) as session,
    ):
        assert (await session.sync()).pending == 0
        left = await killing.described(session)
        files = {path for path, entry in left.items() if stat.S_ISREG(entry[0])}
        assert {ref.path for ref in await s3.on_list(None, {})} == files
        assert not any("conflict" in path for path in files)
        for path in files:
            assert sha(await s3.read(path)) == left[path][3], path
    await s3.cleanup()
    assert moto.client().list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []


@pytest.mark.parametrize("point", MANY)
async def test_of_many_small_files_none_is_lost_or_in_conflict(
    moto: Server, open_s3: Open, tmp_path: Path, point: str
) -> None:
    bucket = moto.new_bucket()
    promised = killed(moto, bucket, tmp_path / "here", point, "many")
    there, here = tmp_path / "there", tmp_path / "here"
    s3 = await open_s3(moto, bucket, read_patience=25.0)
    async with (
        sole_writer(s3, there / killing.SESSION, steal=True),
        Session.open(killing.SESSION, there, routes=routes(s3)) as session,
    ):
        found = await killing.described(session)
    stored = {path: entry[3] for path, entry in found.items() if path.startswith("many/")}
    assert stored and all(inside == sha(killing.MANY[path]) for path, inside in stored.items())
    assert promised.items() <= found.items()

    s3 = await open_s3(moto, bucket)
    async with (
        sole_writer(s3, here / killing.SESSION, steal=True),
        Session.open(killing.SESSION, here, routes=routes(s3)) as session,
    ):
        assert (await session.sync()).pending == 0
    objects = {ref.path for ref in await s3.on_list(None, {})}
    assert objects == {path for path, entry in promised.items() if stat.S_ISREG(entry[0])} | killing.MANY.keys()
