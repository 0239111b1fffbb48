"""What an operator sees of the sessions is what happened in them."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable

import pytest

from mount.messages import SessionStatus, WorkerStatus
from mount.rates import Rate, Rates
from mount.tally import BUCKETS, Tally, bounds
from tests.daemon.serving import Serving, until


def metric(exposition: str, name: str, **labels: str) -> float | None:
    for line in exposition.splitlines():
        found = re.fullmatch(r"(\w+)(?:{(.*)})? (\S+)", line)
        if found and found[1] == name and dict(re.findall(r'(\w+)="([^"]*)"', found[2] or "")) == labels:
            return float(found[3])
    return None


def test_metrics_count_what_programs_did(daemon: Serving) -> None:
    daemon.run("new", "a", "--quota-inodes", "12")
    for n in range(10):
        (daemon.root / f"a/{n}").write_bytes(b"x" * 100)
    for n in range(10, 14):
        try:
            (daemon.root / f"a/{n}").write_bytes(b"")
        except OSError:
            continue
    with daemon.client() as client:
        told = client.metrics()
    assert metric(told, "mount_session_operation_seconds_count", session="a", operation="create") == 14
    assert metric(told, "mount_session_operation_errors_total", session="a", operation="create") == 2
    assert metric(told, "mount_session_operation_seconds_bucket", session="a", operation="write", le="+Inf") == 10
    spent = metric(told, "mount_session_operation_seconds_sum", session="a", operation="write")
    assert spent is not None and 0 < spent < 1
    assert metric(told, "mount_session_files", session="a") == 12
    assert metric(told, "mount_session_bytes", session="a") == 1000
    assert metric(told, "mount_session_written_bytes_total", session="a") == 1000
    assert metric(told, "mount_session_cache_hits_total", session="a") is None, "there is nowhere else to read from"
    assert metric(told, "mount_session_up", session="a") == 1
    assert metric(told, "mount_session_sessions", state="mounted") == 1
    requests = metric(told, "mount_session_requests_total", session="a")
    assert requests is not None and requests > 34
    assert metric(told, "mount_session_worker_restarts_total", session="a") == 0
    os.kill(daemon.worker("a"), signal.SIGKILL)
    assert (daemon.root / "a/9").read_bytes() == b"x" * 100
    with daemon.client() as client:
        assert metric(client.metrics(), "mount_session_worker_restarts_total", session="a") == 1


def test_metrics_of_a_session_whose_worker_hangs_come_without_it(daemon: Serving) -> None:
    daemon.run("new", "a")
    daemon.run("new", "b")
    pid = daemon.worker("a")
    os.kill(pid, signal.SIGSTOP)
    try:
        with daemon.client() as client:
            told = client.metrics()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (
        metric(told, "mount_session_up", session="a") == 0 and metric(told, "mount_session_files", session="a") is None
    )
    assert metric(told, "mount_session_up", session="b") == 1 and metric(told, "mount_session_files", session="b") == 0


def test_a_worker_that_hangs_is_told_within_the_deadline_and_costs_nothing_later(
    serving: Callable[..., Serving],
) -> None:
    daemon = serving(deadline=1.0)
    daemon.run("new", "a")
    daemon.run("new", "b")
    pid = daemon.worker("a")
    assert daemon.json("health")["ready"]
    before = len(os.listdir(f"/proc/{pid}/fd"))
    for _ in range(2):
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            told = daemon.json("health", status=1)
            assert time.monotonic() - began < 5
        finally:
            os.kill(pid, signal.SIGCONT)
        (failing,) = told["failing"]
        assert failing["session"] == "a" and failing["error"].endswith("within 1 s")
        assert daemon.json("wait", "a")["healthy"]
    assert daemon.json("health")["ready"] and daemon.worker("a") == pid
    assert len(os.listdir(f"/proc/{pid}/fd")) <= before + 1
    assert daemon.shell("health").status == 0
    daemon.stop()
    for line in daemon.log().splitlines():
        assert {"time", "level", "logger", "process", "message"} <= json.loads(line).keys()


def test_top_shows_the_busiest_first(daemon: Serving) -> None:
    daemon.run("new", "idle")
    daemon.run("new", "busy")
    pid = os.fork()
    if pid == 0:
        while True:
            (daemon.root / "busy/file").write_text("x")
    try:
        shown = until(lambda: _busy(daemon.run("top", "--once", "--interval", "0.3").stdout.decode()))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert shown.index("busy") < shown.index("idle")


def _busy(shown: str) -> str | None:
    line = next(line for line in shown.splitlines() if line.startswith("busy"))
    return shown if int(line.split()[2]) > 10 else None


def test_rates_are_of_one_worker_and_one_interval() -> None:
    def status(pid: int, count: int, errors: int, seconds: float) -> SessionStatus:
        tally = {"buckets": [count], "errors": errors, "seconds": seconds}
        return SessionStatus(
            session="a",
            storage="local",
            mountpoint="/m",
            state="mounted",
            made=0.0,
            labels={},
            policy={},
            worker=WorkerStatus(pid=pid, phase="serving", restarts=0, answers=True),
            details={"operations": {"write": tally}},
        )

    rates = Rates()
    rates.update([status(1, 100, 0, 1.0)], 10.0)
    assert rates.of("a") == Rate()
    rates.update([status(1, 300, 4, 1.2)], 12.0)
    seen = rates.of("a")
    assert (seen.requests, seen.errors, seen.busiest) == (100.0, 2.0, "write") and abs(seen.mean - 0.001) < 1e-9
    rates.update([status(2, 5, 0, 0.1)], 13.0)
    assert rates.of("a") == Rate(), "a new worker begins anew"
    assert rates.of("unknown") == Rate()


@pytest.mark.parametrize(
    ("seconds", "bound"), [(0.0, "1e-06"), (1.5e-6, "2e-06"), (0.00003, "3.2e-05"), (9999.0, "+Inf")]
)
def test_a_latency_is_in_the_bucket_that_its_bound_says(seconds: float, bound: str) -> None:
    tally = Tally()
    tally.add(seconds)
    assert tally.told()["buckets"].index(1) == bounds().index(bound)
    assert len(tally.told()["buckets"]) == len(bounds()) == BUCKETS


def test_an_idle_session_is_well_and_is_let_sleep_by_whoever_looks(daemon: Serving) -> None:
    daemon.run("new", "a", "--idle-seconds", "0.2")
    (daemon.root / "a/file").write_text("12345")
    until(lambda: daemon.json("status", "a")["worker"]["phase"] == "idle")
    assert daemon.json("status", "a")["bytes"] == 5
    assert daemon.json("health")["ready"]
    with daemon.client() as client:
        told = client.metrics()
    assert metric(told, "mount_session_up", session="a") == 1 and metric(told, "mount_session_bytes", session="a") == 5
    assert daemon.json("status", "a")["worker"]["phase"] == "idle"
    assert daemon.json("sync", "a")["bytes"] == 5, "and woken when it is needed"
    daemon.run("policy", "a", "--read-only")
    with pytest.raises(OSError, match="Read-only"):
        (daemon.root / "a/file").write_text("x")
