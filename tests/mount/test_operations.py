"""What every operation promises, on a mounted session: docs/semantics.md names these tests."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import mmap
import multiprocessing
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.disk import small_tmpfs
from tests.mounted import Mounted, run
from vfs.session import KERNEL, Session

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="set-id bits, devices and small disks take root"),
]

libc = ctypes.CDLL(None, use_errno=True)
fork = multiprocessing.get_context("fork")
NOBODY = 65534


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """One session for all tests here."""
    home = tmp_path_factory.mktemp("operations")
    (home / "mnt").mkdir()
    mounted = Mounted.up("operations", home / "mnt", home / "state", (), home / "log")
    try:
        yield mounted
        mounted.stop()
    finally:
        mounted.clean_up()


@pytest.fixture
def place(mount: Mounted, request: pytest.FixtureRequest) -> Path:
    """A new directory in it."""
    path = mount.path / str(request.node.name)
    path.mkdir()
    return path


def refused(number: int, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    with pytest.raises(OSError) as caught:
        function(*arguments, **options)
    assert caught.value.errno == number, caught.value


def as_nobody(place: Path, function: Callable[[], None]) -> None:
    """Run it in `place` in a process of an ordinary user."""

    def child() -> None:
        os.chdir(place)
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        function()

    process = fork.Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode == 0


# ---- names


def test_names_are_255_bytes_of_anything(place: Path) -> None:
    directory = os.fsencode(place)
    names = [b"\xff" * 255, b"\x01\n\\ \xc3(", "é".encode(), "e\u0301".encode(), b"...", b" "]
    for name in names:
        with open(os.path.join(directory, name), "xb") as file:
            file.write(name)
    assert sorted(os.listdir(directory)) == sorted(names)
    for name in names:
        with open(os.path.join(directory, name), "rb") as file:
            assert file.read() == name
    refused(errno.ENAMETOOLONG, os.mkdir, os.path.join(directory, b"x" * 256))
    refused(errno.ENAMETOOLONG, os.stat, os.path.join(directory, b"x" * 256))


def test_paths_are_as_long_as_the_kernel_allows_and_deeper(place: Path) -> None:
    path = str(place)
    while len(path) + 201 < 4096:
        path += "/" + "d" * 200
        os.mkdir(path)
    path += "/" + "f" * (4095 - len(path) - 1)
    assert len(path) == 4095
    Path(path).write_text("deep")
    assert Path(path).read_text() == "deep"
    refused(errno.ENAMETOOLONG, os.stat, path + "x")
    at = os.open(os.path.dirname(path), os.O_RDONLY)
    for _ in range(3):
        os.mkdir("e" * 255, dir_fd=at)
        below = os.open("e" * 255, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)


def test_a_name_that_was_missed_is_found_once_it_is_there(place: Path) -> None:
    """The kernel keeps what is not there as a negative entry, without a time limit."""
    (place / "source").write_text("x")
    makers: dict[str, Callable[[Path], Any]] = {
        "file": lambda path: path.write_text("x"),
        "directory": lambda path: path.mkdir(),
        "symlink": lambda path: path.symlink_to("source"),
        "link": lambda path: path.hardlink_to(place / "source"),
        "fifo": lambda path: os.mkfifo(path),
        "renamed": lambda path: (place / "file").rename(path),
    }
    for name, make in makers.items():
        for _ in range(2):
            refused(errno.ENOENT, os.lstat, place / name)
        make(place / name)
        os.lstat(place / name)


def test_a_name_that_has_gone_is_gone(place: Path) -> None:
    (place / "file").write_text("x")
    (place / "directory").mkdir()
    (place / "moved").write_text("x")
    (place / "file").unlink()
    (place / "directory").rmdir()
    (place / "moved").rename(place / "to")
    for name in ("file", "directory", "moved"):
        refused(errno.ENOENT, os.lstat, place / name)
    assert os.listdir(place) == ["to"]


def test_create_makes_a_file_or_opens_the_one_that_is_there(place: Path) -> None:
    umask = os.umask(0o027)
    fd = os.open(place / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    os.umask(umask)
    os.write(fd, b"content")
    os.close(fd)
    status = os.stat(place / "file")
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_nlink) == (0o640, 0, 1)
    refused(errno.EEXIST, os.open, place / "file", os.O_CREAT | os.O_EXCL)
    fd = os.open(place / "file", os.O_CREAT | os.O_RDWR, 0o600)
    assert os.read(fd, 10) == b"content"
    os.close(fd)


def test_one_of_many_creates_with_o_excl_wins(place: Path) -> None:
    wins: list[int] = []

    def create(n: int) -> None:
        for round in range(30):
            try:
                os.close(os.open(place / f"{round}", os.O_CREAT | os.O_EXCL, 0o600))
            except FileExistsError:
                continue
            wins.append(round)

    threads = [threading.Thread(target=create, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == list(range(30))


def test_mkdir_and_rmdir_count_links(place: Path) -> None:
    for name in ("a", "b"):
        (place / name).mkdir()
    assert place.stat().st_nlink == 4
    (place / "a" / "x").mkdir()
    refused(errno.ENOTEMPTY, os.rmdir, place / "a")
    refused(errno.EEXIST, os.mkdir, place / "a")
    (place / "a" / "x").rmdir()
    (place / "a").rmdir()
    assert place.stat().st_nlink == 3
    refused(errno.EISDIR, os.unlink, place / "b")


def test_mknod_makes_fifos_sockets_and_devices(place: Path) -> None:
    os.mkfifo(place / "fifo")
    reader = os.open(place / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(place / "fifo", os.O_WRONLY)
    os.write(writer, b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)
    os.close(writer)
    at = os.open(place, os.O_RDONLY)  # a socket's address has room for 108 bytes
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(f"/proc/self/fd/{at}/socket")
        server.listen()
        client.connect(f"/proc/self/fd/{at}/socket")
    os.close(at)
    assert stat.S_ISSOCK((place / "socket").stat().st_mode)
    os.mknod(place / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    status = (place / "device").stat()
    assert stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3)
    refused(errno.EACCES, os.open, place / "device", os.O_RDONLY)  # the mount is nodev


def test_symlinks_hold_any_bytes_and_are_followed(place: Path) -> None:
    (place / "target").write_text("x")
    (place / "link").symlink_to("target")
    assert (place / "link").read_text() == "x"
    os.symlink(b"\xff" * 4095, os.fsencode(place / "long"))
    assert os.readlink(os.fsencode(place / "long")) == b"\xff" * 4095
    assert os.lstat(place / "long").st_size == 4095
    (place / "loop").symlink_to("loop")
    refused(errno.ELOOP, os.stat, place / "loop")


def test_links_are_names_of_one_file(place: Path) -> None:
    (place / "a").write_text("x")
    (place / "b").hardlink_to(place / "a")
    assert (place / "a").stat().st_ino == (place / "b").stat().st_ino
    (place / "b").write_text("written")
    assert (place / "a").read_text() == "written"
    assert (place / "a").stat().st_nlink == 2
    (place / "a").unlink()
    assert (place / "b").stat().st_nlink == 1
    refused(errno.EPERM, os.link, place, place / "c")


def renameat2(old: Path, new: Path, flags: int) -> None:
    if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2")


def test_rename_replaces_exchanges_or_refuses(place: Path) -> None:
    for name in ("a", "b"):
        (place / name).write_text(name)
    (place / "d" / "below").mkdir(parents=True)
    refused(errno.EEXIST, renameat2, place / "a", place / "b", 1)
    renameat2(place / "a", place / "d", 2)
    assert (place / "d").read_text() == "a" and (place / "a" / "below").is_dir()
    renameat2(place / "a", place / "d", 2)
    (place / "a").rename(place / "b")
    assert (place / "b").read_text() == "a"
    assert sorted(os.listdir(place)) == ["b", "d"]
    refused(errno.EINVAL, os.rename, place / "d", place / "d" / "below" / "x")
    refused(errno.EINVAL, renameat2, place / "b", place / "x", 4)  # RENAME_WHITEOUT
    refused(errno.ENOTEMPTY, os.rename, place / "d" / "below", place / "d")


def test_a_name_is_never_missing_while_it_is_replaced(place: Path) -> None:
    (place / "file").write_text("0")
    done = threading.Event()
    missed: list[OSError] = []

    def look() -> None:
        while not done.is_set():
            try:
                assert (place / "file").read_text()
            except OSError as e:
                missed.append(e)

    thread = threading.Thread(target=look)
    thread.start()
    for n in range(300):
        (place / "new").write_text(str(n))
        (place / "new").rename(place / "file")
    done.set()
    thread.join()
    assert missed == []


# ---- attributes


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


# ---- bytes


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


# ---- directories


def test_a_listing_neither_repeats_nor_skips_while_entries_come_and_go(place: Path) -> None:
    for n in range(600):
        (place / f"stays {n}").touch()
        (place / f"goes {n}").touch()
    seen = []
    with os.scandir(place) as entries:
        for n, entry in enumerate(entries):
            seen.append(entry.name)
            if n < 600:
                (place / f"goes {n}").unlink()
                (place / f"comes {n}").touch()
    assert sorted(name for name in seen if name.startswith("stays")) == sorted(f"stays {n}" for n in range(600))
    assert len(seen) == len(set(seen))


def test_a_directory_can_be_listed_again_and_from_a_place_in_it(place: Path) -> None:
    for n in range(300):
        (place / f"{n}").touch()
    libc.opendir.restype = libc.readdir.restype = ctypes.c_void_p
    libc.telldir.restype = ctypes.c_long
    stream = ctypes.c_void_p(libc.opendir(os.fsencode(place)))

    def following(count: int) -> list[bytes]:
        found: list[bytes] = []
        while len(found) < count and (entry := libc.readdir(stream)):
            found.append(ctypes.string_at(entry + 19))  # struct dirent: d_name behind 8 + 8 + 2 + 1 bytes
        return found

    following(100)
    middle = libc.telldir(stream)
    rest = following(1000)
    assert len(rest) == 202
    libc.seekdir(stream, ctypes.c_long(middle))
    assert following(1000) == rest
    libc.rewinddir(stream)
    assert following(2) == [b".", b".."]
    assert len(following(1000)) == 300
    libc.closedir(stream)


def test_inotify_tells_of_changes_by_others_on_this_machine(place: Path) -> None:
    fd = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(fd, os.fsencode(place), 0x100 | 0x200 | 0x2) >= 0  # create, delete, modify
    run("sh", "-c", f"cd '{place}'; echo x > file; rm file")
    events = os.read(fd, 65536)
    os.close(fd)
    masks = []
    while events:
        _, mask, _, length = struct.unpack_from("iIII", events)
        masks.append(mask)
        events = events[16 + length :]
    assert masks[0] == 0x100 and masks[-1] == 0x200 and 0x2 in masks


# ---- sessions with a state of their own


def fill_session(state: Path, count: int) -> None:
    async def make() -> None:
        async with Session.open("work", state) as session:
            directory = session.mkdir(1, b"large", 0o755, KERNEL).ino
            for n in range(count):
                session.release(session.create(directory, b"%d" % n, 0o644, KERNEL).ino)

    trio.run(make)


def test_a_directory_of_100000_entries_is_listed(mounted: Callable[..., Mounted], tmp_path: Path) -> None:
    fill_session(tmp_path / "state", 100_000)
    large = mounted("work").path / "large"
    start = time.monotonic()
    names = os.listdir(large)
    assert time.monotonic() - start < 30
    assert len(names) == 100_000 and set(names) == {str(n) for n in range(100_000)}
    assert (large / "99999").stat().st_size == 0
    refused(errno.ENOENT, os.stat, large / "100000")


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


def test_many_threads_at_once_leave_what_they_made(place: Path) -> None:
    """Creates, renames, links, unlinks and listings side by side, each thread with names of its own."""
    failures: list[BaseException] = []
    done = threading.Event()

    def work(who: int) -> None:
        try:
            for n in range(40):
                path = place / f"{who} {n}"
                path.write_text(path.name)
                path.rename(place / f"{who} {n} renamed")
                (place / f"{who} {n}").hardlink_to(place / f"{who} {n} renamed")
                (place / f"{who} {n} renamed").unlink()
                if n % 2:
                    path.unlink()
        except BaseException as e:
            failures.append(e)

    def look() -> None:
        try:
            while not done.is_set():
                assert os.listdir(place).count("there all the time") == 1
        except BaseException as e:
            failures.append(e)

    (place / "there all the time").touch()
    workers = [threading.Thread(target=work, args=(who,)) for who in range(8)]
    lister = threading.Thread(target=look)
    for thread in (lister, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    done.set()
    lister.join()
    (place / "there all the time").unlink()
    assert failures == []
    expected = {f"{who} {n}" for who in range(8) for n in range(0, 40, 2)}
    assert set(os.listdir(place)) == expected
    assert {path.read_text() for path in place.iterdir()} == expected
