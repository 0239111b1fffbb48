"""The daemon under a service manager, and sessions in fstab, as far as a machine without systemd as init allows."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mount.mountpoint import mounted_on
from tests.daemon.serving import PROJECT, Serving, until
from tests.mounted import COMMAND, detach

Serve = Callable[..., Serving]
HELPER = PROJECT / "packaging/mount.fuse.mount-session"


def test_the_service_manager_is_told_ready_alive_and_stopping(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(30)
        daemon = Serving.start(tmp_path / "d", {}, {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "200000"})
        try:
            told = [manager.recv(1000).decode() for _ in range(5)]
            daemon.stop()
            while told[-1] != "STOPPING=1":
                told.append(manager.recv(1000).decode())
        finally:
            daemon.clean_up()
    assert sum(line == "WATCHDOG=1" for line in told) >= 3
    assert sum(line.startswith("READY=1\nSTATUS=0 sessions") for line in told) == 1


def test_a_blocked_loop_sends_no_sign_of_life(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(30)
        daemon = Serving.start(tmp_path / "d", {}, {"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "200000"})
        try:
            manager.recv(1000)
            daemon.process.send_signal(signal.SIGSTOP)
            manager.settimeout(0.5)
            with pytest.raises(TimeoutError):
                for _ in range(10):
                    manager.recv(1000)
            daemon.process.send_signal(signal.SIGCONT)
        finally:
            daemon.clean_up()


def test_the_unit_is_one_that_systemd_takes(tmp_path: Path) -> None:
    unit = PROJECT / "packaging/mount-session.service"
    done = subprocess.run(["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_daemon_that_dies_takes_no_mount_with_it(serving: Serve) -> None:
    first = serving()
    first.run("new", "a")
    worker, file = first.worker("a"), first.root / "a/file"
    file.write_text("before")
    with file.open("a") as held:
        os.kill(first.process.pid, signal.SIGKILL)
        first.process.wait()
        held.write(", and without a daemon")
        held.flush()
        second = serving()
        until(lambda: second.json("status", "a")["state"] == "mounted")
        assert second.worker("a") == worker, "the same worker goes on"
        held.write(", and with another")
    assert file.read_text() == "before, and without a daemon, and with another"


def is_free(lock: Path) -> bool:
    """Has whoever held it ended?"""
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


@pytest.fixture
def installed_helper() -> Iterator[None]:
    """The helper where mount(8) looks for it, with this environment's `mount-session`, which is in no usual place."""
    installed = Path("/sbin/mount.fuse.mount-session")
    before = installed.read_bytes() if installed.exists() else None
    installed.write_text(f'#!/bin/sh\nPATH={COMMAND.parent}:$PATH exec {HELPER} "$@"\n')
    installed.chmod(0o755)
    try:
        yield
    finally:
        if before is None:
            installed.unlink()
        else:
            installed.write_bytes(before)


@pytest.mark.usefixtures("installed_helper")
def test_a_session_in_fstab_is_mounted_by_the_helper(tmp_path: Path) -> None:
    directory, state, fstab = tmp_path / "mnt", tmp_path / "state", tmp_path / "fstab"
    directory.mkdir()

    def line(options: str) -> None:
        fstab.write_text(f"mount-session:-dashed {directory} fuse.mount-session state={state},{options} 0 0\n")

    def mount(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["mount", *arguments], capture_output=True, text=True, timeout=60)

    def options() -> set[str]:
        entry = mounted_on(directory)
        assert entry is not None
        return set(entry.options)

    try:
        line("rw,noauto,x-systemd.automount,uid=1001,quota_bytes=1MB")
        done = mount("-T", fstab, directory)
        assert done.returncode == 0, done.stderr
        (directory / "file").write_text("x")
        assert (directory / "file").stat().st_uid == 1001 and {"nosuid", "nodev"} <= options()
        assert os.statvfs(directory).f_blocks * os.statvfs(directory).f_frsize <= 10**6
        again = mount("-t", "fuse.mount-session", "-o", f"state={state}", "--", "-dashed", directory)
        assert again.returncode == 32 and "in use" in again.stderr
        subprocess.run(["umount", directory], check=True)
        line("user,ro")  # at once, while what was unmounted may still be written back
        assert mount("-T", fstab, "-a").returncode == 0 and (directory / "file").read_text() == "x"
        assert "noexec" in options()
        assert mount("-T", fstab, "-a").returncode == 0, "what is mounted already is left alone"
        subprocess.run(["umount", directory], check=True)
        until(lambda: is_free(state / "-dashed/lock"))
        line("qouta_bytes=1")
        odd = mount("-T", fstab, directory)
        assert odd.returncode == 32 and "--qouta" in odd.stderr
    finally:
        detach(directory)
