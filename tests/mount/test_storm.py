"""Threads carry out random operations on a session and on the disk at once, while the session's workers are killed:
every answer is the same on both, errors included."""

from __future__ import annotations

import contextlib
import os
import random
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.mount.killing import killing
from tests.mount.test_takeover import EXCHANGE, NOREPLACE, rename2
from tests.mounted import Mounted

SECONDS = 2.5
THREADS = 6
Operation = Callable[[Path], object]


def written(path: Path, flags: int, content: bytes, *, durably: bool) -> int:
    fd = os.open(path, flags | os.O_WRONLY | os.O_NONBLOCK, 0o644)  # a fifo must not wait for its reader
    try:
        os.write(fd, content)
        if durably:
            os.fsync(fd)
        return os.fstat(fd).st_size
    finally:
        os.close(fd)


def content(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        return file.read()


def seen(path: Path) -> tuple[int, int, int]:
    found = path.lstat()
    return found.st_mode, 0 if stat.S_ISDIR(found.st_mode) else found.st_nlink, found.st_size if path.is_file() else 0


@dataclass
class Chance:
    """What the next operation is; it does the same wherever it is carried out."""

    names: list[str]
    random: random.Random

    def operation(self) -> tuple[str, Operation]:
        name, other = self.random.choice(self.names), self.random.choice(self.names)
        number, durably = self.random.randrange(9000), self.random.random() < 0.1
        text = b"%d\n" % number * (1 + number % 700)
        operations: dict[str, Operation] = {
            "create": lambda at: written(at / name, os.O_CREAT | os.O_EXCL, text, durably=durably),
            "replace": lambda at: written(at / name, os.O_CREAT | os.O_TRUNC, text, durably=durably),
            "append": lambda at: written(at / name, os.O_APPEND, text, durably=durably),
            "read": lambda at: content(at / name),
            "mkdir": lambda at: os.mkdir(at / name),
            "rmdir": lambda at: os.rmdir(at / name),
            "unlink": lambda at: os.unlink(at / name),
            "rename": lambda at: os.rename(at / name, at / other),
            "noreplace": lambda at: rename2(at / name, at / other, NOREPLACE),
            "exchange": lambda at: rename2(at / name, at / other, EXCHANGE),
            "link": lambda at: os.link(at / name, at / other),
            "symlink": lambda at: os.symlink(f"to {other}", at / name),
            "readlink": lambda at: os.readlink(at / name),
            "mkfifo": lambda at: os.mkfifo(at / name),
            "chmod": lambda at: os.chmod(at / name, 0o600 + number % 64),
            "truncate": lambda at: os.truncate(at / name, number),
            "utime": lambda at: os.utime(at / name, ns=(5, number * 1_000_003)),
            "setxattr": lambda at: os.setxattr(at / name, "user.note", text[:50], number % 3),
            "getxattr": lambda at: os.getxattr(at / name, "user.note"),
            "removexattr": lambda at: os.removexattr(at / name, "user.note"),
            "list": lambda at: sorted(found for found in os.listdir(at) if found in self.names),
            "stat": lambda at: seen(at / name),
        }
        kind = self.random.choice(list(operations))
        return f"{kind} {name} {other} {number}", operations[kind]


def answer(operation: Operation, at: Path) -> Any:
    try:
        return operation(at)
    except OSError as error:
        return f"errno {error.errno}"


@pytest.mark.parametrize("point", [None, "journal.after-record:25", "journal.before-record:25"])
def test_random_operations_under_kills_are_answered_as_the_disk_answers_them(
    mounted: Callable[..., Mounted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str | None
) -> None:
    """Killed at any moment; or each worker at its 25th record, which is then carried out and not answered, or not
    carried out."""
    if point is not None:
        monkeypatch.setenv("MOUNT_SESSION_FAILPOINT", point)
    session, disk = mounted("storm"), tmp_path / "disk"
    disk.mkdir()
    different: list[str] = []
    done = [0] * THREADS
    end = time.monotonic() + SECONDS

    def work(thread: int) -> None:
        places = [base / "shared" if thread % 2 else base / f"of {thread}" for base in (session.path, disk)]
        for place in places:
            place.mkdir(exist_ok=True)
        chance = Chance([f"{thread}-{number}" for number in range(6)], random.Random(thread))
        while time.monotonic() < end and not different:
            what, operation = chance.operation()
            ours, theirs = (answer(operation, place) for place in places)
            if ours != theirs:
                different.append(f"{what}: {ours!r:.200}, and on the disk {theirs!r:.200}")
            done[thread] += 1

    with contextlib.nullcontext() if point else killing("storm", 0.03, 0.25):
        threads = [threading.Thread(target=work, args=(thread,)) for thread in range(THREADS)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
    assert not different
    assert all(done)
    log = session.log.read_text()
    assert "Traceback" not in log
    deaths = log.count("was killed by signal 9")
    assert deaths >= 3
    print(f"{sum(done)} operations over {deaths} deaths")
    session.stop()
