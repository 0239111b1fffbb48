"""`mount-session up` as an ordinary user: by fusermount3, with or without user_allow_other."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mount.mountpoint import FUSE_CONF
from tests.mounted import COMMAND, detach
from tests.ordinary import READER, become, fuse_for_all

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")


@pytest.fixture
def ordinary() -> Iterator[tuple[Path, Callable[..., subprocess.Popen[str]]]]:
    """A directory of the user nobody, and `up` run as that user; /dev/fuse is open to all meanwhile."""
    nobody = pwd.getpwnam("nobody")
    home = Path(tempfile.mkdtemp(prefix="mount-session-nobody-"))
    (home / "mnt").mkdir()
    for path in (home, home / "mnt"):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)

    def run(*arguments: str, allow_other: bool = True, **environment: str) -> subprocess.Popen[str]:
        FUSE_CONF.write_text("user_allow_other\n" if allow_other else "# user_allow_other\n")
        return subprocess.Popen(
            [*become(nobody), *READER, "--", str(COMMAND), "up", *arguments],
            cwd="/",
            env={"PATH": os.environ["PATH"], "HOME": str(home), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    try:
        with fuse_for_all():
            yield home, run
    finally:
        detach(home / "mnt")
        shutil.rmtree(home)


User = tuple[Path, Callable[..., "subprocess.Popen[str]"]]


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=30)
    return process.returncode, output, errors


@needs_root
def test_an_ordinary_user_mounts_with_fusermount3_and_others_can_work_in_it(ordinary: User) -> None:
    home, run = ordinary
    process = run("work", str(home / "mnt"))
    assert process.stdout is not None
    assert process.stdout.readline() == f"work is mounted on {home / 'mnt'}\n", ended(process)
    nobody = pwd.getpwnam("nobody").pw_uid
    subprocess.run(["touch", home / "mnt" / "mine"], user=nobody, check=True)
    assert (home / "mnt" / "mine").stat().st_uid == nobody  # root is another user here
    assert (home / ".local/state/mount-session/work/session.json").exists()
    process.terminate()
    status, output, _ = ended(process)
    assert (status, json.loads(output)["files"]) == (0, 1)
    assert not os.path.ismount(home / "mnt")


@needs_root
def test_without_user_allow_other_it_is_for_the_user_alone_and_says_so(ordinary: User) -> None:
    home, run = ordinary
    process = run("work", str(home / "mnt"), allow_other=False, XDG_STATE_HOME=str(home / "xdg"))
    assert process.stdout is not None
    assert "mounted" in process.stdout.readline()
    with pytest.raises(PermissionError):
        os.stat(home / "mnt")
    assert (home / "xdg/mount-session/work/session.json").exists()
    process.terminate()
    status, _, errors = ended(process)
    assert status == 0
    assert "user_allow_other" in errors


@needs_root
def test_without_fusermount3_an_ordinary_user_is_told_what_to_install(ordinary: User) -> None:
    home, run = ordinary
    status, _, errors = ended(run("work", str(home / "mnt"), PATH=str(home)))
    assert status == 1
    assert "install the package fuse3" in errors


@needs_root
def test_without_permission_for_the_device_the_user_is_told(ordinary: User) -> None:
    home, run = ordinary
    os.chmod("/dev/fuse", 0o600)
    status, _, errors = ended(run("work", str(home / "mnt")))
    assert status == 1
    assert "chmod 0666 /dev/fuse" in errors


@needs_root
def test_a_mountpoint_of_someone_else_is_refused_to_an_ordinary_user(ordinary: User, tmp_path: Path) -> None:
    home, run = ordinary
    other = home / "other"
    other.mkdir()
    status, _, errors = ended(run("work", str(other)))
    assert status == 1
    assert str(other) in errors
