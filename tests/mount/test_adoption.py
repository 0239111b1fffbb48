"""A mount outlives its supervisor: workers go on, a new supervisor takes them over, and an upgrade refuses nothing."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.killing import DEADLINE, kill_worker, other_worker, worker_of
from tests.mounted import COMMAND, Mounted, detach

Mount = Callable[..., Mounted]
PROJECT = Path(__file__).parent.parent.parent


def kill_supervisor(session: Mounted) -> None:
    session.process.send_signal(signal.SIGKILL)
    session.process.wait(DEADLINE)


def refused(*arguments: str | Path) -> str:
    done = subprocess.run([str(COMMAND), "up", *map(str, arguments)], capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 1, done.stdout
    return done.stderr


class Appending:
    """Appends numbered lines from a thread until it is stopped, and keeps the longest time that one took."""

    def __init__(self, path: Path) -> None:
        self.number = 0
        self.longest = 0.0
        self._path = path
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self._path.open("ab", buffering=0) as file:
            while not self._enough.is_set():
                began = time.perf_counter()
                file.write(b"%d\n" % self.number)
                self.longest = max(self.longest, time.perf_counter() - began)
                self.number += 1

    def __enter__(self) -> Appending:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._enough.set()
        self._thread.join()

    def complete(self) -> bool:
        return self._path.read_bytes() == b"".join(b"%d\n" % n for n in range(self.number))


def test_a_session_goes_on_without_its_supervisor_and_the_next_up_takes_it_over(mounted: Mount) -> None:
    first = mounted("orphan")
    with Appending(first.path / "lines") as client:
        kill_supervisor(first)
        worker = worker_of("orphan")
        (first.path / "while orphaned").write_bytes(b"served")
        second = mounted("orphan")
        assert second.line == f"orphan is mounted on {second.path}"
        assert worker_of("orphan") == worker
    assert client.complete()
    assert (second.path / "while orphaned").read_bytes() == b"served"
    other_worker("orphan", kill_worker("orphan"))  # it is looked after again
    assert (second.path / "while orphaned").read_bytes() == b"served"
    assert second.stop()["files"] == 2


def test_a_session_whose_supervisor_lives_is_not_taken_over(mounted: Mount, tmp_path: Path) -> None:
    session = mounted("orphan")
    assert "in use by another process" in refused("--state", session.state, "orphan", session.path)
    assert session.stop()["pending"] == 0


def test_an_orphan_is_taken_over_on_its_own_mountpoint_only(mounted: Mount, tmp_path: Path) -> None:
    session = mounted("orphan")
    kill_supervisor(session)
    (tmp_path / "elsewhere").mkdir()
    said = refused("--state", session.state, "orphan", tmp_path / "elsewhere")
    assert str(session.path) in said
    assert "unmount it" in said
    assert mounted("orphan").stop()["pending"] == 0


def test_an_orphan_taken_over_with_other_options_obeys_them(mounted: Mount) -> None:
    first = mounted("orphan")
    (first.path / "file").touch()
    assert (first.path / "file").stat().st_uid == os.getuid()
    kill_supervisor(first)
    second = mounted("orphan", "--uid", "4711")
    worker = worker_of("orphan")
    assert worker is not None
    os.listdir(second.path)
    assert second.stop()["files"] == 1
    assert mounted("orphan", "--uid", "4711").path.joinpath("file").stat().st_uid == 4711


def test_after_the_death_of_everything_nobody_writes_beside_it_and_it_is_mounted_anew(mounted: Mount) -> None:
    first = mounted("orphan")
    (first.path / "file").write_bytes(b"kept")
    processes = first.processes()
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in processes:
            os.kill(pid, number)
    first.process.wait(DEADLINE)
    with pytest.raises(OSError) as refused:
        (first.path / "beside").touch()
    assert refused.value.errno == errno.ENOTCONN
    second = Mounted.up(
        "orphan", first.path, first.state, (), first.log
    )  # the directory itself cannot be looked at now
    try:
        assert (second.path / "file").read_bytes() == b"kept"
        assert second.stop()["files"] == 1
    finally:
        second.clean_up()


def within(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            return False
        threading.Event().wait(0.01)
    return True


def asleep(session: Mounted) -> bool:
    return within(lambda: worker_of(session.session) is None)


def ends(pid: int) -> bool:
    return within(lambda: not Path("/proc", str(pid)).exists())


def test_a_mount_outlives_its_supervisor_and_its_workers_together(mounted: Mount) -> None:
    first = mounted("keeper")
    zygote = first.processes()[1]
    with Appending(first.path / "lines") as client:
        worker = other_worker("keeper", None)
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in (first.process.pid, worker):
                os.kill(pid, number)
        first.process.wait(DEADLINE)
        other_worker("keeper", worker)
        worker = other_worker("keeper", kill_worker("keeper"))
        written = client.number
        assert within(lambda: client.number > written)
        second = mounted("keeper")
        assert worker_of("keeper") == worker
        assert ends(zygote)  # it has nothing to keep any more
        other_worker("keeper", kill_worker("keeper"))
    assert client.complete()
    assert second.stop()["files"] == 1


def test_a_mount_outlives_its_supervisor_and_its_worker_also_where_the_zygote_hears_of_the_worker_first(
    mounted: Mount,
) -> None:
    first = mounted("keeper")
    (first.path / "file").write_bytes(b"kept")
    _, zygote, worker, *_ = first.processes()
    os.kill(zygote, signal.SIGSTOP)
    for pid in (first.process.pid, worker):
        os.kill(pid, signal.SIGKILL)
    first.process.wait(DEADLINE)
    assert within(lambda: "zombie" in Path("/proc", str(worker), "status").read_text())
    os.kill(zygote, signal.SIGCONT)
    assert (first.path / "file").read_bytes() == b"kept"
    assert mounted("keeper").stop()["files"] == 1


def test_an_orphan_that_is_unmounted_leaves_no_process(mounted: Mount) -> None:
    session = mounted("keeper")
    (session.path / "file").write_bytes(b"kept")
    _, zygote, worker, *_ = session.processes()
    kill_supervisor(session)
    detach(session.path)
    assert ends(worker)
    assert ends(zygote)
    assert mounted("keeper").stop()["files"] == 1


def test_an_orphan_that_was_being_unmounted_is_mounted_anew_and_keeps_what_is_pending(
    mounted: Mount, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    options = "--callbacks", "tests.daemon.slow:STORE", "--scope", json.dumps(str(gate))
    session = mounted("leaving", *options)
    (session.path / "file").write_bytes(b"kept")
    session.process.terminate()
    assert within(lambda: not os.path.ismount(session.path))  # it waits for the storage
    kill_supervisor(session)
    second = mounted("leaving", *options)
    assert (second.path / "file").read_bytes() == b"kept"
    gate.touch()
    assert second.stop()["pending"] == 0


def test_an_idle_session_outlives_even_its_supervisor(mounted: Mount) -> None:
    session = mounted("sleeper", "--idle-after", "0.3", "--hang-limit", "0.2")
    zygote = session.processes()[1]
    (session.path / "file").write_bytes(b"kept")
    with (session.path / "file").open("rb") as held:
        assert asleep(session)
        kill_supervisor(session)
        assert held.read() == b"kept"
        assert other_worker("sleeper", None)
        again = mounted("sleeper")
        assert ends(zygote)
        assert os.pread(held.fileno(), 4, 0) == b"kept"
    assert again.stop()["files"] == 1


def test_a_session_that_sleeps_is_taken_over_asleep(mounted: Mount) -> None:
    """A host with a thousand of them does not start a thousand workers because its supervisor died."""
    session = mounted("sleeper", "--idle-after", "0.3", "--hang-limit", "0.2")
    zygote = session.processes()[1]
    (session.path / "file").write_bytes(b"kept")
    session.path.stat()  # as the fixture does, which the kernel now answers by itself
    assert asleep(session)
    kill_supervisor(session)
    again = mounted("sleeper", "--idle-after", "0.3", "--hang-limit", "0.2")
    assert again.line == f"sleeper is mounted on {again.path}"
    assert ends(zygote)
    assert again.log.read_text().count("taken over") == 0  # which a worker says that begins
    assert (again.path / "file").read_bytes() == b"kept"
    assert again.stop()["files"] == 1


def test_an_idle_session_is_upgraded(mounted: Mount) -> None:
    session = mounted("sleeper", "--idle-after", "0.3", "--hang-limit", "0.2")
    zygote = session.processes()[1]
    (session.path / "file").write_bytes(b"kept")
    assert asleep(session)
    session.process.send_signal(signal.SIGHUP)
    assert ends(zygote)
    assert worker_of("sleeper") is None
    assert (session.path / "file").read_bytes() == b"kept"
    assert asleep(session)
    assert session.stop()["files"] == 1
    assert session.log.read_text().count("upgrading: 1 sessions") == 1


def test_sighup_replaces_supervisor_and_worker_and_no_request_fails(mounted: Mount) -> None:
    session = mounted("orphan")
    zygotes = session.processes()[1]
    with Appending(session.path / "lines") as client:
        for _ in range(2):
            before = other_worker("orphan", None)
            session.process.send_signal(signal.SIGHUP)
            assert other_worker("orphan", before) != before
            at_least = client.number + 10
            end = time.monotonic() + DEADLINE
            while client.number < at_least:
                assert time.monotonic() < end, session.log.read_text()
    assert client.complete()
    print(f"longest write over two upgrades: {client.longest:.3f} s")
    assert session.process.poll() is None
    assert ends(zygotes)
    receipt = session.stop()
    assert receipt["files"] == 1
    log = session.log.read_text()
    assert log.count("upgrading: 1 sessions") == 2
    assert "died" not in log
    assert "Traceback" not in log


def test_a_release_whose_workers_do_not_start_makes_requests_wait_for_the_next_one(tmp_path: Path) -> None:
    """The program is a copy here, so that another one can be installed in its place."""
    code, at, log = tmp_path / "code", tmp_path / "mnt", tmp_path / "log"
    for package in ("mount", "vfs"):
        shutil.copytree(PROJECT / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    at.mkdir()
    command = [sys.executable, "-P", "-m", "mount.cli", "up", "released", str(at), "--state", str(tmp_path / "state")]
    with log.open("wb") as stderr:
        up = subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": str(code)}, stdout=subprocess.PIPE, stderr=stderr
        )
    worker = code / "mount" / "worker.py"
    good = worker.read_text()
    try:
        assert up.stdout is not None
        assert up.stdout.readline() == f"released is mounted on {at}\n".encode()
        with Appending(at / "lines") as client:
            before = other_worker("released", None)
            worker.write_text("not Python\n")
            up.send_signal(signal.SIGHUP)
            assert within(lambda: "not upgraded" in log.read_text())
            assert worker_of("released") == before
            worker.write_text(good.replace("    channel = Channel(control)\n", "    raise ValueError('defect')\n"))
            up.send_signal(signal.SIGHUP)
            assert within(lambda: "no worker of the new program could be started: defect" in log.read_text())
            worker.write_text(good)
            up.send_signal(signal.SIGHUP)
            waiting = client.number
            assert within(lambda: client.number > waiting + 10)
        assert client.complete()
        up.terminate()
        assert b'"files":1' in up.communicate(timeout=DEADLINE)[0]
    finally:
        up.kill()
        up.wait()
        detach(at)


def test_the_command_upgrade_asks_the_supervisor_of_a_session(mounted: Mount) -> None:
    session = mounted("orphan")
    before = other_worker("orphan", None)
    done = subprocess.run(
        [str(COMMAND), "upgrade", "orphan", "--state", str(session.state)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.stdout == f"process {session.process.pid} upgrades itself\n", done.stderr
    assert other_worker("orphan", before) != before
    os.listdir(session.path)
    session.stop()
    again = subprocess.run(
        [str(COMMAND), "upgrade", "orphan", "--state", str(session.state)],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert again.returncode == 1
    assert "not mounted" in again.stderr
