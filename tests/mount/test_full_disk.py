"""A mounted session on a disk that has nothing left: no block, or no inode. Whatever dies then is replaced."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from tests.disk import fill, small_ext4
from tests.mount.killing import kill_worker
from tests.mounted import Mounted

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk"),
]

Mount = Callable[..., Mounted]


def until_full(make: Callable[[int], object]) -> int:
    """How often it could be done before the disk was full."""
    for number in count():
        try:
            make(number)
        except OSError as e:
            assert e.errno == errno.ENOSPC
            return number
    raise AssertionError


def test_a_worker_that_dies_on_a_full_disk_is_replaced_and_room_can_be_made(mounted: Mount, tmp_path: Path) -> None:
    with small_ext4(tmp_path / "disk", 16 << 20) as disk:
        mount = mounted("full-disk", state=disk)
        contents = [os.urandom(300_000) for _ in range(60)]
        written = until_full(lambda n: (mount.path / f"{n}").write_bytes(contents[n]))
        fill(disk)
        until_full(lambda n: os.setxattr(mount.path / "0", "user.large", bytes([n]) * 60_000))  # the journal is full
        directories = until_full(lambda n: (mount.path / f"dir{n}").mkdir())
        kill_worker(mount.session)
        assert all((mount.path / f"{n}").read_bytes() == contents[n] for n in range(written))
        until_full(lambda n: (mount.path / f"more{n}").mkdir())
        mount.kill9()
        mount = mounted("full-disk", state=disk)
        assert len(os.listdir(mount.path)) >= written + directories
        kill_worker(mount.session)
        for n in range(10):
            (mount.path / f"{n}").unlink()
        (mount.path / "10").write_bytes(contents[0])
        (mount.path / "again").mkdir()
        kill_worker(mount.session)
        assert (mount.path / "10").read_bytes() == contents[0]
        (disk / "filler").unlink()
        mount.stop()


def test_on_a_disk_without_a_free_inode_a_session_goes_on_and_is_mounted_again(mounted: Mount, tmp_path: Path) -> None:
    with small_ext4(tmp_path / "disk", 16 << 20, inodes=64) as disk:
        mount = mounted("full-disk", state=disk)
        written = until_full(lambda n: (mount.path / f"{n}").write_bytes(b"content"))
        assert written > 20
        assert os.statvfs(mount.path).f_favail == 0
        (mount.path / "0").write_bytes(b"other content")
        kill_worker(mount.session)
        (mount.path / "dir").mkdir()
        mount.kill9()
        mount = mounted("full-disk", state=disk)
        assert (mount.path / "0").read_bytes() == b"other content"
        assert all((mount.path / f"{n}").read_bytes() == b"content" for n in range(1, written))
        assert (mount.path / "dir").is_dir()
        (mount.path / "1").unlink()
        for n in range(50):
            (mount.path / f"new{n}").write_bytes(b"new")
            (mount.path / f"new{n}").unlink()
        (mount.path / "new").write_bytes(b"new")
        mount.stop()
        mount = mounted("full-disk", state=disk)
        assert (mount.path / "new").read_bytes() == b"new"
        mount.stop()


def test_a_mapping_that_a_full_disk_refused_keeps_no_session_from_ending(mounted: Mount, tmp_path: Path) -> None:
    with small_ext4(tmp_path / "disk", 16 << 20) as disk:
        mount = mounted("full-disk", state=disk)
        with open(mount.path / "file", "w+b") as file:
            file.truncate(1 << 20)
            fill(disk)
            with mmap.mmap(file.fileno(), 1 << 20) as mapping:
                mapping[:] = b"x" * (1 << 20)
                with pytest.raises(OSError) as refused:
                    mapping.flush()
                assert refused.value.errno == errno.ENOSPC
                (disk / "filler").unlink()
                mapping[:10] = b"y" * 10
        assert mount.stop()["pending"] == 0
        assert "through mappings could not be written: No space left on device" in mount.log.read_text()
        assert (mounted("full-disk", state=disk).path / "file").read_bytes()[:10] == b"y" * 10
