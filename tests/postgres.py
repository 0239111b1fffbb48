"""A real PostgreSQL for tests: Debian's, in a directory and on a port of its own, killed and started again at will."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["Postgres", "installed", "running"]


def installed() -> Path | None:
    """Where the newest installed server's programs are; Debian does not put them on the PATH."""
    found = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda program: int(program.parent.parent.name)
    )
    return found[-1].parent if found else None


class Postgres:
    """One server. PostgreSQL refuses to run as root, so root starts it as the package's user."""

    def __init__(self, programs: Path, directory: Path) -> None:
        self._programs = programs
        self._directory = directory
        self._user = "postgres" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(directory, self._user)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._run("initdb", "-D", directory / "data", "-U", "test", "-A", "trust", "--no-sync", "-E", "UTF8")

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://test@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Returns when it answers."""
        options = f"-c listen_addresses=127.0.0.1 -p {self.port} -k {self._directory} -c fsync=off"
        log = self._directory / "log"
        self._run("pg_ctl", "-D", self._directory / "data", "-l", log, "-o", options, "-w", "-t", "60", "start")

    def kill(self) -> None:
        """SIGKILL to the server and its children; returns when they are gone."""
        pid = int((self._directory / "data/postmaster.pid").read_text().split()[0])
        children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
        for one in (pid, *map(int, children.stdout.split())):
            os.kill(one, signal.SIGKILL)
        self._run("pg_ctl", "-D", self._directory / "data", "-m", "immediate", "-t", "60", "stop", check=False)

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self._directory / "data", "-m", "immediate", "-t", "60", "stop", check=False)

    def _run(self, program: str, *arguments: object, check: bool = True) -> None:
        subprocess.run(
            [self._programs / program, *map(str, arguments)],
            user=self._user,
            cwd=self._directory,
            check=check,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL if not check else None,
            timeout=120,
        )


@contextmanager
def running(programs: Path) -> Iterator[Postgres]:
    # Not below pytest's directory: only root may look into that.
    directory = Path(tempfile.mkdtemp(prefix="mount-session-postgres-"))
    try:
        server = Postgres(programs, directory)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(directory)
