"""Power loss: what was fsynced is there, and the rest is a prefix that is consistent.

The state directory is on an ext4 of its own (a loop device), which is shut down by EXT4_IOC_SHUTDOWN without flushing
its log: at that moment everything that no fsync brought to the disk is gone, as xfstests' `godown` simulates a power
cut. That is a real file system with a real journal; a recorder of our own calls would only confirm what we believe
about them.
"""

from __future__ import annotations

import fcntl
import os
import random
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mounted import Mounted, detach

Mount = Callable[..., Mounted]
EXT4_IOC_SHUTDOWN = 0x8004587D
NO_LOG_FLUSH = 2

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk")


class Disk:
    def __init__(self, directory: Path) -> None:
        self.image = directory / "disk"
        self.path = directory / "on-disk"
        self.path.mkdir()
        with self.image.open("wb") as file:
            file.truncate(96 << 20)
        subprocess.run(["mkfs.ext4", "-q", "-F", self.image], check=True)
        self.plug_in()

    def plug_in(self) -> None:
        subprocess.run(["mount", "-o", "loop", self.image, self.path], check=True)

    def lose_power(self) -> None:
        fd = os.open(self.path, os.O_RDONLY)
        fcntl.ioctl(fd, EXT4_IOC_SHUTDOWN, struct.pack("=I", NO_LOG_FLUSH))
        os.close(fd)

    def unplug(self) -> None:
        """The last of the killed processes may be ending still, and hold files until it has."""
        end = time.monotonic() + 30
        while subprocess.run(["umount", self.path], capture_output=True).returncode != 0:
            assert time.monotonic() < end, "the disk is in use"
            threading.Event().wait(0.02)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    one = Disk(tmp_path)
    yield one
    detach(one.path)


class Work:
    """Appends lines and makes directories, and knows how many of each were on disk for certain."""

    def __init__(self) -> None:
        self.lines = self.synced_lines = self.directories = self.synced_directories = 0
        self.lost = 0

    def go_on(self, at: Path, steps: int, chance: random.Random) -> None:
        with (at / "lines").open("ab", buffering=0) as file:
            for _ in range(steps):
                file.write(b"%08d\n" % self.lines)
                self.lines += 1
                if chance.random() < 0.05:
                    os.mkdir(at / f"d{self.directories:05}")
                    self.directories += 1
                if chance.random() < 0.03:
                    os.fsync(file.fileno())
                    self.synced_lines, self.synced_directories = self.lines, self.directories

    def check(self, at: Path) -> None:
        found = (at / "lines").read_bytes()
        whole = b"".join(b"%08d\n" % number for number in range(self.lines))
        assert len(found) >= 9 * self.synced_lines
        assert whole.startswith(found)
        directories = sorted(path.name for path in at.glob("d*"))
        assert directories == [f"d{number:05}" for number in range(len(directories))]
        assert self.synced_directories <= len(directories) <= self.directories
        self.lost += len(whole) - len(found) + self.directories - len(directories)
        self.lines = self.synced_lines = len(found) // 9
        os.truncate(at / "lines", 9 * self.lines)
        self.directories = self.synced_directories = len(directories)


def reboot(disk: Disk, session: Mounted) -> None:
    """The power goes, every process with it; the machine starts with another boot id."""
    disk.lose_power()
    session.kill9()
    disk.unplug()
    disk.plug_in()
    lock = session.state / session.session / "lock"
    assert lock.read_bytes().strip(), "it would be opened as one that was closed cleanly"
    lock.write_bytes(b"00000000-0000-0000-0000-000000000000")


def test_after_power_loss_what_was_fsynced_is_there_and_the_rest_is_a_prefix(mounted: Mount, disk: Disk) -> None:
    work, chance = Work(), random.Random(5)
    session = mounted("work", state=disk.path / "state")
    os.close(os.open(session.path / "lines", os.O_CREAT | os.O_WRONLY))
    with (session.path / "lines").open("rb") as file:
        os.fsync(file.fileno())
    for steps in (40, 300, 900):
        work.go_on(session.path, steps, chance)
        reboot(disk, session)
        session = mounted("work", state=disk.path / "state")
        work.check(session.path)
    assert work.lost, "nothing was lost, so the power was not"
    session.stop()
    again = mounted("work", state=disk.path / "state")
    work.check(again.path)
    again.stop()


def test_a_session_that_was_stopped_is_whole_after_power_loss(mounted: Mount, disk: Disk) -> None:
    session = mounted("work", state=disk.path / "state")
    for number in range(50):
        (session.path / f"file{number}").write_bytes(b"%d" % number * 100)
    session.stop()
    disk.lose_power()
    disk.unplug()
    disk.plug_in()
    again = mounted("work", state=disk.path / "state")
    assert [(again.path / f"file{number}").read_bytes() for number in range(50)] == [
        b"%d" % number * 100 for number in range(50)
    ]
    again.stop()
