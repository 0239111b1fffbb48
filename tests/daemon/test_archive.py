"""Export and import give back the same tree, and nothing leaves or enters the session by it that should not."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from tests.daemon.serving import Serving


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    inodes: dict[int, str] = {}
    for parent, directories, files in os.walk(root):
        for name in sorted([*directories, *files]):
            path = Path(parent, name)
            status, relative = path.lstat(), str(path.relative_to(root))
            content: object = None
            if stat.S_ISREG(status.st_mode):
                content = path.read_bytes()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            xattrs = {
                key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
            }
            times = () if stat.S_ISLNK(status.st_mode) else (status.st_mtime_ns,)
            first = inodes.setdefault(status.st_ino, relative)
            found[relative] = (status.st_mode, status.st_uid, status.st_gid, first, content, xattrs, *times)
    return found


def fill(root: Path) -> None:
    (root / "dir/empty").mkdir(parents=True)
    (root / "dir/file").write_bytes(bytes(range(256)) * 5000)
    (root / "dir/set").write_text("#!/bin/sh")
    (root / "dir/set").chmod(0o4755)
    os.link(root / "dir/file", root / "hard")
    (root / "soft").symlink_to("/etc/passwd")
    os.mkfifo(root / "fifo")
    (root / "größe").write_text("x")
    (root / os.fsdecode(b"not-utf8-\xff")).write_text("y")
    (root / ("n" * 200)).write_text("long")
    os.setxattr(root / "hard", "user.note", b"\x00\xff binary")
    os.chown(root / "hard", 1001, 1002)
    for path in (root / "dir/file", root / "dir/empty", root / "dir"):
        os.utime(path, ns=(1, 1_234_567_890_123_456_789))


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for member, content in members:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, target
    return made


def test_an_export_imported_elsewhere_is_the_same_tree(daemon: Serving) -> None:
    daemon.run("new", "a")
    daemon.run("new", "b")
    fill(daemon.root / "a")
    before = tree(daemon.root / "a")
    exported = daemon.run("export", "a").stdout
    daemon.run("import", "b", stdin=exported)
    assert tree(daemon.root / "b") == before
    assert tree(daemon.root / "a") == before


@pytest.mark.parametrize(
    "members",
    [
        [(member("../escaped"), b"x")],
        [(member("/escaped"), b"x")],
        [(member("dir", tarfile.SYMTYPE, "OUTSIDE"), b""), (member("dir/escaped"), b"x")],
        [(member("up", tarfile.SYMTYPE, "../.."), b""), (member("up/escaped"), b"x")],
        [(member("secret", tarfile.LNKTYPE, "OUTSIDE/secret"), b"")],
    ],
    ids=["dots", "absolute", "symlink", "relative symlink", "hard link"],
)
def test_nothing_is_written_or_linked_outside_the_session(
    members: list[tuple[tarfile.TarInfo, bytes]], daemon: Serving, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("hush")
    daemon.run("new", "a")
    for one, _ in members:
        one.linkname = one.linkname.replace("OUTSIDE", str(outside))
    before = sorted(path for path in tmp_path.rglob("*") if not path.is_relative_to(daemon.root / "a"))
    with daemon.client() as client:
        try:
            client.put("a", iter([archive(*members)]))
        except OSError as e:
            assert getattr(e, "status", 0) in (400, 404, 409, 403)
    after = sorted(path for path in tmp_path.rglob("*") if not path.is_relative_to(daemon.root / "a"))
    own = daemon.state / "a"
    assert {path for path in after if not path.is_relative_to(own)} == {
        path for path in before if not path.is_relative_to(own)
    }
    assert not Path("/escaped").exists() and (outside / "secret").stat().st_nlink == 1
    assert os.listdir(outside) == ["secret"]


def test_a_link_that_a_program_put_there_leads_an_import_nowhere_else(daemon: Serving, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    daemon.run("new", "a")
    (daemon.root / "a/dir").symlink_to(outside)
    with daemon.client() as client:
        try:
            client.put("a", iter([archive((member("dir/file"), b"x"))]))
        except OSError as e:
            assert getattr(e, "status", 0) in (400, 404, 409)
    assert list(outside.iterdir()) == []


def test_device_nodes_and_what_is_no_archive_are_refused(daemon: Serving) -> None:
    daemon.run("new", "a")
    device = member("device", tarfile.CHRTYPE)
    assert b"device" in daemon.run("import", "a", stdin=archive((device, b"")), status=1).stderr
    assert b"tar" in daemon.run("import", "a", stdin=b"no archive" * 1000, status=1).stderr
    assert list((daemon.root / "a").iterdir()) == []


def test_an_import_beyond_the_quota_says_so(daemon: Serving) -> None:
    daemon.run("new", "a", "--quota-bytes", "100000")
    daemon.run("import", "a", stdin=archive((member("big"), b"x" * 200_000)), status=7)
    assert (daemon.root / "a/big").stat().st_size <= 100_000


def test_a_compressed_archive_is_understood(daemon: Serving) -> None:
    daemon.run("new", "a")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        made = member("file")
        made.size = 3
        tar.addfile(made, io.BytesIO(b"abc"))
    daemon.run("import", "a", stdin=buffer.getvalue())
    assert (daemon.root / "a/file").read_text() == "abc"


def test_an_export_of_a_session_that_is_not_mounted_is_a_status_not_half_an_archive(daemon: Serving) -> None:
    daemon.run("new", "a", "--no-mount")
    assert daemon.run("export", "a", status=4).stdout == b""
