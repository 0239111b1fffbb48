"""Several programs at one file: shared mappings, locks, appends."""

from __future__ import annotations

import fcntl
import mmap
import os
import subprocess
import sys
from collections.abc import Callable

from tests.mounted import Mounted, run

Mount = Callable[..., Mounted]

MAPPED_READER = """
import mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
    print(mapping[4094:4102].decode())
"""


def test_shared_mmap_writes_are_seen_by_readers_other_mappings_and_the_next_mount(mounted: Mount) -> None:
    session = mounted()
    path = session.path / "mapped"
    path.write_bytes(bytes(3 * mmap.PAGESIZE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[4094:4102] = b"straddle"
        assert os.pread(file.fileno(), 8, 4094) == b"straddle"
        assert run(sys.executable, "-c", MAPPED_READER, path) == "straddle\n"
        mapping.flush()
        os.pwrite(file.fileno(), b"written!", 8190)
        assert mapping[8190:8198] == b"written!"
    session.stop()
    mounted()
    content = path.read_bytes()
    assert (content[4094:4102], content[8190:8198], len(content)) == (b"straddle", b"written!", 3 * mmap.PAGESIZE)


LOCK_ATTEMPT = """
import fcntl, sys
with open(sys.argv[1], "r+b") as file:
    try:
        if sys.argv[2] == "flock":
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, int(sys.argv[3]))
    except BlockingIOError:
        print("busy")
    else:
        print("free")
"""


def test_a_lock_of_one_process_keeps_another_out(mounted: Mount) -> None:
    path = mounted().path / "locked"
    path.write_bytes(bytes(100))

    def attempt(*how: str) -> str:
        return run(sys.executable, "-c", LOCK_ATTEMPT, path, *how).strip()

    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert attempt("flock") == "busy"
        fcntl.flock(file, fcntl.LOCK_UN)
        assert attempt("flock") == "free"

        fcntl.lockf(file, fcntl.LOCK_EX, 10, 0)
        assert attempt("posix", "5") == "busy"
        assert attempt("posix", "10") == "free"
        fcntl.lockf(file, fcntl.LOCK_UN, 10, 0)
        assert attempt("posix", "5") == "free"
        fcntl.flock(file, fcntl.LOCK_EX)
    assert attempt("flock") == "free"  # closing a file gives its locks back


APPENDER = """
import sys
for number in range(200):
    with open(sys.argv[1], "a") as log:
        log.write(f"{sys.argv[2]} {number} " + "x" * 80 + "\\n")
"""


def test_a_log_appended_to_by_many_processes_has_every_line_once_and_whole(mounted: Mount) -> None:
    path = mounted().path / "log"
    writers = [subprocess.Popen([sys.executable, "-c", APPENDER, path, str(n)]) for n in range(4)]
    assert [process.wait(timeout=60) for process in writers] == [0] * 4
    lines = path.read_text().splitlines()
    assert sorted(lines) == sorted(f"{w} {n} {'x' * 80}" for w in range(4) for n in range(200))
