"""The mountpoint: what is mounted where, what is refused, and dead mounts of ours."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mount import bdi, handshake, holders, mountpoint
from tests.mount.asking import as_nobody
from tests.mounted import COMMAND, detach

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="mount(2) is for root")

STATE = Path("/var/lib/mount-session/session")


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    path = mountpoint.resolve(tmp_path / "mnt with space\\and#\r\n")
    path.mkdir()
    yield path
    detach_all(path)


def detach_all(path: Path) -> None:
    while mountpoint.mounted_on(path) is not None:
        mountpoint.detach(path, lazy=True)


def test_mountinfo_is_read_with_its_octal_escapes() -> None:
    line = rb"36 35 98:0 /mnt1 /mnt\0402\134x rw,noatime shared:1 master:2 - fuse.mount-session a\040b rw,fd=3" + b"\n"
    (entry,) = mountpoint.parse_mountinfo(line)
    assert entry.mountpoint == b"/mnt 2\\x"
    assert entry.source == b"a b"
    assert (entry.mount_id, entry.device, entry.root, entry.fstype) == (36, "98:0", b"/mnt1", "fuse.mount-session")
    assert entry.options == {"rw", "noatime"}


def test_what_others_mount_under_odd_names_does_not_stop_us() -> None:
    line = b"36 35 0:98 / /mnt\r2\xff rw - fuse.\xff\r a\rb rw\n"
    first, second = mountpoint.parse_mountinfo(line * 2)
    assert first == second
    assert (first.mountpoint, first.source) == (b"/mnt\r2\xff", b"a\rb")


def test_a_missing_mountpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="create the directory first"):
        mountpoint.prepare(tmp_path / "nowhere", STATE)


def test_a_file_is_refused_as_mountpoint(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="not a directory"):
        mountpoint.prepare(tmp_path / "file", STATE)


def test_a_mount_may_not_cover_its_own_state(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "link").symlink_to("mnt")
    with pytest.raises(OSError, match="would cover its own state"):
        mountpoint.prepare(tmp_path / "mnt", tmp_path / "link" / "state" / "session")
    mountpoint.prepare(tmp_path / "mnt", tmp_path / "state" / "session")


def test_a_session_is_mounted_on_a_directory_of_any_name(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff \r\n\\040"))
    path.mkdir()
    process = subprocess.Popen(
        [str(COMMAND), "up", "--state", str(tmp_path / "state"), "odd", path],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )
    assert process.stdout is not None
    try:
        expected = b"odd is mounted on " + os.fsencode(path) + b"\n"
        assert process.stdout.read(len(expected)) == expected
        (path / "file").write_bytes(b"content")
        process.terminate()
        assert b'"files":1' in process.communicate(timeout=30)[0]
        assert mountpoint.mounted_on(path) is None
    finally:
        process.kill()
        process.wait()
        detach_all(path)


@root_only
def test_a_mount_is_refused_as_mountpoint(directory: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "something", directory], check=True)
    with pytest.raises(OSError, match="tmpfs from something") as refused:
        mountpoint.prepare(directory, STATE)
    assert refused.value.errno == errno.EBUSY


@root_only
def test_a_directory_that_the_user_may_not_read_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o700)

    def claim() -> None:
        with pytest.raises(PermissionError, match="name a directory of yours: 'closed'"):
            mountpoint.claimed(Path("closed")).__enter__()

    as_nobody(tmp_path, claim)


def test_what_fusermount_needs_to_unmount_is_asked_for_before_it_mounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mountpoint, "MTAB", tmp_path / "mtab")
    with pytest.raises(FileNotFoundError, match="ln -s /proc/self/mounts"):
        mountpoint.fusermount()


@root_only
def test_a_mount_has_a_number_under_which_the_kernel_can_be_spoken_to(directory: Path) -> None:
    attached = mountpoint.attach(directory, "some,session")
    try:
        entry = mountpoint.mounted_on(directory)
        assert entry is not None
        assert entry.source == b"mount-session:some,session"
        assert entry.device == attached.device
        assert {"nosuid", "nodev"} <= entry.options
        handshake.answer(attached.fd)
        assert bdi.tune(attached.device)
        assert int((bdi.BDI / attached.device / "read_ahead_kb").read_text()) == bdi.READ_AHEAD_KB
    finally:
        os.close(attached.fd)


@root_only
def test_a_dead_mount_of_ours_is_taken_away_first(directory: Path) -> None:
    attached = mountpoint.attach(directory, "dead")
    os.close(attached.fd)
    with pytest.raises(OSError, match="not connected"):
        os.statvfs(directory)
    assert mountpoint.resolve(directory) == directory
    mountpoint.prepare(directory, STATE)
    assert mountpoint.mounted_on(directory) is None


@root_only
def test_a_busy_mount_is_named_with_who_holds_it_and_detached_lazily(tmp_path: Path) -> None:
    directory = tmp_path / "held"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "held", directory], check=True)
    try:
        entry = mountpoint.mounted_on(directory)
        assert entry is not None
        holder = subprocess.Popen(["sleep", "1000"], cwd=directory)
        with pytest.raises(OSError) as busy:
            mountpoint.detach(directory)
        assert busy.value.errno == errno.EBUSY
        (found,) = holders.find(entry.device, directory)
        assert (found.pid, found.name) == (holder.pid, "sleep")
        assert "cwd" in found.why
        mountpoint.detach(directory, lazy=True)
        assert mountpoint.mounted_on(directory) is None
        holder.kill()
        holder.wait()
    finally:
        detach(directory)


@root_only
def test_only_who_still_has_a_mount_is_named_when_it_is_taken_away(
    directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody has the first, whose device number another mount takes over at once; a container has the second."""
    elsewhere = mountpoint.resolve(tmp_path) / "elsewhere"
    elsewhere.mkdir()
    first = mountpoint.attach(directory, "first")
    assert not mountpoint.has_ended(first.fd)
    holders.take_away(directory, first.device, first.fd)
    assert mountpoint.has_ended(first.fd) and caplog.messages == []
    second = mountpoint.attach(elsewhere, "second")
    command = ["unshare", "-m", "sh", "-c", "mount --make-rprivate / && echo ready && exec sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"ready\n"
        third = mountpoint.attach(directory, "third")
        if third.device == first.device:  # as a rule
            assert holders.find(first.device, directory) == []
        holders.take_away(directory, third.device, third.fd)
        assert caplog.messages == []
        holders.take_away(elsewhere, second.device, second.fd)
        assert len(caplog.messages) == 1 and f"process {other.pid} (sleep)" in caplog.messages[0]
        assert not mountpoint.has_ended(second.fd), "the namespace has it still"
        other.kill()
    for attached in (first, second, third):
        os.close(attached.fd)


@root_only
def test_two_mounts_on_one_directory_at_once_are_not_stacked(directory: Path) -> None:
    """The second waits for the first, and is refused; who holds the lock for ever holds up nobody for ever."""
    entered = threading.Barrier(2)
    made: list[mountpoint.Attached] = []
    refused: list[OSError] = []

    def mount() -> None:
        mountpoint.prepare(directory, STATE)
        entered.wait()
        try:
            with mountpoint.claimed(directory):
                made.append(mountpoint.attach(directory, "one"))
        except OSError as e:
            refused.append(e)

    threads = [threading.Thread(target=mount) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ((attached,), (error,)) = made, refused
    assert error.errno == errno.EBUSY
    mountpoint.detach(directory)
    assert mountpoint.mounted_on(directory) is None
    os.close(attached.fd)
    stranger = os.open(directory, os.O_RDONLY)
    fcntl.flock(stranger, fcntl.LOCK_EX)
    with mountpoint.claimed(directory):
        os.close(mountpoint.attach(directory, "two").fd)
    os.close(stranger)


@root_only
def test_a_process_in_another_mount_namespace_is_found_as_a_holder(tmp_path: Path) -> None:
    directory = tmp_path / "shared"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "shared", directory], check=True)
    try:
        entry = mountpoint.mounted_on(directory)
        assert entry is not None
        command = "mount --make-rprivate / && echo ready && exec sleep 1000"
        other = subprocess.Popen(["unshare", "-m", "sh", "-c", command], stdout=subprocess.PIPE)
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        mountpoint.detach(directory)  # not busy here
        assert [f"mounted on {directory} in its mount namespace"] == [
            found.why for found in holders.find(entry.device, directory) if found.pid == other.pid
        ]
        other.kill()
        other.wait()
        other.stdout.close()
    finally:
        detach(directory)


def test_a_link_to_a_directory_is_followed_but_a_mountpoint_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert mountpoint.resolve(tmp_path / "link") == tmp_path.resolve() / "real"
    assert mountpoint.resolve(tmp_path / "link" / ".." / "absent") == tmp_path.resolve() / "absent"
