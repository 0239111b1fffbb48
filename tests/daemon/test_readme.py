"""The README's lines for a session and for containers, as they stand there: only the place, the image and the command
are this test's."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.conftest import unavailable
from tests.container import Engine
from tests.daemon.serving import PROJECT, until
from tests.mounted import COMMAND, MOUNTS
from tests.ordinary import READER, become, edited, fuse_for_all

CONTAINERS = "## Containers, in three lines"
ROOTLESS_ENGINE = "/usr/share/docker.io/contrib/dockerd-rootless.sh"


def section(heading: str = CONTAINERS) -> str:
    return (PROJECT / "README.md").read_text().partition(f"{heading}\n")[2].partition("\n## ")[0]


def code(text: str) -> list[str]:
    """Its commands, in order."""
    return [line.partition("  #")[0].strip() for line in text.splitlines() if line.startswith("    ")]


def the(begins: str, *parts: str) -> str:
    """The one line for containers that begins so and has these parts."""
    lines = code(section())
    (line,) = [line for line in lines if line.startswith(begins) and all(part in line for part in parts)]
    return line


class Shell:
    """A user's, in which `mount-session` is a command."""

    def __init__(self, home: Path, prefix: Sequence[str], environment: Mapping[str, str]) -> None:
        self.home = home
        self._prefix = prefix
        self._environment = {
            **{name: os.environ[name] for name in ("DOCKER_HOST",) if name in os.environ},
            "PATH": f"{COMMAND.parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
            "HOME": str(home),
            **environment,
        }
        self._serving: subprocess.Popen[bytes] | None = None

    def start(self, line: str, prefix: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """In the background."""
        with (self.home / "log").open("ab") as log:
            command = [*(prefix or self._prefix), "/bin/sh", "-c", f"exec {self._here(line)}"]
            return subprocess.Popen(command, cwd="/", env=self._environment, stdout=log, stderr=log)

    def run(self, line: str, *, check: bool = True) -> str:
        """To its end; its output."""
        command = [*self._prefix, "/bin/sh", "-c", self._here(line)]
        done = subprocess.run(command, cwd="/", env=self._environment, capture_output=True, text=True, timeout=90)
        assert not check or done.returncode == 0, f"{line}: {done.stderr} {(self.home / 'log').read_text()[-2000:]}"
        return done.stdout

    def serve(self) -> None:
        self._serving = self.start(the("mount-session serve", "~" if self._prefix else "/srv"))
        until(lambda: self.run("mount-session ls --json && echo there", check=False).endswith("there\n"))

    def container(self, line: str, image: str, script: str) -> str:
        assert line.endswith(" IMAGE COMMAND")
        return self.run(line.replace("IMAGE COMMAND", f"{image} sh -euc {shlex.quote(script)}"))

    def _here(self, line: str) -> str:
        return line.replace("/srv/sessions", str(self.home / "sessions"))

    def close(self) -> None:
        if self._serving is not None:
            self._serving.send_signal(signal.SIGTERM)
            assert self._serving.wait(timeout=60) == 0, (self.home / "log").read_text()[-4000:]
        assert f"{self.home}/sessions/" not in MOUNTS.read_text()


@contextlib.contextmanager
def shared_sessions() -> Iterator[Path]:
    """A home whose `sessions` is a shared mount, as all of / is under systemd."""
    home = Path(tempfile.mkdtemp(prefix="mount-session-readme-"))
    home.chmod(0o755)
    sessions = home / "sessions"
    sessions.mkdir()
    subprocess.run(["mount", "--bind", sessions, sessions], check=True)
    try:
        subprocess.run(["mount", "--make-rshared", sessions], check=True)
        yield home
    finally:
        subprocess.run(["umount", "--lazy", sessions], check=True)
        shutil.rmtree(home)


def test_the_lines_for_one_session(tmp_path: Path) -> None:
    link, directory, up, receipt = code(section("## A session"))
    shell = Shell(tmp_path, (), {"MOUNT_SESSION_STATE": str(tmp_path / "state")})
    (tmp_path / "bin").mkdir()
    shell.run(f"cd {PROJECT} && " + link.replace("/usr/local/bin/", f"{tmp_path}/bin/"))
    assert (tmp_path / "bin/mount-session").readlink() == PROJECT / ".venv/bin/mount-session"
    path = tmp_path / "my-session"
    shell.run(directory.replace("/mnt/", f"{tmp_path}/"))
    running = shell.start(up.replace("/mnt/", f"{tmp_path}/"))
    until(lambda: f"my-session is mounted on {path}\n" in (tmp_path / "log").read_text())
    (path / "file").write_text("12345")
    running.send_signal(signal.SIGTERM)
    assert running.wait(timeout=60) == 0
    told = json.loads((tmp_path / "log").read_text().splitlines()[-1])
    assert told.keys() == json.loads(receipt).keys() and (told["files"], told["bytes"]) == (1, 5)


@pytest.fixture
def shell(docker_engine: Engine) -> Iterator[Shell]:
    """Root's."""
    engine = {"DOCKER_HOST": docker_engine.host} if docker_engine.host else {}
    with shared_sessions() as home:
        one = Shell(home, (), {"MOUNT_SESSION_STATE": str(home / "state"), **engine})
        one.serve()
        try:
            yield one
        finally:
            one.close()


def test_the_lines_for_an_engine_that_runs_as_root(shell: Shell, container_image: str) -> None:
    shell.run(the("mount-session new my-session"))
    line = the("docker run", "/srv/sessions/my-session:/workspace")
    script = "id -u; echo made > file; stat -c %u file; ! touch /elsewhere 2> /dev/null"
    assert shell.container(line, container_image, script) == "1001\n1001\n"
    assert (shell.home / "sessions/my-session/file").read_text() == "made\n"
    shell.run(the("mount-session new as-they-are"))
    line = the("docker run", "as-they-are")
    assert shell.container(line, container_image, "id -u; touch file; chown 7 file; stat -c %u file .") == "0\n7\n0\n"
    script = (
        "echo > /sessions/my-session/up; until [ -s /sessions/late/file ]; do sleep 0.1; done; cat /sessions/late/file"
    )
    rslave = the("docker run", ":rslave").replace("IMAGE COMMAND", f"{container_image} sh -euc {shlex.quote(script)}")
    running = shell.start(rslave)
    until((shell.home / "sessions/my-session/up").exists)
    shell.run("mount-session new late")
    (shell.home / "sessions/late/file").write_text("seen\n")
    assert running.wait(timeout=60) == 0 and (shell.home / "log").read_text().endswith("seen\n")
    assert json.loads(shell.run("mount-session sync my-session --json"))["pending"] == 0


@pytest.fixture
def rootless() -> Iterator[Shell]:
    """The shell of the user nobody, for whom an engine of his own runs."""
    script = shutil.which("dockerd-rootless.sh") or shutil.which(ROOTLESS_ENGINE)
    if script is None:
        unavailable("no dockerd-rootless.sh: Debian's docker.io has it, Ubuntu's has not")
    user = pwd.getpwnam("nobody")
    (numbers,) = re.findall(r"/etc/subuid says you:(\d+:\d+)", section())
    subordinate = f"{user.pw_name}:{numbers}\n"
    with (
        fuse_for_all(),
        edited(Path("/etc/subuid"), subordinate),
        edited(Path("/etc/subgid"), subordinate),
        shared_sessions() as home,
    ):
        for path in (home, home / "sessions"):
            os.chown(path, user.pw_uid, user.pw_gid)
        environment = {
            "XDG_RUNTIME_DIR": str(home),
            "DOCKER_HOST": f"unix://{home}/docker.sock",
            "DOCKERD_ROOTLESS_ROOTLESSKIT_NET": "host",
            "DOCKERD_ROOTLESS_ROOTLESSKIT_PORT_DRIVER": "none",
        }
        one = Shell(home, [*become(user), *READER, "--"], environment)
        engine = one.start(
            f"{script} --bridge none --iptables=false --ip6tables=false --storage-driver vfs", become(user)
        )
        try:
            until(lambda: engine.poll() is not None or "rootless" in one.run("docker info", check=False))
            assert engine.poll() is None, (home / "log").read_text()[-4000:]
            one.serve()
            try:
                yield one
            finally:
                one.close()
        finally:
            engine.terminate()
            engine.wait(timeout=60)


def test_the_lines_for_a_rootless_engine(rootless: Shell) -> None:
    image = rootless.run(f"{PROJECT}/scripts/container-image").strip()
    rootless.run(the("mount-session new mine"))
    line = the("docker run", "~/sessions/mine:/workspace")
    assert rootless.container(line, image, "id -u; echo mine > file; stat -c %u file") == "0\n0\n"
    nobody = pwd.getpwnam("nobody").pw_uid
    assert (rootless.home / "sessions/mine/file").stat().st_uid == nobody
    rootless.run(the("mount-session new theirs"))
    line = the("docker run", "~/sessions/theirs:/workspace")
    assert rootless.container(line, image, "id -u; echo theirs > file; stat -c %u . file") == "1001\n1001\n1001\n"
    assert (rootless.home / "sessions/theirs/file").stat().st_uid == 101000
    os.kill(json.loads(rootless.run("mount-session status theirs --json"))["worker"]["pid"], signal.SIGKILL)
    assert rootless.container(line, image, "cat file") == "theirs\n"
