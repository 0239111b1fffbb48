"""What operations on bytes promise, on a mounted session: docs/semantics.md names these tests."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.disk import small_tmpfs
from tests.mount.asking import fork, libc, refused
from tests.mounted import Mounted, run

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="set-id bits, devices and small disks take root"),
]


def test_what_is_written_is_read_at_once_by_all(place: Path) -> None:
    with open(place / "file", "w+b", buffering=0) as one, open(place / "file", "rb", buffering=0) as other:
        for n in range(100):
            one.write(b"%03d" % n)
            other.seek(0)
            assert other.read().endswith(b"%03d" % n)
            assert (place / "file").stat().st_size == 3 * (n + 1)


def test_files_are_larger_than_four_gigabytes_and_their_holes_take_no_room(place: Path) -> None:
    path = place / "sparse"
    with open(path, "wb") as file:
        file.write(b"start")
        file.seek(5 << 30)
        file.write(b"end")
    assert path.stat().st_size == (5 << 30) + 3
    assert path.stat().st_blocks < 1000
    assert int(run("du", "-k", path).split()[0]) < 500
    with open(path, "rb") as file:
        file.seek((5 << 30) - 4096)
        assert file.read() == b"\0" * 4096 + b"end"
        assert os.lseek(file.fileno(), 0, os.SEEK_DATA) == 0
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == path.stat().st_size  # "no holes" is allowed to say
    os.truncate(path, 1 << 40)
    assert path.stat().st_size == 1 << 40
    os.truncate(path, 3)
    assert path.read_bytes() == b"sta"
    os.truncate(path, 6)
    assert path.read_bytes() == b"sta\0\0\0"


def test_fallocate_is_refused_as_not_supported(place: Path) -> None:
    with open(place / "file", "wb") as file:
        result = libc.fallocate(file.fileno(), 0, ctypes.c_int64(0), ctypes.c_int64(4096))
        assert (result, ctypes.get_errno()) == (-1, errno.EOPNOTSUPP)
        os.posix_fallocate(file.fileno(), 0, 10_000)  # the C library's own way: it writes
    assert (place / "file").stat().st_size == 10_000


def test_what_ext4_alone_has_is_refused_as_not_supported(place: Path) -> None:
    (place / "file").write_bytes(b"content")
    refused(errno.EOPNOTSUPP, os.open, place, os.O_TMPFILE | os.O_RDWR, 0o600)
    with tempfile.TemporaryFile(dir=place) as file:
        file.write(b"goes another way")
    getflags = 0x80086601  # FS_IOC_GETFLAGS, linux/fs.h
    with open(place / "file") as file:
        refused(errno.ENOTTY, fcntl.ioctl, file, getflags, bytes(8))
    mode = b"\1\0\6\0\xff\xff\xff\xff\4\0\4\0\xff\xff\xff\xff\x20\0\4\0\xff\xff\xff\xff"  # rw-r--r--
    refused(errno.EOPNOTSUPP, os.setxattr, place / "file", "system.posix_acl_access", b"\2\0\0\0" + mode)
    refused(errno.ENODATA, os.getxattr, place / "file", "system.posix_acl_access")  # tools: the mode alone
    run("cp", "-a", place / "file", place / "copy")


def test_copy_file_range_copies(place: Path) -> None:
    content = os.urandom(300_000)
    (place / "from").write_bytes(content)
    with open(place / "from", "rb") as source, open(place / "to", "wb") as target:
        left = len(content)
        while left:
            left -= os.copy_file_range(source.fileno(), target.fileno(), left)
    assert (place / "to").read_bytes() == content


def test_appends_of_two_processes_lose_nothing(place: Path) -> None:
    def append(who: bytes) -> None:
        fd = os.open(place / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        for n in range(300):
            os.write(fd, b"%s %d\n" % (who, n))
        os.close(fd)

    processes = [fork.Process(target=append, args=(who,)) for who in (b"one", b"two")]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    lines = (place / "log").read_bytes().splitlines()
    for who in (b"one", b"two"):
        assert [line for line in lines if line.startswith(who)] == [b"%s %d" % (who, n) for n in range(300)]


def test_shared_mappings_are_seen_by_others_and_reach_the_file(place: Path) -> None:
    (place / "file").write_bytes(bytes(8192))
    with open(place / "file", "r+b") as file:
        ours = mmap.mmap(file.fileno(), 8192)

        def child() -> None:
            with mmap.mmap(os.open(place / "file", os.O_RDWR), 8192) as theirs:
                theirs[5000:5005] = b"child"

        process = fork.Process(target=child)
        process.start()
        process.join()
        assert ours[5000:5005] == b"child"
        ours[0:6] = b"parent"
        ours.flush()
        assert os.pread(file.fileno(), 6, 0) == b"parent"
        ours.close()
    os.truncate(place / "file", 5)
    assert (place / "file").read_bytes() == b"paren"


def test_fsync_of_files_and_directories_answers(place: Path) -> None:
    with open(place / "file", "wb") as file:
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())
        os.fdatasync(file.fileno())
    at = os.open(place, os.O_RDONLY)
    os.fsync(at)
    os.close(at)
    os.sync()


def test_an_unlinked_file_is_usable_until_its_last_close_and_then_gone(mount: Mounted, place: Path) -> None:
    content = mount.state / "operations" / "content"
    with open(place / "file", "w+b", buffering=0) as file:
        file.write(b"content")
        ino = os.fstat(file.fileno()).st_ino
        (place / "file").unlink()
        (place / "file").write_text("another")
        assert os.fstat(file.fileno()).st_nlink == 0
        file.write(b" and more")
        assert os.pread(file.fileno(), 100, 0) == b"content and more"
        os.ftruncate(file.fileno(), 3)
        assert os.pread(file.fileno(), 100, 0) == b"con"
        assert (content / str(ino)).exists()
    end = time.monotonic() + 30
    while (content / str(ino)).exists():
        assert time.monotonic() < end, "the kernel forgot it, and it is still there"
        os.stat(place)


def test_a_file_that_was_replaced_stays_open_as_it_was(place: Path) -> None:
    (place / "old").write_text("old")
    (place / "new").write_text("new")
    with open(place / "old") as file:
        (place / "new").rename(place / "old")
        assert file.read() == "old"
        assert (place / "old").read_text() == "new"


def test_o_direct_and_o_sync_writes_are_read_back(place: Path) -> None:
    page = mmap.mmap(-1, 4096)
    page[:] = b"d" * 4096
    fd = os.open(place / "file", os.O_RDWR | os.O_CREAT | os.O_DIRECT | os.O_SYNC, 0o600)
    assert os.writev(fd, [page]) == 4096
    assert os.preadv(fd, [page], 0) == 4096
    os.close(fd)
    assert (place / "file").read_bytes() == b"d" * 4096


def test_a_full_disk_is_enospc_to_the_writer_and_nothing_before_is_lost(
    mounted: Callable[..., Mounted], tmp_path: Path
) -> None:
    with small_tmpfs(tmp_path / "disk", 12 << 20) as disk:
        mount = mounted("work", state=disk)
        kept = {}
        number = 0
        with pytest.raises(OSError) as caught:
            while True:
                content = os.urandom(200_000)
                path = mount.path / f"{number}"
                path.write_bytes(content)
                kept[path.name] = hashlib.sha256(content).digest()
                number += 1
        assert caught.value.errno == errno.ENOSPC
        assert number > 20
        for _ in range(2):
            for name, digest in kept.items():
                assert hashlib.sha256((mount.path / name).read_bytes()).digest() == digest
            mount.kill9()
            mount = mounted("work", state=disk)  # on a disk that is still full
        with open(mount.path / "0", "wb"):
            """Emptying a file makes room, so it must work when there is none."""
        (mount.path / "1").unlink()
        (mount.path / "again").write_bytes(b"x" * 300_000)
        assert (mount.path / "again").read_bytes() == b"x" * 300_000
        mount.stop()


def test_statfs_tells_what_is_left_where_the_state_is(mounted: Callable[..., Mounted], tmp_path: Path) -> None:
    with small_tmpfs(tmp_path / "disk", 32 << 20) as disk:
        mount = mounted("work", state=disk)
        before, real = os.statvfs(mount.path), os.statvfs(disk)
        assert before.f_namemax == 255
        assert before.f_frsize * before.f_blocks == real.f_frsize * real.f_blocks
        assert abs(before.f_bavail * before.f_frsize - real.f_bavail * real.f_frsize) < 2 << 20
        (mount.path / "file").write_bytes(b"x" * (8 << 20))
        after = os.statvfs(mount.path)
        assert 7 << 20 < (before.f_bavail - after.f_bavail) * after.f_frsize < 10 << 20
        mount.stop()


def test_locks_hold_between_processes_on_one_mount(place: Path) -> None:
    (place / "file").touch()
    with open(place / "file", "r+b") as file:
        for lock in (fcntl.flock, fcntl.lockf):
            lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

            def child(lock: Callable[..., Any] = lock) -> None:
                with open(place / "file", "r+b") as other, pytest.raises(BlockingIOError):
                    lock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

            process = fork.Process(target=child)
            process.start()
            process.join()
            assert process.exitcode == 0
            lock(file, fcntl.LOCK_UN)
