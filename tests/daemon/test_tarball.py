"""The process that reads and writes archives: it runs nothing of the session's, and stays inside where it is not root,
and so cannot change its root directory."""

from __future__ import annotations

import importlib
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


def run(work: str, directory: Path, log: Path, content: bytes = b"", *, stranger: bool = False) -> tuple[int, str]:
    """`tarball` in a process of its own, from `log/in` to `log/out`: its status, and what it complained of."""
    (log / "in").write_bytes(content)
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            os.dup2(os.open(log / "in", os.O_RDONLY), 0)
            out, complaint = (
                os.open(log / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666) for name in ("out", "err")
            )
            if stranger and os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(STRANGER, STRANGER, STRANGER)
                os.setresuid(STRANGER, STRANGER, STRANGER)
            with os.fdopen(complaint, "w") as stderr, os.fdopen(out, "w") as stdout, open(0, closefd=False) as stdin:
                sys.argv, sys.stderr, sys.stdout, sys.stdin = ["", work, str(directory)], stderr, stdout, stdin
                status = tarball.main()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), (log / "err").read_text()


def extract(content: bytes, directory: Path, log: Path) -> tuple[int, str]:
    """As an ordinary user."""
    return run("import", directory, log, content, stranger=True)


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


def test_users_are_numbers_and_their_names_are_not_looked_up(tmp_path: Path) -> None:
    """By then the session is the root directory: libc would take the names from its /etc, with plug-ins of its /lib."""
    session = tmp_path / "session"
    (session / "etc").mkdir(parents=True)
    (session / "etc/passwd").write_text(f"mallory:x:{os.geteuid()}:{os.getegid()}::/:/bin/sh\n")
    assert run("export", session, tmp_path) == (0, "")
    with tarfile.open(tmp_path / "out") as tar:
        owners = {(member.uid, member.gid, member.uname, member.gname) for member in tar}
    assert owners == {(os.geteuid(), os.getegid(), "", "")}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its root directory")
def test_no_module_is_imported_from_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "session" / "planted"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("open('/ran', 'w')")

    def export() -> None:
        monkeypatch.syspath_prepend("/")
        importlib.import_module("planted")

    monkeypatch.setattr(tarball, "export", export)
    assert run("export", package.parent, tmp_path)[0] == 1
    assert not (package.parent / "ran").exists()
