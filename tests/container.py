"""Containers for tests, through the `docker` command as a user would.

An Engine is a Docker engine that answers at an address; a Container is one agent's: uid 1001, read-only root, no
network, a directory bind-mounted on /workspace.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).parent.parent / "scripts"
DEADLINE = 60.0  # seconds for one docker command; a container starts in 0.3 s on two idle cores

# What the image `host` needs: this machine's programs, and the links through which Debian finds some of them.
HOST_PROGRAMS = ("-v", "/usr:/usr:ro", "-v", "/etc/alternatives:/etc/alternatives:ro")


@dataclass(frozen=True)
class Engine:
    host: str | None

    def docker(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self._run(["docker", *arguments], check)

    def run(self, command: list[str]) -> str:
        """Any program that speaks to the engine, which must succeed; its standard output."""
        return self._run(command).stdout

    def _run(self, command: list[str], check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = dict(os.environ, **({"DOCKER_HOST": self.host} if self.host else {}))
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE)
        assert not check or done.returncode == 0, f"{command}: {done.stderr}{done.stdout}"
        return done

    def answers(self) -> bool:
        return shutil.which("docker") is not None and self.docker("version", check=False).returncode == 0

    def image(self, kind: str) -> str:
        return self._run([str(SCRIPTS / "container-image"), kind]).stdout.strip()

    def start(self, image: str, workspace: Path, script: str, user: str) -> Container:
        programs = HOST_PROGRAMS if image.endswith("-host") else ()
        identity = self.docker(
            *("run", "--detach", "--user", user, "--read-only", "--network", "none"),
            *("--volume", f"{workspace}:/workspace", "--workdir", "/workspace", *programs),
            *(image, "/bin/sh", "-euc", script),
        )
        return Container(self, identity.stdout.strip())


@dataclass(frozen=True)
class Container:
    engine: Engine
    id: str

    def finish(self) -> str:
        """Waits for its end, which must be a success, and returns its standard output."""
        status = self.engine.docker("wait", self.id).stdout.strip()
        logs = self.engine.docker("logs", self.id)
        assert status == "0", f"container ended with {status}: {logs.stderr}{logs.stdout}"
        return logs.stdout

    def run(self, script: str) -> str:
        """Runs a script in the live container, which must succeed, and returns its standard output."""
        return self.engine.docker("exec", self.id, "/bin/sh", "-euc", script).stdout

    def remove(self) -> None:
        self.engine.docker("rm", "--force", self.id)


@contextlib.contextmanager
def private_engine() -> Iterator[Engine]:
    """An engine of our own: no image, container or setting of the machine's is touched."""
    directory = Path(tempfile.mkdtemp(prefix="engine.", dir="/tmp"))  # short: a socket's path has at most 107 bytes
    engine = Engine(f"unix://{directory}/docker.sock")
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen([SCRIPTS / "docker-engine", directory], stdout=log, stderr=log)
    try:
        for _ in range(60):
            if engine.answers():
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
                raise AssertionError(f"dockerd ended: {(directory / 'log').read_text()}")
        else:
            raise AssertionError(f"dockerd does not answer: {(directory / 'log').read_text()}")
        yield engine
    finally:
        process.terminate()
        process.wait(timeout=30)
        shutil.rmtree(directory)
