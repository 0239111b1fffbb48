"""`mount-session serve` in a process of its own, as an operator has it, and the commands that speak to it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from click.testing import CliRunner

from mount.cli import main
from mount.client import Client, NoDaemon
from mount.mountpoint import parse_mountinfo
from tests.mounted import DEADLINE, detach

COMMAND = (sys.executable, "-m", "mount.cli")
PROJECT = Path(__file__).parent.parent.parent


def until(condition: Callable[[], Any], seconds: float = DEADLINE) -> Any:
    """What the condition is when it is true; fails at the deadline."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"not true after {seconds:g} s"
        os.sched_yield()
    return found


class Program(NamedTuple):
    """The interpreter, and the directory of this project."""

    python: Path = Path(sys.executable)
    project: Path = PROJECT


OURS = Program()


class Ended(NamedTuple):
    """How a command ended, and what it printed."""

    status: int
    stdout: bytes
    stderr: bytes


@dataclass
class Serving:
    directory: Path
    process: subprocess.Popen[bytes]

    @classmethod
    def start(
        cls,
        directory: Path,
        settings: Mapping[str, object],
        environment: Mapping[str, str] | None = None,
        program: Program = OURS,
    ) -> Serving:
        directory.mkdir(exist_ok=True)
        directory.chmod(0o755)  # workers with users of their own pass through
        serving = cls(directory, None)  # type: ignore[arg-type]
        serving.config.write_text(_toml({"root": str(serving.root), "state": str(serving.state), **settings}))
        with serving.log_path.open("ab") as log:
            serving.process = subprocess.Popen(
                [str(program.python), *COMMAND[1:], "serve", "--config", str(serving.config)],
                cwd=program.project,
                stdout=log,
                stderr=log,
                env={**os.environ, **(environment or {})},
            )
        try:
            until(serving._answers)
        except BaseException:
            serving.clean_up()
            raise
        return serving

    @property
    def root(self) -> Path:
        return self.directory / "root"

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def config(self) -> Path:
        return self.directory / "config.toml"

    @property
    def log_path(self) -> Path:
        return self.directory / "daemon.log"

    @property
    def socket(self) -> Path:
        return self.state / ".daemon/control.sock"

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"ended with status {self.process.returncode}: {self.log()}"
        try:
            with Client(self.state) as client:
                client.openapi()
        except NoDaemon:
            return False
        return True

    def client(self) -> Client:
        return Client(self.state)

    def run(self, *arguments: str, status: int = 0, stdin: bytes | None = None) -> Ended:
        """One command; fails unless it ends with `status`. In this process: starting another takes most of a second."""
        result = CliRunner().invoke(main, [arguments[0], "--state", str(self.state), *arguments[1:]], input=stdin)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        ended = Ended(result.exit_code, result.stdout_bytes, result.stderr_bytes)
        assert ended.status == status, f"{arguments}: {ended} {self.log()[-2000:]}"
        return ended

    def shell(self, *arguments: str) -> Ended:
        """One command as a process of its own, as a script has it."""
        command = [*COMMAND, arguments[0], "--state", str(self.state), *arguments[1:]]
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, timeout=60)
        return Ended(done.returncode, done.stdout, done.stderr)

    def json(self, *arguments: str, status: int = 0) -> Any:
        return json.loads(self.run(*arguments, "--json", status=status).stdout)

    def mounts(self) -> list[Path]:
        entries = parse_mountinfo(Path("/proc/self/mountinfo").read_bytes())
        found = [Path(os.fsdecode(entry.mountpoint)) for entry in entries]
        return [path for path in found if path.is_relative_to(self.root)]

    def stop(self) -> None:
        """SIGTERM; it must unmount everything and end with status 0."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(timeout=DEADLINE)
        assert status == 0, f"status {status}: {self.log()[-4000:]}"
        assert self.mounts() == []

    def kill9(self) -> None:
        """SIGKILL to all of its processes at once, mounts taken away: what a power cut does to it."""
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in self.processes():
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
        self.process.wait(timeout=DEADLINE)
        for path in self.mounts():
            detach(path)

    def processes(self) -> list[int]:
        """The daemon and everything that it has started."""
        children: dict[int, list[int]] = {}
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                stat = Path("/proc", entry, "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry))
        found = [self.process.pid]
        for pid in found:
            found.extend(children.get(pid, ()))
        return found

    def worker(self, session: str) -> int:
        """Its worker's process; waits where one is being started."""
        with self.client() as client:
            pid: int = until(lambda: (worker := client.status(session).worker) and worker.pid)
        return pid

    def clean_up(self) -> None:
        if self.process.poll() is None:
            self.kill9()
        for path in self.mounts():
            detach(path)


def _toml(settings: Mapping[str, object]) -> str:
    """Enough TOML for tests: values first, then tables."""
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items() if not _is_table(value)]
    for name, value in settings.items():
        if isinstance(value, dict):
            lines += [f"[{name}]", *(f"{key} = {json.dumps(inner)}" for key, inner in value.items())]
        elif _is_table(value):
            assert isinstance(value, list)
            for table in value:
                lines += [f"[[{name}]]", *(f"{key} = {json.dumps(inner)}" for key, inner in table.items())]
    return "\n".join(lines) + "\n"


def _is_table(value: object) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))
