"""What Prometheus is told of a session in S3 is what happened there: retries, hits, misses, what is not stored yet."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mount.messages import NewSession
from tests.daemon.serving import Serving, until
from tests.storage.faults import Fault, FaultProxy
from tests.storage.servers import ACCESS, SECRET, Server

pytestmark = [pytest.mark.s3, pytest.mark.mount]

Told = Callable[..., float | None]


@pytest.fixture
def daemon(tmp_path: Path, proxy: FaultProxy, moto: Server) -> Iterator[Serving]:
    """With a session `work` in a bucket behind the proxy."""
    one = Serving.start(tmp_path, {})
    try:
        with one.client() as client:
            storage = f"s3://{moto.new_bucket()}/kept?endpoint={proxy.url}&region=us-east-1"
            environment = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}
            client.new(NewSession(session="work", storage=storage, environment=environment))
        yield one
        proxy.clear()
        one.stop()
    finally:
        one.clean_up()


@pytest.fixture
def told(daemon: Serving) -> Told:
    def value(name: str, **labels: str) -> float | None:
        """Of the session, by the labels that are given."""
        labels = {"session": "work", **labels}
        with daemon.client() as client:
            lines = client.metrics().splitlines()
        for line in lines:
            found = re.fullmatch(r"mount_session_(\w+){(.*)} (\S+)", line)
            if found and found[1] == name and labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', found[2])).items():
                return float(found[3])
        return None

    return value


def test_uploads_and_each_attempt_that_was_not_taken_are_counted(
    daemon: Serving, proxy: FaultProxy, told: Told
) -> None:
    assert (told("upload_retries_total"), told("uploads_total")) == (0, 0)
    proxy.add(Fault("status", "PUT", "/one", times=2, status=500))
    proxy.add(Fault("status", "PUT", "/one", times=1, status=400, code="InvalidRequest"))
    (daemon.root / "work/one").write_bytes(b"x" * 1000)
    (daemon.root / "work/two").write_bytes(b"x" * 100)
    assert daemon.json("sync", "work")["pending"] == 0
    (daemon.root / "work/two").rename(daemon.root / "work/three")
    assert daemon.json("sync", "work")["pending"] == 0
    assert told("upload_retries_total") == 3, "two that the storage made again, one that write-back did"
    assert (told("uploads_total"), told("uploaded_bytes_total")) == (2, 1100)
    assert (told("written_bytes_total"), told("dirty_bytes"), told("pending")) == (1100, 0, 0)
    assert told("persistence_calls_total", callback="on_write") == 3
    assert told("persistence_failures_total", callback="on_write") == 1
    assert told("persistence_bytes_total", callback="on_write") == 1100
    spent = told("persistence_seconds_total", callback="on_write")
    assert spent is not None and spent > 0


def test_what_is_not_stored_yet_is_told_in_bytes(daemon: Serving, proxy: FaultProxy, told: Told) -> None:
    proxy.add(Fault("status", "PUT", "/stuck", status=400, code="InvalidRequest"))
    (daemon.root / "work/stuck").write_bytes(b"x" * 1000)
    with (daemon.root / "work/written").open("wb", buffering=0) as file:

        def grown() -> tuple[float | None, ...]:
            os.pwrite(file.fileno(), b"y" * 50, 0)
            return told("dirty_bytes"), told("pending_bytes"), told("pending")

        until(lambda: grown() in ((1050, 1000, 2), (1050, 1000, 3)))  # the tree's description may be the third
    proxy.clear()
    daemon.run("flush", "work")
    assert daemon.json("sync", "work")["pending"] == 0
    assert (told("dirty_bytes"), told("pending_bytes"), told("pending")) == (0, 0, 0)


def test_a_cold_read_is_a_miss_and_a_warm_one_a_hit(daemon: Serving, told: Told) -> None:
    file = daemon.root / "work/file"
    file.write_bytes(b"x" * 100_000)
    assert daemon.json("sync", "work")["pending"] == 0

    def read() -> None:
        with file.open("rb", buffering=0) as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert len(opened.read()) == 100_000

    read()
    hits, misses = told("cache_hits_total"), told("cache_misses_total")
    assert hits is not None and hits > 0 and misses == 0
    daemon.run("policy", "work", "--cache-bytes", "0")
    assert told("cache_bytes") == 0
    daemon.run("policy", "work", "--unset", "cache_bytes")
    assert told("cache_bytes") is None
    read()
    misses = told("cache_misses_total")
    assert misses is not None and misses > 0
    read()
    warm = told("cache_hits_total")
    assert told("cache_misses_total") == misses and warm is not None and warm > hits
    assert told("read_bytes_total") == 300_000


def test_a_reader_becomes_the_writer_without_a_remount(
    daemon: Serving, moto: Server, tmp_path: Path, proxy: FaultProxy
) -> None:
    root = daemon.root / "work"
    (root / "file").write_bytes(b"one")
    device = root.stat().st_dev
    daemon.run("policy", "work", "--read-only")
    with pytest.raises(OSError, match="Read-only"):
        (root / "file").write_bytes(b"two")
    os.kill(daemon.worker("work"), signal.SIGKILL)
    assert (root / "file").read_bytes() == b"one", "by a worker that has no lease"
    daemon.run("policy", "work", "--read-write")
    (root / "file").write_bytes(b"three")
    assert daemon.json("sync", "work")["pending"] == 0
    assert root.stat().st_dev == device
