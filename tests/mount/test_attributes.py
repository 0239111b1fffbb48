"""What operations on attributes promise, on a mounted session: docs/semantics.md names these tests."""

from __future__ import annotations

import errno
import os
import stat
import struct
import time
from pathlib import Path

import pytest

from tests.mount.asking import NOBODY, as_nobody, refused

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="set-id bits, devices and small disks take root"),
]


def test_times_are_kept_to_the_nanosecond(place: Path) -> None:
    path = place / "file"
    path.write_text("x")
    for atime, mtime in ((1, 999_999_999), (2**33 * 10**9 + 7, -1), (0, 1_700_000_000_123_456_789)):
        os.utime(path, ns=(atime, mtime))
        assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (atime, mtime)
    before = time.time_ns()
    os.utime(path)
    assert before - 10**9 < path.stat().st_mtime_ns < time.time_ns() + 10**9


def test_reading_does_not_change_atime(place: Path) -> None:
    (place / "file").write_text("x")
    os.utime(place / "file", ns=(5, 6))
    assert (place / "file").read_text() == "x"
    assert (place / "file").stat().st_atime_ns == 5


def test_a_file_written_after_another_is_newer(place: Path) -> None:
    """make(1) depends on it, within the same tick of the disk's clock too."""
    last = 0
    for n in range(20):
        (place / f"{n}").write_text("x")
        mtime = (place / f"{n}").stat().st_mtime_ns
        assert mtime > last
        last = mtime


def test_truncating_an_empty_file_makes_it_newer(place: Path) -> None:
    (place / "stamp").touch()
    os.utime(place / "stamp", ns=(1, 1))
    with open(place / "stamp", "w"):
        pass
    assert (place / "stamp").stat().st_mtime_ns > 1


def test_modes_and_owners_are_what_was_set(place: Path) -> None:
    path = place / "file"
    path.write_text("x")
    for mode in (0, 0o7777, 0o644):
        path.chmod(mode)
        assert stat.S_IMODE(path.stat().st_mode) == mode
    os.chown(path, 2**32 - 2, 12345)
    assert (path.stat().st_uid, path.stat().st_gid) == (2**32 - 2, 12345)


def test_the_kernel_refuses_those_who_may_not(place: Path) -> None:
    (place / "secret").write_text("x")
    (place / "secret").chmod(0o600)

    def child() -> None:
        for function in (os.unlink, os.listdir, lambda name: open(name).close()):
            refused(errno.EACCES if function is not os.listdir else errno.ENOTDIR, function, "secret")
        refused(errno.EPERM, os.chmod, "secret", 0o666)
        assert not os.access("secret", os.R_OK)
        assert os.access(".", os.R_OK)

    as_nobody(place, child)


def test_set_id_bits_go_when_an_ordinary_user_writes_truncates_or_owns(place: Path) -> None:
    for name in ("written", "cut", "opened", "owned"):
        (place / name).write_text("x")
        os.chown(place / name, NOBODY, NOBODY)
        (place / name).chmod(0o6755)

    def child() -> None:
        with open("written", "r+b") as file:
            file.write(b"y")
        os.truncate("cut", 0)
        os.close(os.open("opened", os.O_WRONLY | os.O_TRUNC))

    as_nobody(place, child)
    os.chown(place / "owned", 0, 0)
    for name in ("written", "cut", "opened", "owned"):
        assert stat.S_IMODE((place / name).stat().st_mode) == 0o755, name


def test_set_group_id_directories_hand_their_group_down(place: Path) -> None:
    os.chown(place, 0, 4321)
    place.chmod(0o2755)
    (place / "file").touch()
    (place / "directory").mkdir()
    assert (place / "file").stat().st_gid == 4321
    status = (place / "directory").stat()
    assert status.st_gid == 4321 and status.st_mode & stat.S_ISGID


def test_xattrs_are_set_listed_replaced_and_removed(place: Path) -> None:
    path = place / "file"
    path.write_text("x")
    refused(errno.ENODATA, os.getxattr, path, "user.a")
    os.setxattr(path, "user.a", b"\0\xff", os.XATTR_CREATE)
    refused(errno.EEXIST, os.setxattr, path, "user.a", b"", os.XATTR_CREATE)
    refused(errno.ENODATA, os.setxattr, path, "user.b", b"", os.XATTR_REPLACE)
    os.setxattr(path, "user.b", b"v" * 65536)
    os.setxattr(path, "trusted.c", b"")
    assert sorted(os.listxattr(path)) == ["trusted.c", "user.a", "user.b"]
    assert (os.getxattr(path, "user.a"), len(os.getxattr(path, "user.b"))) == (b"\0\xff", 65536)
    os.removexattr(path, "user.a")
    refused(errno.ENODATA, os.removexattr, path, "user.a")
    entries = [(1, 6, -1), (2, 4, 1000), (4, 4, -1), (0x10, 4, -1), (0x20, 4, -1)]  # linux/posix_acl_xattr.h
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
    refused(errno.EOPNOTSUPP, os.setxattr, path, "system.posix_acl_access", acl)
