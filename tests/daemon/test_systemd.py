"""The unit under systemd itself: process 1 of namespaces of its own, which has no unit but ours."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import unavailable
from tests.daemon.serving import PROJECT, until
from tests.mounted import COMMAND

SYSTEMD = "/lib/systemd/systemd"
CGROUPS = Path("/sys/fs/cgroup")
TARGET = "[Unit]\nDefaultDependencies=no\n"

UNSHARE = """
[ "$1" = unshared ] || exec unshare --pid --fork --mount --ipc --uts --cgroup "$0" unshared
mount --make-rprivate /
"""
BOOT = """
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mount --bind {units} /etc/systemd/system
mount -t tmpfs tmpfs $(dirname $(readlink -f {systemd}))/system-generators
export container=test
exec {systemd} --system --unit=test.target
"""


def hierarchies() -> list[Path]:
    """Of control groups, where we may make one: the unified one, or several of the old kind."""
    found = [CGROUPS] if (CGROUPS / "cgroup.procs").exists() else [*CGROUPS.iterdir()]
    usable = [path for path in found if (path / "cgroup.procs").exists() and path.name != "cpuset"]
    return [path for path in usable if os.access(path, os.W_OK)]


@contextlib.contextmanager
def own_cgroup(name: str) -> Iterator[str]:
    """Shell code that moves whoever runs it into a control group of its own, of every hierarchy there is, which it sees
    as the whole one."""
    made = [path / name for path in hierarchies()]
    for path in made:
        path.mkdir()
    try:
        moves = "".join(f'[ "$1" = unshared ] || echo $$ > {path}/cgroup.procs\n' for path in made)
        yield moves + UNSHARE + "".join(f"mount --bind {path} {path.parent}\n" for path in made)
    finally:
        for path in made:
            for inner in sorted(path.rglob("*/"), reverse=True):
                if inner.is_dir():
                    inner.rmdir()
            until(lambda path=path: not (path / "cgroup.procs").read_text())  # type: ignore[misc]
            path.rmdir()


class Machine:
    """What systemd is process 1 of; mounts are seen in there alone."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "root"
        self.pid = 0

    def run(self, *command: str, check: bool = True) -> str:
        inside = ["nsenter", "-t", str(self.pid), "-m", "-p", "-i", "-u", "--", *command]
        environment = {
            "PATH": f"{COMMAND.parent}:{os.environ['PATH']}",
            "MOUNT_SESSION_STATE": str(self.directory / "state"),
        }
        done = subprocess.run(inside, capture_output=True, text=True, env=environment, timeout=60)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}{self.log()}"
        return done.stdout

    def show(self, *names: str) -> list[str]:
        """Properties of our unit."""
        return [self.run("systemctl", "show", "-P", name, "mount-session", check=False).strip() for name in names]

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")[-4000:]


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    if not hierarchies():
        unavailable("systemd needs control groups of its own")
    units = tmp_path / "units"
    units.mkdir()
    (units / "test.target").write_text(TARGET + "Wants=mount-session.service\n")
    for name in ("basic", "sysinit", "shutdown"):
        (units / f"{name}.target").write_text(TARGET)
    shutil.copy(PROJECT / "packaging/mount-session.service", units)
    one = Machine(tmp_path)
    config = tmp_path / "mount-session.toml"
    config.write_text(f'root = "{one.root}"\nstate = "{tmp_path}/state"\n')
    (units / "mount-session.service.d").mkdir()
    (units / "mount-session.service.d/test.conf").write_text(
        f"[Unit]\n{TARGET}After=\n[Service]\nEnvironment=PATH={COMMAND.parent}:{os.environ['PATH']}\n"
        f"ExecStart=\nExecStart=/usr/bin/env mount-session serve --config {config}\n"
        f"StandardError=append:{tmp_path}/log\n"
    )
    with own_cgroup(f"mount-session-test-{os.getpid()}") as enter, (tmp_path / "log").open("ab") as log:
        boot = tmp_path / "boot"
        boot.write_text(f"#!/bin/sh\nset -eu\n{enter}" + BOOT.format(units=units, systemd=SYSTEMD))
        boot.chmod(0o755)
        shell = subprocess.Popen([boot, "outside"], stdout=log, stderr=log)
        children = Path(f"/proc/{shell.pid}/task/{shell.pid}/children")
        try:
            one.pid = int(until(children.read_text).split()[0])
            until(lambda: shell.poll() is not None or one.show("SubState") == ["running"])
            assert shell.poll() is None, one.log()
            yield one
        finally:
            if one.pid:
                os.kill(one.pid, signal.SIGKILL)
            shell.wait(timeout=30)


def test_sessions_outlive_all_processes_of_the_service_and_end_with_it(machine: Machine) -> None:
    """Not one of them is left, and still no program in the session gets an error: systemd has the descriptors."""
    machine.run("mount-session", "new", "a")
    machine.run("mount-session", "new", "b")
    assert machine.show("ActiveState", "NFileDescriptorStore") == ["active", "2"]
    kill = "systemctl kill -s KILL --kill-who=all mount-session"
    write = f"seq 1 50; {kill}; seq 51 5000"
    machine.run("sh", "-euc", f"({write}) | while read n; do echo $n; done > {machine.root}/a/log")
    assert machine.run("cat", f"{machine.root}/a/log").split() == [str(n + 1) for n in range(5000)]
    until(lambda: machine.show("SubState", "NRestarts", "StatusText") == ["running", "1", "2 sessions"])
    assert machine.show("NFileDescriptorStore") == ["2"]
    assert machine.run("mount-session", "ls", "-q").split() == ["a", "b"]
    machine.run("systemctl", "stop", "mount-session")
    assert machine.show("ActiveState", "Result", "NFileDescriptorStore") == ["inactive", "success", "0"]
    assert str(machine.root) not in machine.run("cat", "/proc/1/mountinfo")
    machine.run("systemctl", "start", "mount-session")
    assert machine.show("StatusText") == ["2 sessions"], "ready only when what was mounted is there again"
    assert machine.run("tail", "-n1", f"{machine.root}/a/log") == "5000\n"
    machine.run("systemctl", "stop", "mount-session")
