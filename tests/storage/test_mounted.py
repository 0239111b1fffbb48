"""Sessions in S3, mounted by the real command: what the bucket holds is the session, whoever dies and whoever else
writes there."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest

from mount.channel import Call, Reply
from mount.config import Failure
from mount.rendezvous import connect
from tests.daemon.serving import until
from tests.mount.test_real_use import tree
from tests.mounted import Mounted
from tests.storage.faults import FaultProxy
from tests.storage.servers import ACCESS, SECRET, Server

pytestmark = pytest.mark.s3

Mount = Callable[..., Mounted]


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


def url(endpoint: str, bucket: str, more: str = "") -> str:
    return f"s3://{bucket}/kept/?endpoint={endpoint}&region=us-east-1{more}"


def ask(mounted: Mounted, name: str) -> Any:
    """What the worker of the mount answers, as it answers the daemon. ConnectionError where it dies instead."""
    sock = connect(mounted.state / mounted.session)
    if sock is None:
        raise ConnectionError("there is no worker")
    with closing(sock):
        sock.settimeout(60)
        sock.send(msgspec.msgpack.encode(Call(1, name, {})))
        answer = sock.recv(1 << 20)
    if not answer:
        raise ConnectionError("the worker is gone")
    reply = msgspec.msgpack.decode(answer, type=Reply)
    assert not isinstance(reply.failure, Failure), reply.failure
    return reply.result


def synced(mounted: Mounted) -> None:
    """All that was done is in the bucket, by a worker that may have died on the way."""

    def receipt() -> Any:
        try:
            return ask(mounted, "sync")
        except ConnectionError:
            return None

    assert until(receipt)["pending"] == 0


def populate(root: Path) -> None:
    """What a tree can have that objects cannot say, and what they can."""
    (root / "empty/deep").mkdir(parents=True)
    (root / "empty").chmod(0o750)
    (root / "code").mkdir()
    for number in range(40):
        (root / f"code/file{number}").write_bytes(os.urandom(number * 100))
    (root / "code/run.sh").write_text("#!/bin/sh\n")
    (root / "code/run.sh").chmod(0o755)
    os.link(root / "code/file3", root / "another name")
    os.symlink("code/run.sh", root / "run")
    os.utime(root / "run", ns=(1, 7_000_000_123), follow_symlinks=False)
    os.setxattr(root / "code", "user.note", b"\0\xff")
    os.mkfifo(root / "pipe")
    os.utime(root / "code/file5", ns=(1, 1_234_567_890_987_654_321))
    Path(os.fsdecode(bytes(root) + b"/not\xffUTF-8 \x01 %?#")).write_bytes(b"odd")
    (root / "big").write_bytes(os.urandom((17 << 20) + 1))


@pytest.mark.parametrize("kind", ["moto", "rclone"])
def test_what_a_receipt_promised_is_there_from_an_empty_state_after_everything_was_killed(
    mounted: Mount, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    server: Server = request.getfixturevalue(kind)
    storage = url(server.url, server.new_bucket())
    here = mounted("work", "--storage", storage)
    named = f"{server.url} (bucket " in here.log.read_text() and "ignores conditional writes" in here.log.read_text()
    assert named is not server.conditional
    populate(here.path)
    os.rename(here.path / "code", here.path / "renamed")
    synced(here)
    before = tree(here.path)
    (here.path / "late").mkdir()
    (here.path / "late/file").write_bytes(b"promised by nobody")
    here.kill9()
    there = mounted("work", "--storage", storage, "--steal", state=tmp_path / "elsewhere", path=here.path)
    after = {path: entry for path, entry in tree(there.path).items() if not path.startswith("late")}
    assert after == before
    assert os.getxattr(there.path / "renamed", "user.note") == b"\0\xff"
    assert (there.path / "renamed/file3").samefile(there.path / "another name")


@pytest.mark.parametrize("point", ["s3.multipart.completed", "s3.move.copied"])
def test_a_worker_killed_on_the_way_to_the_bucket_leaves_nothing_wrong_there(
    mounted: Mount, moto: Server, tmp_path: Path, point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "died"
    monkeypatch.setenv("MOUNT_SESSION_FAILPOINT", point)
    monkeypatch.setenv("MOUNT_SESSION_FAILPOINT_MARK", str(mark))
    storage = url(moto.url, moto.new_bucket())
    here = mounted("work", "--storage", storage)
    for name in ("a", "b"):
        (here.path / name).mkdir()
        (here.path / name / "big").write_bytes(name.encode() * (17 << 20))
        (here.path / name / "small").write_bytes(name.encode())
    if point == "s3.move.copied":
        synced(here)
    else:
        until(mark.exists)
    os.rename(here.path / "a", here.path / "c")  # while what was uploaded to the old names is known to nobody
    synced(here)
    until(mark.exists)
    shutil.rmtree(here.path / "b")
    synced(here)
    before = tree(here.path)
    assert sorted(before) == ["c", "c/big", "c/small"]
    here.kill9()
    there = mounted("work", "--storage", storage, "--steal", state=tmp_path / "elsewhere", path=here.path)
    assert tree(there.path) == before


def test_what_another_tool_does_in_the_bucket_shows_in_the_mount_and_both_sides_of_a_conflict_are_kept(
    mounted: Mount, moto: Server, tmp_path: Path
) -> None:
    bucket, client = moto.new_bucket(), moto.client()
    storage = url(moto.url, bucket)
    writer = mounted("work", "--storage", storage)
    for name in ("changed", "deleted", "both"):
        (writer.path / name).write_bytes(b"ours")
    synced(writer)
    assert [(writer.path / name).read_bytes() for name in ("changed", "deleted", "both")] == [b"ours"] * 3  # cached
    client.put_object(Bucket=bucket, Key="kept/work/changed", Body=b"theirs, longer")
    client.put_object(Bucket=bucket, Key="kept/work/new/deep", Body=b"new")
    client.put_object(Bucket=bucket, Key="kept/work/not//a/file", Body=b"left out")
    client.delete_object(Bucket=bucket, Key="kept/work/deleted")
    assert ask(writer, "refresh") == {"new": 1, "changed": 1, "gone": 1}
    assert (writer.path / "changed").read_bytes() == b"theirs, longer"
    assert (writer.path / "new/deep").read_bytes() == b"new"
    assert sorted(os.listdir(writer.path)) == ["both", "changed", "new"]
    assert ask(writer, "status")["left_out"] == {"kept/work/not//a/file": "has an empty segment"}

    client.put_object(Bucket=bucket, Key="kept/work/both", Body=b"theirs")
    (writer.path / "both").write_bytes(b"our edit")
    synced(writer)
    assert (writer.path / "both").read_bytes() == b"theirs"
    assert (writer.path / "both.conflict-work-1").read_bytes() == b"our edit"

    (tmp_path / "reader").mkdir()
    reader = mounted("work", "--storage", storage, "--read-only", state=tmp_path / "rs", path=tmp_path / "reader")
    assert (reader.path / "both.conflict-work-1").read_bytes() == b"our edit"
    with pytest.raises(OSError, match="Read-only file system"):
        (reader.path / "both").write_bytes(b"")
    (writer.path / "last").write_bytes(b"x")
    stored = writer.stop()["stored"]
    assert stored["last"]["version"] == client.head_object(Bucket=bucket, Key="kept/work/last")["ETag"].strip('"')


def test_a_path_that_is_too_long_for_a_key_is_named_and_holds_up_nothing_else(mounted: Mount, moto: Server) -> None:
    here = mounted("work", "--storage", url(moto.url, moto.new_bucket()))
    long = here.path / "/".join(["n" * 250] * 5)
    long.mkdir(parents=True)
    (long / "file").write_bytes(b"kept here")
    (here.path / "other").write_bytes(b"stored")
    receipt = ask(here, "sync")
    assert receipt["pending"] == 1
    assert list(receipt["stored"]) == ["other"]
    assert "1024 bytes" in receipt["reasons"][0]["error"]
    (stuck,) = ask(here, "status")["stuck"].items()
    assert stuck[0].endswith("n/file")
    assert "1024 bytes" in stuck[1]
    shutil.rmtree(here.path / ("n" * 250))
    synced(here)
    assert ask(here, "status")["stuck"] == {}


def test_without_the_endpoint_writers_notice_nothing_and_readers_get_an_error_in_time(
    proxy: FaultProxy, moto: Server, mounted: Mount, tmp_path: Path
) -> None:
    storage = url(proxy.url, moto.new_bucket(), "&read_patience=1")
    first = mounted("work", "--storage", storage)
    (first.path / "cold").write_bytes(b"cold" * 1000)
    assert first.stop()["pending"] == 0
    here = mounted("work", "--storage", storage, state=tmp_path / "empty", path=first.path)
    proxy.down()
    for number in range(30):
        (here.path / f"new{number}").write_bytes(b"%d" % number * 1000)
    os.rename(here.path / "new1", here.path / "cold2")
    (here.path / "new2").unlink()
    signal.alarm(60)
    with pytest.raises(OSError) as caught:
        (here.path / "cold").read_bytes()
    signal.alarm(0)
    assert caught.value.errno == errno.EIO
    proxy.up()
    assert (here.path / "cold").read_bytes() == b"cold" * 1000
    synced(here)
    before = tree(here.path)
    here.kill9()
    there = mounted("work", "--storage", storage, "--steal", state=tmp_path / "elsewhere", path=here.path)
    assert tree(there.path) == before


def test_no_more_than_the_cache_limit_is_kept_here_and_all_can_be_read(mounted: Mount, moto: Server) -> None:
    limit = 8 << 20
    here = mounted("work", "--storage", url(moto.url, moto.new_bucket()), "--cache-bytes", str(limit))
    contents = [os.urandom(2 << 20) for _ in range(12)]
    for number, content in enumerate(contents):
        (here.path / f"file{number}").write_bytes(content)
    assert _kept(here) <= limit + (2 << 20)
    assert [(here.path / f"file{number}").read_bytes() for number in range(12)] == contents
    assert _kept(here) <= limit + (2 << 20)


def _kept(mounted: Mounted) -> int:
    """Bytes on this disk of the files' content."""
    found = [Path(where, name) for where, _, names in os.walk(mounted.state) for name in names]
    return sum(path.stat().st_blocks * 512 for path in found if path.stat().st_size >= 1 << 20)


def test_a_session_that_is_stopped_and_mounted_again_without_its_endpoint_loses_nothing(
    proxy: FaultProxy, moto: Server, mounted: Mount, tmp_path: Path
) -> None:
    bucket = moto.new_bucket()
    storage = url(proxy.url, bucket, "&read_patience=0.5&write_patience=0.5")
    here = mounted("work", "--storage", storage)
    (here.path / "stored").write_bytes(b"1")
    synced(here)
    proxy.down()
    (here.path / "pending").write_bytes(b"2")
    os.rename(here.path / "stored", here.path / "renamed")
    here.process.terminate()
    until(lambda: not os.path.ismount(here.path))
    assert here.process.poll() is None  # it waits for the endpoint, until it is told once more
    here.process.terminate()
    output, _ = here.process.communicate(timeout=30)
    assert here.process.returncode == 1
    assert msgspec.json.decode(output)["pending"] >= 2

    again = mounted("work", "--storage", storage)
    assert {one.name: one.read_bytes() for one in again.path.iterdir()} == {"renamed": b"1", "pending": b"2"}
    (again.path / "more").write_bytes(b"3")
    with pytest.raises(AssertionError, match="storage unavailable"):  # it knows nothing to begin with
        mounted("work", "--storage", storage, state=tmp_path / "empty", path=tmp_path / "there")
    proxy.up()
    synced(again)
    keys = {one["Key"].removeprefix("kept/work/") for one in moto.client().list_objects_v2(Bucket=bucket)["Contents"]}
    assert keys == {"renamed", "pending", "more", ".mount-session/image", ".mount-session/lease"}
