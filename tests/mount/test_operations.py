"""What operations on names and directories promise, on a mounted session: docs/semantics.md names these tests."""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.mount.asking import libc, refused
from tests.mounted import Mounted, run
from vfs.session import KERNEL, Session

pytestmark = [
    pytest.mark.mount,
    pytest.mark.skipif(os.geteuid() != 0, reason="set-id bits, devices and small disks take root"),
]


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
