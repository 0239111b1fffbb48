"""Real programs work as if nothing happened while their session's worker is killed twice a second."""

from __future__ import annotations

import filecmp
import os
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.container import Container
from tests.mount.killing import killing
from tests.mounted import Mounted

Mount = Callable[..., Mounted]
EVERY = 0.5
ENVIRONMENT = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "LC_ALL": "C"}
IDENTITY = ["-c", "user.name=someone", "-c", "user.email=someone@localhost"]


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """One mounted session for all of this module; each test has a directory of its own in it."""
    base = tmp_path_factory.mktemp("proof")
    (base / "mnt").mkdir()
    up = Mounted.up("proof", base / "mnt", base / "state", (), base / "log")
    try:
        yield up
        assert up.stop()["pending"] == 0
    finally:
        up.clean_up()


def run(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some hundred small files in some dozens of directories, on an ordinary disk."""
    base = tmp_path_factory.mktemp("tree") / "tree"
    for number in range(600):
        path = base / f"d{number % 25}" / f"e{number % 3}" / f"file-{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(number * 17 % 9000))
        path.chmod(0o640 if number % 2 else 0o755)
    (base / "link").symlink_to("d1/e1")
    return base


def same(left: Path, right: Path) -> bool:
    compared = filecmp.dircmp(left, right, ignore=[".git"])
    pending = [compared]
    while pending:
        one = pending.pop()
        if one.left_only or one.right_only or one.funny_files:
            return False
        if filecmp.cmpfiles(one.left, one.right, one.common_files, shallow=False)[1:] != ([], []):
            return False
        pending += one.subdirs.values()
    return True


def repeated(killer_kills: Callable[[], int], at_least: int, work: Callable[[int], None]) -> None:
    """Do it again until enough kills have come in between."""
    number, end = 0, time.monotonic() + 90
    while killer_kills() < at_least or number == 0:
        assert time.monotonic() < end
        work(number)
        number += 1


def test_tar_under_kills_leaves_the_tree_as_it_is(session: Mounted, tree: Path, tmp_path: Path) -> None:
    run("tar", "-C", tree, "-cf", tmp_path / "tree.tar", ".")

    def unpack(number: int) -> None:
        out = session.path / f"tar{number}"
        out.mkdir()
        run("tar", "-C", out, "-xpf", tmp_path / "tree.tar")
        assert same(tree, out)
        for path in tree.rglob("*"):
            mine, other = path.lstat(), (out / path.relative_to(tree)).lstat()
            assert (mine.st_mode, int(mine.st_mtime)) == (other.st_mode, int(other.st_mtime))

    with killing("proof", EVERY) as killer:
        repeated(lambda: killer.kills, 4, unpack)


def test_git_under_kills_commits_and_clones(session: Mounted, tree: Path) -> None:
    repository = session.path / "repository"
    with killing("proof", EVERY) as killer:
        run("cp", "-r", tree, repository)
        run("git", "init", "-q", ".", cwd=repository)
        run("git", "add", ".", cwd=repository)
        run("git", *IDENTITY, "commit", "-qm", "all", cwd=repository)

        def clone(number: int) -> None:
            copy = session.path / f"clone{number}"
            run("git", "clone", "-q", "--no-hardlinks", repository, copy)
            run("git", "fsck", "--full", "--strict", cwd=copy)
            assert run("git", "status", "--porcelain", cwd=copy) == ""
            assert same(tree, copy)

        repeated(lambda: killer.kills, 4, clone)


def test_make_under_kills_builds_what_runs(session: Mounted) -> None:
    def build(number: int) -> None:
        at = session.path / f"make{number}"
        at.mkdir()
        objects = [f"part{part}.o" for part in range(8)]
        for part in range(8):
            (at / f"part{part}.c").write_text(f"#include <stdio.h>\nint part{part}(void) {{ return {part}; }}\n")
        calls = " + ".join(f"part{part}()" for part in range(8))
        declared = "".join(f"int part{part}(void);" for part in range(8))
        (at / "main.c").write_text(f'#include <stdio.h>\n{declared}int main(void){{printf("%d", {calls});}}\n')
        (at / "Makefile").write_text(f"main: main.o {' '.join(objects)}\n\t$(CC) -o $@ $^\n")
        run("make", "-j2", cwd=at)
        assert run(at / "main") == "28"

    with killing("proof", EVERY) as killer:
        repeated(lambda: killer.kills, 4, build)


def test_sqlite_under_kills_keeps_every_transaction(session: Mounted) -> None:
    path = session.path / "database"
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA synchronous=FULL")
        database.execute("CREATE TABLE numbers (n INTEGER PRIMARY KEY, t TEXT)")
        database.commit()
        number = 0
        with killing("proof", EVERY) as killer:
            while killer.kills < 6:
                with database:
                    database.execute("INSERT INTO numbers VALUES (?, ?)", (number, "x" * 100))
                number += 1
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert database.execute("SELECT count(*), max(n) FROM numbers").fetchone() == (number, number - 1)
    database.close()


def test_a_container_sees_no_error_while_the_worker_is_killed(
    session: Mounted, container: Callable[..., Container]
) -> None:
    at = session.path / "container"
    at.mkdir()
    at.chmod(0o777)
    script = "set -e; i=0; while [ ! -e /workspace/enough ]; do echo $i >> /workspace/lines; mkdir /workspace/d; "
    script += "mv /workspace/d /workspace/e; rmdir /workspace/e; i=$((i+1)); done; echo $i > /workspace/count"
    running = container(at, script)
    with killing("proof", EVERY) as killer:
        end = time.monotonic() + 60
        while killer.kills < 8 and time.monotonic() < end:
            os.statvfs(at)
        (at / "enough").touch()
    running.finish()
    count = int((at / "count").read_text())
    assert (at / "lines").read_text().split() == [str(number) for number in range(count)]


def test_the_death_of_all_processes_loses_no_answered_change(mounted: Mount) -> None:
    """`kill -9` of supervisor, zygote and worker at once, in the middle of a client's work, three times."""
    written = 0
    for round_ in range(3):
        up = mounted("work")
        with (up.path / "lines").open("ab", buffering=0) as file:
            for _ in range(50):
                file.write(b"%d\n" % written)
                written += 1
            os.mkdir(up.path / f"dir{round_}")
            up.kill9()
    up = mounted("work")
    assert (up.path / "lines").read_bytes() == b"".join(b"%d\n" % number for number in range(written))
    assert sorted(path.name for path in up.path.iterdir()) == ["dir0", "dir1", "dir2", "lines"]
