"""A worker that dies is replaced on the live mount, and no request is lost, refused, or done twice."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import select
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mount.handshake import HEADER, OUT_HEADER, READ_BUFFER
from mount.resend import BATCH_FORGET, FORGET
from tests.mount.killing import kill_worker, killing, other_worker, worker_of
from tests.mounted import Mounted

Mount = Callable[..., Mounted]
libc = ctypes.CDLL(None, use_errno=True)
NOREPLACE, EXCHANGE = 1, 2


def rename2(old: Path, new: Path, flags: int) -> None:
    if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags) != 0:
        raise OSError(ctypes.get_errno(), "renameat2", str(old))


def refuses(number: int, operation: Callable[[], object]) -> None:
    """The true answer to the same request made anew."""
    with pytest.raises(OSError) as refused:
        operation()
    assert refused.value.errno == number


# ---- each operation, the worker killed in the middle of it: what it must have done, and what it answers when made anew


def create(at: Path) -> None:
    def exclusively() -> None:
        os.close(os.open(at / "new", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640))

    exclusively()
    assert stat.S_IMODE((at / "new").stat().st_mode) == 0o640
    refuses(errno.EEXIST, exclusively)


def create_open(at: Path) -> None:
    with (at / "written").open("wb") as file:
        file.write(b"content")
    assert (at / "written").read_bytes() == b"content"


def mkdir(at: Path) -> None:
    os.mkdir(at / "newdir", 0o750)
    assert stat.S_IMODE((at / "newdir").stat().st_mode) == 0o750
    refuses(errno.EEXIST, lambda: os.mkdir(at / "newdir"))


def mknod(at: Path) -> None:
    os.mkfifo(at / "fifo")
    assert stat.S_ISFIFO((at / "fifo").stat().st_mode)
    refuses(errno.EEXIST, lambda: os.mkfifo(at / "fifo"))


def symlink(at: Path) -> None:
    os.symlink("target", at / "sym")
    assert os.readlink(at / "sym") == "target"
    refuses(errno.EEXIST, lambda: os.symlink("target", at / "sym"))


def link(at: Path) -> None:
    os.link(at / "file", at / "hard")
    assert (at / "hard").stat().st_nlink == 2
    refuses(errno.EEXIST, lambda: os.link(at / "file", at / "hard"))


def unlink(at: Path) -> None:
    os.unlink(at / "gone")
    refuses(errno.ENOENT, lambda: os.unlink(at / "gone"))


def rmdir(at: Path) -> None:
    os.rmdir(at / "emptydir")
    refuses(errno.ENOENT, lambda: os.rmdir(at / "emptydir"))


def rename(at: Path) -> None:
    os.rename(at / "before", at / "after")
    assert (at / "after").read_bytes() == b"before"
    refuses(errno.ENOENT, lambda: os.rename(at / "before", at / "after"))


def rename_over(at: Path) -> None:
    os.rename(at / "over", at / "under")
    assert (at / "under").read_bytes() == b"over"
    assert not (at / "over").exists()


def rename_noreplace(at: Path) -> None:
    rename2(at / "free", at / "taken", NOREPLACE)
    assert (at / "taken").read_bytes() == b"free"
    (at / "free").touch()
    refuses(errno.EEXIST, lambda: rename2(at / "free", at / "taken", NOREPLACE))


def exchange(at: Path) -> None:
    rename2(at / "left", at / "right", EXCHANGE)
    assert ((at / "left").read_bytes(), (at / "right").read_bytes()) == (b"right", b"left")
    rename2(at / "left", at / "right", EXCHANGE)
    assert ((at / "left").read_bytes(), (at / "right").read_bytes()) == (b"left", b"right")


def chmod(at: Path) -> None:
    os.chmod(at / "file", 0o600)
    assert stat.S_IMODE((at / "file").stat().st_mode) == 0o600


def truncate(at: Path) -> None:
    os.truncate(at / "long", 3)
    assert (at / "long").read_bytes() == b"lon"


def truncate_by_open(at: Path) -> None:
    with (at / "emptied").open("wb") as file:
        file.write(b"x")
    assert (at / "emptied").read_bytes() == b"x"


def utimens(at: Path) -> None:
    os.utime(at / "file", ns=(1, 2_000_000_003))
    assert (at / "file").stat().st_mtime_ns == 2_000_000_003


def setxattr(at: Path) -> None:
    os.setxattr(at / "file", "user.new", b"value")
    assert os.getxattr(at / "file", "user.new") == b"value"


def setxattr_exclusively(at: Path) -> None:
    def exclusively() -> None:
        os.setxattr(at / "file", "user.exclusive", b"value", os.XATTR_CREATE)

    exclusively()
    refuses(errno.EEXIST, exclusively)
    os.setxattr(at / "file", "user.exclusive", b"another", os.XATTR_REPLACE)
    assert os.getxattr(at / "file", "user.exclusive") == b"another"


def removexattr(at: Path) -> None:
    os.removexattr(at / "file", "user.old")
    refuses(errno.ENODATA, lambda: os.removexattr(at / "file", "user.old"))


def write(at: Path) -> None:
    with (at / "appended").open("ab", buffering=0) as file:
        file.write(b"one")
        file.write(b"two")
    assert (at / "appended").read_bytes() == b"onetwo"


PROGRESS = 0.2  # seconds; a worker that dies at once after its first answer gets a successor ever later
OPERATIONS = [create, create_open, mkdir, mknod, symlink, link, unlink, rmdir, rename, rename_over, rename_noreplace]
OPERATIONS += [exchange, chmod, truncate, truncate_by_open, utimens, setxattr, setxattr_exclusively, removexattr, write]
# Points on the way of a request that changes names or attributes, and of the takeover itself.
ON_THE_WAY = ["journal.before-record", "journal.after-record", "record.applied", "answer.sent"]
IN_TAKEOVER = ["recovery.before-end", "takeover.recalled", "takeover.matched"]


@pytest.fixture
def armed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Arms a failure point for processes started from here on; the file that is returned says that one died of it."""

    def arm(point: str) -> Path:
        mark = tmp_path / "reached"
        monkeypatch.setenv("MOUNT_SESSION_FAILPOINT", point)
        monkeypatch.setenv("MOUNT_SESSION_FAILPOINT_MARK", str(mark))
        return mark

    yield arm


def appears(mark: Path) -> bool:
    """The process may die a moment after it has answered."""
    end = time.monotonic() + 10
    while not mark.exists() and time.monotonic() < end:
        threading.Event().wait(0.005)
    return mark.exists()


def furnish(at: Path) -> None:
    for name in ("file", "gone", "before", "over", "under", "free", "left", "right", "long", "emptied"):
        (at / name).write_bytes(name.encode())
    (at / "emptydir").mkdir()
    os.setxattr(at / "file", "user.old", b"value")


@pytest.mark.parametrize("point", ON_THE_WAY)
def test_every_operation_is_done_once_when_the_worker_is_killed_in_it(
    mounted: Mount, armed: Callable[[str], Path], point: str
) -> None:
    first = mounted("takeover")
    furnish(first.path)
    first.stop()
    mark = armed(point)
    mark.touch()
    session = mounted("takeover")
    for operation in OPERATIONS:
        mark.unlink()
        operation(session.path)
        assert appears(mark), f"{point} was not reached in {operation.__name__}"
        threading.Event().wait(PROGRESS)
    session.stop()
    assert session.log.read_text().count("was killed by signal 9") >= len(OPERATIONS)


@pytest.mark.parametrize("point", IN_TAKEOVER)
def test_a_successor_that_is_killed_while_it_takes_over_gets_a_successor(
    mounted: Mount, armed: Callable[[str], Path], point: str
) -> None:
    mark = armed(point)
    mark.touch()  # nobody dies of it yet
    session = mounted("takeover")
    furnish(session.path)
    mark.unlink()  # the worker that is there has passed these points
    dead = kill_worker("takeover")
    exchange(session.path)
    assert mark.exists()
    assert session.log.read_text().count("was killed by signal 9") == 2
    assert worker_of("takeover") != dead
    session.stop()


def test_a_request_that_was_carried_out_is_not_done_again_by_the_successor_of_a_successor(
    mounted: Mount, armed: Callable[[str], Path]
) -> None:
    """The names were exchanged by a worker that died before it answered; the next two die as they begin."""
    first = mounted("takeover")
    furnish(first.path)
    first.stop()
    mark = armed("journal.after-record")
    session = mounted("takeover")
    worker = other_worker("takeover", None)
    names = session.path / "left", session.path / "right"
    exchanging = threading.Thread(target=rename2, args=(*names, EXCHANGE))
    exchanging.start()
    assert appears(mark)
    for _ in range(2):
        worker = other_worker("takeover", worker)
        os.kill(worker, 9)
    exchanging.join()
    assert [path.read_bytes() for path in names] == [b"right", b"left"]
    session.stop()


@pytest.mark.parametrize(("number", "deaths"), [(signal.SIGSEGV, 3), (signal.SIGKILL, 5)])
def test_a_request_that_kills_three_workers_is_answered_eio_and_the_session_goes_on(
    mounted: Mount, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, deaths: int
) -> None:
    """Every worker dies of the first record that it is about to write. Who dies of SIGKILL may have been killed by
    somebody else, so that takes five."""
    first = mounted("takeover")
    furnish(first.path)
    first.stop()
    monkeypatch.setenv("MOUNT_SESSION_FAILPOINT", "journal.before-record")
    monkeypatch.setenv("MOUNT_SESSION_FAILPOINT_SIGNAL", number.name)
    session = mounted("takeover")
    innocent = threading.Thread(target=lambda: [os.listdir(session.path) for _ in range(3)])
    innocent.start()
    refuses(errno.EIO, lambda: os.mkdir(session.path / "poison"))
    innocent.join()
    assert (session.path / "file").read_bytes() == b"file"
    log = session.log.read_text()
    assert log.count(f"was killed by signal {number.value}; the next in") == deaths
    assert "has killed worker after worker; it is answered EIO" in log
    session.stop()


def test_what_programs_hold_goes_on(mounted: Mount) -> None:
    session = mounted("takeover")
    at = session.path
    for number in range(2000):
        (at / f"{number:04}").touch()
    unlinked = os.open(at / "unlinked", os.O_CREAT | os.O_RDWR)
    os.write(unlinked, b"still here")
    os.unlink(at / "unlinked")
    (at / "mapped").write_bytes(bytes(4096))
    (at / "locked").touch()
    with (
        (at / "mapped").open("r+b") as mapped,
        mmap.mmap(mapped.fileno(), 4096) as area,
        (at / "locked").open() as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        area[:5] = b"first"
        with os.scandir(at) as listing:
            seen = [next(listing).name for _ in range(100)]
            for _ in range(3):
                other_worker("takeover", kill_worker("takeover"))
                os.statvfs(at)
            seen += [entry.name for entry in listing]
        assert os.pread(unlinked, 100, 0) == b"still here"
        os.pwrite(unlinked, b"there", 6)
        assert os.pread(unlinked, 100, 0) == b"still there"
        area[5:10] = b"later"
        area.flush()
        with (at / "locked").open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(unlinked)
    assert sorted(seen) == sorted([f"{number:04}" for number in range(2000)] + ["mapped", "locked"])
    assert (at / "mapped").read_bytes()[:10] == b"firstlater"
    session.stop()
    assert (mounted("takeover").path / "mapped").read_bytes()[:10] == b"firstlater"


def test_an_unlinked_file_is_reclaimed_once_nobody_has_it_open_after_a_takeover(mounted: Mount) -> None:
    session = mounted("takeover")
    held = os.open(session.path / "held", os.O_CREAT | os.O_RDWR)
    os.write(held, bytes(100_000))
    os.unlink(session.path / "held")
    other_worker("takeover", kill_worker("takeover"))
    assert len(os.pread(held, 200_000, 0)) == 100_000
    content = session.state / "takeover" / "content"
    assert any(path.stat().st_size == 100_000 for path in content.rglob("*") if path.is_file())
    os.close(held)
    end = time.monotonic() + 20
    while any(path.is_file() and path.stat().st_size == 100_000 for path in content.rglob("*")):
        assert time.monotonic() < end, "the backing file of an unlinked file is still there"
        os.statvfs(session.path)
    session.stop()


def duplicate(pid: int, link: str) -> int:
    """The process's descriptor of that file, as pidfd_getfd(2) gives it."""
    numbers = [fd for fd in os.listdir(f"/proc/{pid}/fd") if os.readlink(f"/proc/{pid}/fd/{fd}") == link]
    pidfd = os.pidfd_open(pid)
    fd: int = libc.syscall(438, pidfd, int(numbers[0]), 0)
    os.close(pidfd)
    assert fd >= 0
    return fd


def test_an_unlinked_file_is_reclaimed_also_when_the_kernel_s_last_word_on_it_died_with_a_worker(
    mounted: Mount,
) -> None:
    session = mounted("forgetful", "--hang-limit", "100")
    content = session.state / "forgetful" / "content"

    def kept() -> bool:
        return any(path.is_file() and path.stat().st_size == 100_000 for path in content.rglob("*"))

    held, other = (os.open(session.path / name, os.O_CREAT | os.O_RDWR) for name in ("held", "other"))
    os.write(held, bytes(100_000))
    os.write(other, b"of another file")
    os.unlink(session.path / "held")
    os.unlink(session.path / "other")
    worker = other_worker("forgetful", None)
    device = duplicate(worker, "/dev/fuse")
    os.kill(worker, signal.SIGSTOP)
    os.close(held)
    opcode = 0
    while opcode not in (FORGET, BATCH_FORGET):  # the worker answers the close, reads this, and dies
        assert select.select([device], [], [], 10)[0]
        _, opcode, unique, *_ = HEADER.unpack_from(os.read(device, READ_BUFFER))
        if opcode not in (FORGET, BATCH_FORGET):
            os.write(device, OUT_HEADER.pack(OUT_HEADER.size, 0, unique))
    os.close(device)
    assert kept()
    os.kill(worker, signal.SIGKILL)
    other_worker("forgetful", worker)
    assert os.pread(other, 100, 0) == b"of another file"
    assert not kept()
    os.close(other)
    session.stop()


def test_two_hundred_kills_lose_no_line_and_double_none(mounted: Mount) -> None:
    """A client appends numbered lines and fsyncs some. Its longest write is printed, for the figures."""
    session = mounted("takeover")
    lines, longest, number = session.path / "lines", 0.0, 0
    with killing("takeover", 0.02, 0.2) as killer, lines.open("ab", buffering=0) as file:
        while killer.kills < 200:
            began = time.perf_counter()
            file.write(b"%d\n" % number)
            if number % 10 == 0:
                os.fsync(file.fileno())
            longest = max(longest, time.perf_counter() - began)
            number += 1
    assert lines.read_bytes() == b"".join(b"%d\n" % n for n in range(number))
    print(f"{number} lines over {killer.kills} kills; longest write {longest:.3f} s")
    session.stop()
    assert mounted("takeover").path.joinpath("lines").stat().st_size == sum(len(b"%d\n" % n) for n in range(number))


def test_a_worker_that_dies_again_and_again_is_restarted_ever_more_slowly_and_the_mount_stays(mounted: Mount) -> None:
    session = mounted("takeover")
    (session.path / "file").write_bytes(b"kept")
    last = None
    for _ in range(4):
        last = other_worker("takeover", last)
        os.kill(last, 9)
    assert (session.path / "file").read_bytes() == b"kept"
    log = session.log.read_text()
    assert "was killed by signal 9; the next in 0 s" in log or "the next in 0.1 s" in log
    assert "the next in 0.2 s" in log
    session.stop()
