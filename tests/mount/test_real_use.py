"""The programs that people run, on a mounted session: each does here what it does on any disk."""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import sysconfig
import tarfile
import textwrap
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.mounted import Mounted, run

Mount = Callable[..., Mounted]


class Entry(NamedTuple):
    mode: int
    owner: tuple[int, int]
    mtime_ns: int
    links: int
    content: bytes


def tree(root: Path) -> dict[str, Entry]:
    """All that a user can tell about a tree. Directories' link counts differ between file systems, and are left out."""
    found = {}
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            path = Path(directory, name)
            status = path.lstat()
            content = b""
            if stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(os.fsencode(path))
            links = 0 if stat.S_ISDIR(status.st_mode) else status.st_nlink
            owner = (status.st_uid, status.st_gid)
            found[str(path.relative_to(root))] = Entry(status.st_mode, owner, status.st_mtime_ns, links, content)
    return found


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thousands of real source files: the installed packages'."""
    target = tmp_path_factory.mktemp("sources")
    packages = Path(sysconfig.get_path("purelib"))
    compiled = shutil.ignore_patterns("*.so", "*.pyc", "__pycache__")
    for package in ("mypy", "moto", "hypothesis", "sqlalchemy", "_pytest", "trio", "pip"):
        shutil.copytree(packages / package, target / package, ignore=compiled)
    return target


@pytest.fixture(scope="module")
def repository(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare git repository of those sources, with a history of two commits."""
    bare = tmp_path_factory.mktemp("repository") / "sources.git"
    git = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "init.defaultBranch=main")
    work = tmp_path_factory.mktemp("work") / "tree"
    shutil.copytree(sources, work)
    run(*git, "init", "-q", cwd=work)
    run(*git, "add", ".", cwd=work)
    run(*git, "commit", "-qm", "sources", cwd=work)
    run(*git, "mv", "moto", "renamed", cwd=work)
    run(*git, "commit", "-qm", "a rename", cwd=work)
    run("git", "clone", "-q", "--bare", work, bare)
    return bare


def test_git_clones_a_large_repository_and_finds_it_whole_and_clean_after_a_remount(
    mounted: Mount, repository: Path
) -> None:
    session = mounted()
    clone = session.path / "clone"
    run("git", "clone", "-q", f"file://{repository}", clone)
    run("git", "fsck", "--full", "--strict", cwd=clone)
    files = run("git", "ls-files", cwd=clone).splitlines()
    assert len(files) > 3000
    assert run("git", "status", "--porcelain", cwd=clone) == ""
    index = (clone / ".git" / "index").read_bytes()
    session.stop()

    mounted()
    assert run("git", "status", "--porcelain", cwd=clone) == ""
    # It holds inode numbers, sizes and times; all are the same, so git had no file to read again.
    assert (clone / ".git" / "index").read_bytes() == index
    run("git", "fsck", "--full", cwd=clone)
    run("git", "checkout", "-q", "HEAD~1", cwd=clone)
    run("git", "checkout", "-q", "-b", "work", cwd=clone)
    (clone / "new.txt").write_text("new\n")
    run("git", "add", "new.txt", cwd=clone)
    run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "new", cwd=clone)
    run("git", "gc", "-q", cwd=clone)
    assert run("git", "status", "--porcelain", cwd=clone) == ""
    run("git", "fsck", "--full", cwd=clone)


def odd_tree(root: Path) -> None:
    """Entries whose modes, times, links and names programs get wrong."""
    (root / "bin").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "sticky").mkdir()
    os.chmod(root / "sticky", 0o1777)
    modes = {"bin/tool": 0o755, "secret": 0o600, "read-only": 0o444, "nothing": 0o000, "suid": 0o4755}
    for name, mode in modes.items():
        (root / name).write_bytes(name.encode() * 1000)
        os.chmod(root / name, mode)
    (root / "zero").touch()
    (root / ("ä" * 127)).write_text("a name of 254 bytes")
    (root / "with\nnewline and 'quotes'").write_text("x")
    os.link(root / "secret", root / "bin" / "same as secret")
    os.symlink("../secret", root / "bin" / "relative")
    os.symlink("/nowhere/at all", root / "dangling")
    os.mkfifo(root / "fifo")
    with (root / "sparse").open("wb") as sparse:
        sparse.truncate(10 << 20)
        sparse.seek(5 << 20)
        sparse.write(b"middle")
    for number, path in enumerate(sorted(root.rglob("*"), reverse=True)):
        moment = 1_000_000_000_123_456_789 + number * 1_000_000_007
        os.utime(path, ns=(moment, moment), follow_symlinks=False)
    for name in ("bin", "empty", "sticky"):
        os.utime(root / name, ns=(987_654_321_000_000_001, 987_654_321_000_000_001))


def test_tar_brings_a_tree_in_and_out_with_modes_times_owners_and_links(
    mounted: Mount, sources: Path, tmp_path: Path
) -> None:
    original = tmp_path / "original"
    shutil.copytree(sources / "trio", original / "trio")
    odd_tree(original / "odd")
    archive = tmp_path / "original.tar"
    run("tar", "--format=posix", "-C", original, "-cf", archive, ".")
    expected = tree(original)

    session = mounted()
    target = session.path / "tree"
    target.mkdir()
    run("tar", "-xpf", archive, "-C", target)
    run("tar", "-df", archive, "-C", target)
    assert tree(target) == expected
    session.stop()

    mounted()
    assert tree(target) == expected
    run("tar", "--format=posix", "-C", target, "-cf", tmp_path / "out.tar", ".")
    with tarfile.open(tmp_path / "out.tar") as out, tarfile.open(archive) as before:
        assert sorted(out.getnames()) == sorted(before.getnames())


C_MAKEFILE = """\
OBJECTS = $(patsubst %.c,%.o,$(wildcard part*.c))
program: main.o libparts.a
\t$(CC) -o $@ main.o -L. -lparts
libparts.a: $(OBJECTS)
\t$(AR) rcs $@ $^
%.o: %.c parts.h
\t$(CC) -O1 -c -o $@ $<
"""


def test_make_builds_a_c_program_and_sees_by_times_what_is_up_to_date(mounted: Mount) -> None:
    directory = mounted().path / "program"
    directory.mkdir()
    parts = range(40)
    (directory / "Makefile").write_text(C_MAKEFILE)
    (directory / "parts.h").write_text("".join(f"int part{n}(void);\n" for n in parts))
    for n in parts:
        (directory / f"part{n}.c").write_text(f'#include "parts.h"\nint part{n}(void) {{ return {n}; }}\n')
    total = " + ".join(f"part{n}()" for n in parts)
    (directory / "main.c").write_text(
        f'#include <stdio.h>\n#include "parts.h"\nint main(void) {{ printf("%d\\n", {total}); return 0; }}\n'
    )
    run("make", "-j2", cwd=directory)
    assert run(directory / "program") == f"{sum(parts)}\n"
    run("make", "-q", cwd=directory)

    (directory / "part3.c").write_text('#include "parts.h"\nint part3(void) { return 1003; }\n')
    rebuilt = run("make", "-j2", cwd=directory)
    assert rebuilt.count(" -c ") == 1
    assert run(directory / "program") == f"{sum(parts) + 1000}\n"


@pytest.mark.parametrize("journal_mode", ["delete", "wal"])
def test_sqlite_with_two_writers_keeps_every_commit_through_a_remount(mounted: Mount, journal_mode: str) -> None:
    session = mounted()
    database = session.path / "data.sqlite"
    with sqlite3.connect(database) as connection:
        assert connection.execute(f"PRAGMA journal_mode={journal_mode}").fetchone() == (journal_mode,)
        connection.execute("CREATE TABLE entries (writer INTEGER, number INTEGER, text TEXT)")
    connection.close()
    writer = textwrap.dedent("""
        import sqlite3, sys
        connection = sqlite3.connect(sys.argv[1], timeout=60)
        connection.execute("PRAGMA synchronous=FULL")
        for number in range(100):
            with connection:
                connection.execute("INSERT INTO entries VALUES (?, ?, ?)", (int(sys.argv[2]), number, "x" * 2000))
        connection.close()
    """)
    writers = [subprocess.Popen([sys.executable, "-c", writer, str(database), str(n)]) for n in range(2)]
    assert [process.wait(timeout=120) for process in writers] == [0, 0]
    session.stop()

    mounted()
    connection = sqlite3.connect(database)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        query = "SELECT writer, count(*), sum(length(text)) FROM entries GROUP BY writer"
        assert connection.execute(query).fetchall() == [(0, 100, 200_000), (1, 100, 200_000)]
    finally:
        connection.close()


def test_sqlite_keeps_committed_rows_when_everything_is_killed(mounted: Mount) -> None:
    session = mounted()
    database = session.path / "data.sqlite"
    writer = textwrap.dedent("""
        import sqlite3, sys
        connection = sqlite3.connect(sys.argv[1])
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE entries (number INTEGER)")
        for number in range(100_000):
            with connection:
                connection.execute("INSERT INTO entries VALUES (?)", (number,))
            print(number, flush=True)
    """)
    process = subprocess.Popen(
        [sys.executable, "-c", writer, str(database)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    acknowledged = [int(next(process.stdout)) for _ in range(50)]
    session.kill9()
    acknowledged += [int(line) for line in process.stdout]  # what it had said before its file system died
    assert process.wait(timeout=60) != 0
    process.stdout.close()

    mounted()
    connection = sqlite3.connect(database)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = [number for (number,) in connection.execute("SELECT number FROM entries ORDER BY number")]
    finally:
        connection.close()
    assert rows[: len(acknowledged)] == acknowledged


def tiny_wheel(directory: Path) -> None:
    """A package with a module and a command, as pip wants it, so that no test needs a network."""
    files = {
        "tiny/__init__.py": "def main():\n    print('tiny works')\n",
        "tiny-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
        "tiny-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tiny-1.0.dist-info/entry_points.txt": "[console_scripts]\ntiny = tiny:main\n",
    }
    record = "".join(f"{name},,\n" for name in (*files, "tiny-1.0.dist-info/RECORD"))
    with zipfile.ZipFile(directory / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        for name, text in (*files.items(), ("tiny-1.0.dist-info/RECORD", record)):
            wheel.writestr(name, text)


def test_pip_installs_into_a_virtual_environment_on_the_mount(mounted: Mount, tmp_path: Path) -> None:
    tiny_wheel(tmp_path)
    session = mounted()
    venv = session.path / "venv"
    run(sys.executable, "-m", "venv", venv)
    run(venv / "bin" / "pip", "install", "--no-index", "--find-links", tmp_path, "tiny")
    assert run(venv / "bin" / "tiny") == "tiny works\n"
    session.stop()
    mounted()
    assert run(venv / "bin" / "python", "-c", "import tiny; tiny.main()") == "tiny works\n"
    run(venv / "bin" / "pip", "uninstall", "-y", "tiny")
    assert not (venv / "bin" / "tiny").exists()


def test_a_file_written_through_python_streams_reads_back_the_same(mounted: Mount) -> None:
    """Seeks, partial writes and truncation, in the order in which editors and zip writers do them."""
    path = mounted().path / "archive.zip"
    payload = os.urandom(3 << 20)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("large", payload)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("small", b"text" * 1000)
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        assert archive.testzip() is None
        assert archive.read("large") == payload
