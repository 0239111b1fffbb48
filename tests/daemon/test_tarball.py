"""A daemon that is not root cannot change its root directory for an archive, and still stays inside."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from pathlib import Path

import pytest

from mount import tarball

STRANGER = 65534


def archive(*entries: tuple[str, bytes, str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, kind, target, content in entries:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size, member.mode = kind, target, len(content), 0o755
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def extract(content: bytes, directory: Path, log: Path) -> tuple[int, str]:
    """`tarball import` as an ordinary user: its status, and what it complained of."""
    with (log / "in").open("wb") as file:
        file.write(content)
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            os.dup2(os.open(log / "in", os.O_RDONLY), 0)
            complaint = os.open(log / "err", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(STRANGER, STRANGER, STRANGER)
                os.setresuid(STRANGER, STRANGER, STRANGER)
            with os.fdopen(complaint, "w") as stderr, open(0, closefd=False) as stdin:
                sys.argv, sys.stderr, sys.stdin = ["", "import", str(directory)], stderr, stdin
                status = tarball.main()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), (log / "err").read_text()


@pytest.fixture
def places(open_directory: Path, tmp_path: Path) -> tuple[Path, Path]:
    """The session's directory, and one beside it that the user may write to as well."""
    base = open_directory / tmp_path.name
    found = base / "session", base / "outside"
    for place in found:
        place.mkdir(parents=True)
        place.chmod(0o777)
    return found


@pytest.mark.parametrize(
    "entries",
    [
        [("../outside/escaped", tarfile.REGTYPE, "", b"x")],
        [("dir", tarfile.SYMTYPE, "OUTSIDE", b""), ("dir/escaped", tarfile.REGTYPE, "", b"x")],
        [("up", tarfile.SYMTYPE, "../outside", b""), ("up/escaped", tarfile.REGTYPE, "", b"x")],
        [("hard", tarfile.LNKTYPE, "../outside/own", b""), ("hard", tarfile.REGTYPE, "", b"overwritten")],
    ],
    ids=["dots", "symlink", "relative symlink", "hard link"],
)
def test_nothing_is_written_outside(
    entries: list[tuple[str, bytes, str, bytes]], places: tuple[Path, Path], tmp_path: Path
) -> None:
    session, outside = places
    (outside / "own").write_text("own")
    (outside / "own").chmod(0o666)
    content = archive(
        *((name, kind, target.replace("OUTSIDE", str(outside)), data) for name, kind, target, data in entries)
    )
    status, complaint = extract(content, session, tmp_path)
    assert os.listdir(outside) == ["own"] and (outside / "own").read_text() == "own"
    assert status == 1 and complaint, "and it says so"


def test_an_ordinary_archive_is_taken(places: tuple[Path, Path], tmp_path: Path) -> None:
    session, _ = places
    content = archive(("dir", tarfile.DIRTYPE, "", b""), ("dir/file", tarfile.REGTYPE, "", b"content"))
    assert extract(content, session, tmp_path) == (0, "")
    assert (session / "dir/file").read_text() == "content"
