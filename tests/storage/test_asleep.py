"""A session in S3 that is left alone keeps its mount and loses its worker and its lease; whoever looks wakes it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.killing import DEADLINE, worker_of
from tests.mounted import Mounted
from tests.storage.faults import FaultProxy
from tests.storage.servers import ACCESS, SECRET, Server
from tests.storage.test_mounted import ask, synced, url

pytestmark = pytest.mark.s3

Mount = Callable[..., Mounted]
IDLE = ("--idle-after", "0.6", "--hang-limit", "0.3")


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


def within(condition: Callable[[], bool], pause: float = 0.02) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, "it never came true"
        threading.Event().wait(pause)


def falls_asleep(session: Mounted) -> None:
    synced(session)
    within(lambda: worker_of(session.session) is None)


def test_what_others_did_meanwhile_is_there_for_whoever_looks_and_nobody_is_kept_from_the_session(
    mounted: Mount, moto: Server
) -> None:
    bucket, client = moto.new_bucket(), moto.client()
    here = mounted("sleeper", "--storage", url(moto.url, bucket), *IDLE)
    (here.path / "changed").write_bytes(b"ours")
    assert not (here.path / "flag").exists()  # the kernel keeps that it is not there, for as long as it may
    falls_asleep(here)
    lease = client.get_object(Bucket=bucket, Key="kept/sleeper/.mount-session/lease")["Body"].read()
    assert json.loads(lease)["holder"] == ""
    image = client.head_object(Bucket=bucket, Key="kept/sleeper/.mount-session/image")["ETag"]

    client.put_object(Bucket=bucket, Key="kept/sleeper/flag", Body=b"")
    client.put_object(Bucket=bucket, Key="kept/sleeper/changed", Body=b"theirs, and longer")
    began = time.perf_counter()
    (here.path / "changed").stat()
    print(f"first answer after {time.perf_counter() - began:.3f} s")
    within((here.path / "flag").exists)
    assert (here.path / "changed").read_bytes() == b"theirs, and longer"
    assert client.head_object(Bucket=bucket, Key="kept/sleeper/.mount-session/image")["ETag"] == image
    falls_asleep(here)
    receipt = here.stop()
    assert (receipt["files"], receipt["pending"]) == (2, 0)
    assert "Traceback" not in here.log.read_text()


def test_without_the_endpoint_it_wakes_all_the_same(mounted: Mount, moto: Server, proxy: FaultProxy) -> None:
    here = mounted(
        "sleeper", "--storage", url(proxy.url, moto.new_bucket(), "&read_patience=1&write_patience=1"), *IDLE
    )
    (here.path / "file").write_bytes(b"kept")
    falls_asleep(here)
    proxy.down()
    began = time.perf_counter()
    assert (here.path / "file").read_bytes() == b"kept"
    assert time.perf_counter() - began < 5  # no request of any kind to the endpoint stands before it
    (here.path / "new").write_bytes(b"new")
    within(lambda: "cannot be" in here.log.read_text())
    threading.Event().wait(1.5)
    assert worker_of("sleeper") is not None  # something is pending
    proxy.up()
    synced(here)
    here.stop()


def test_who_mounts_it_elsewhere_meanwhile_is_its_writer_and_what_is_written_here_waits(
    mounted: Mount, moto: Server, tmp_path: Path
) -> None:
    bucket, client = moto.new_bucket(), moto.client()
    storage = url(moto.url, bucket)
    here = mounted("sleeper", "--storage", storage, *IDLE)
    (here.path / "both").write_bytes(b"before")
    falls_asleep(here)
    there = mounted("sleeper", "--storage", storage, state=tmp_path / "there", path=tmp_path / "over there")
    (there.path / "both").write_bytes(b"there")
    synced(there)
    (here.path / "both").write_bytes(b"here")
    (here.path / "ours").write_bytes(b"ours")
    within(lambda: "the session is mounted by" in here.log.read_text())
    (there.path / "theirs").write_bytes(b"theirs")
    synced(there)
    keys = [found["Key"] for found in client.list_objects_v2(Bucket=bucket, Prefix="kept/sleeper/")["Contents"]]
    assert "kept/sleeper/ours" not in keys
    assert not any("conflict" in key for key in keys)
    there.stop()
    synced(here)
    ask(here, "refresh")
    assert (here.path / "theirs").exists()
    assert (here.path / "both").read_bytes() == b"there"
    assert (here.path / "both.conflict-sleeper-1").read_bytes() == b"here"
