"""Many sessions on one host: what mounting costs, what each holds in memory, and whether they share the host fairly.

python -m bench.host [WHAT ...]     as root; WHAT is any of: mount storm untar loops events; all by default

Each question is put to plain directories of the same disk in the same run, so what comes of two processors and one
disk can be told from what comes of us. Prints one line of JSON for each.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import trio

from mount.client import Client, NoDaemon
from mount.messages import NewSession
from vfs.namespace import ROOT
from vfs.session import KERNEL, Session

MOUNTED = 200  # sessions, for what mounting costs
UNTARS = 20
LOOPS = 100
LOOP_SECONDS = 8.0
STORM_SECONDS = 2.5
STORMERS = 4
ROUNDS = 3
EVENTS = 500_000
FILES = 1000  # of the archive that is unpacked

Figures = dict[str, object]


class Host:
    """A daemon of its own, sessions in it, and as many plain directories beside it."""

    pid = 0

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root, self.state = directory / "root", directory / "state"
        self.plain = directory / "plain"

    def sessions(self, count: int) -> list[Path]:
        with Client(self.state) as client:
            known = {status.session for status in client.list()}
            for n in range(count):
                if f"s{n}" not in known:
                    client.new(NewSession(session=f"s{n}"))
        return [self.root / f"s{n}" for n in range(count)]

    def plains(self, count: int) -> list[Path]:
        found = [self.plain / f"s{n}" for n in range(count)]
        for path in found:
            path.mkdir(parents=True, exist_ok=True)
        return found


@contextmanager
def serving(directory: Path) -> Iterator[Host]:
    host = Host(directory)
    command = [sys.executable, "-m", "mount.cli", "serve", "--root", str(host.root), "--state", str(host.state)]
    with (directory / "log").open("wb") as log:
        daemon = subprocess.Popen(command, stderr=log)
    host.pid = daemon.pid
    try:
        while not _answers(host):
            assert daemon.poll() is None, (directory / "log").read_text()
            time.sleep(0.05)
        yield host
    finally:
        daemon.terminate()
        daemon.wait()


def _answers(host: Host) -> bool:
    try:
        with Client(host.state) as client:
            return client.openapi() is not None
    except NoDaemon:
        return False


def memory(pid: int) -> float:
    """PSS in MiB: a worker shares most of its pages with the zygote."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"no Pss of {pid}")


def percentile(values: Sequence[float], part: int) -> float:
    return sorted(values)[part * (len(values) - 1) // 100]


@contextmanager
def children(tasks: Sequence[Callable[[], None]]) -> Iterator[list[int]]:
    """A process for each, until the block ends."""
    pids = []
    for task in tasks:
        pid = os.fork()
        if pid == 0:
            try:
                task()
            finally:
                os._exit(0)
        pids.append(pid)
    try:
        yield pids
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


# ---- what mounting costs


def mount(host: Host) -> Figures:
    times = []
    with Client(host.state) as client:
        for n in range(MOUNTED):
            began = time.monotonic()
            client.new(NewSession(session=f"m{n}"))
            times.append(time.monotonic() - began)
        found = client.list()
        workers = [memory(status.worker.pid) for status in found if status.worker and status.worker.pid]
        began = time.monotonic()
        for n in range(MOUNTED):
            client.remove(f"m{n}", purge=True)
        removed = time.monotonic() - began
    return {
        "sessions": MOUNTED,
        "mount_ms": {"median": round(statistics.median(times) * 1e3), "max": round(max(times) * 1e3)},
        "worker_pss_mib": {"mean": round(statistics.mean(workers), 1), "max": round(max(workers), 1)},
        "remove_ms": round(removed / MOUNTED * 1e3),
    }


# ---- a storm beside a quiet session


def _storm(directory: Path) -> None:
    """Makes, looks at and removes files as fast as it can."""
    directory.mkdir(exist_ok=True)
    paths = [directory / f"{n}" for n in range(100)]
    while True:
        for path in paths:
            path.touch()
        for path in paths:
            path.stat()
        for path in paths:
            path.unlink()


class Quiet:
    """Microseconds for a stat of a name that nobody has looked up yet, and for 4 KiB that no page cache of the
    mount's has (on the plain disk from its page cache: what the worker has them from, too)."""

    def __init__(self, directory: Path, name: str, *, mounted: bool) -> None:
        self.absent = directory / name
        self.mounted = mounted
        self.stats: list[float] = []
        self.reads: list[float] = []
        self.file = directory / f"{name}.file"
        self.file.write_bytes(os.urandom(4096 * 256))

    def measure(self) -> None:
        fd, n, end = os.open(self.file, os.O_RDONLY), len(self.stats), time.monotonic() + STORM_SECONDS
        while time.monotonic() < end:
            n += 1
            began = time.perf_counter()
            os.path.exists(f"{self.absent}-{n}")
            self.stats.append(time.perf_counter() - began)
            if self.mounted:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            began = time.perf_counter()
            os.pread(fd, 4096, n % 256 * 4096)
            self.reads.append(time.perf_counter() - began)
        os.close(fd)

    def told(self) -> Figures:
        return {
            f"{what}_p{part}": round(percentile(values, part) * 1e6)
            for what, values in (("stat", self.stats), ("read", self.reads))
            for part in (50, 99)
        }


def storm(host: Host) -> Figures:
    places = {"session": host.sessions(2), "plain": host.plains(2)}
    measured = {
        (name, stormy): Quiet(quiet, f"absent-{stormy}", mounted=name == "session")
        for name, (_, quiet) in places.items()
        for stormy in (False, True)
    }
    for _ in range(ROUNDS):
        for (name, stormy), quiet in measured.items():
            loud = places[name][0]
            tasks = [partial(_storm, loud / f"d{n}") for n in range(STORMERS)]
            with children(tasks if stormy else []):
                quiet.measure()
    return {f"{name}_{'storm' if stormy else 'alone'}_us": quiet.told() for (name, stormy), quiet in measured.items()}


# ---- many untars


def _archive(directory: Path) -> Path:
    """Some thousand small files in some directories, as sources have them."""
    tree = directory / "tree"
    for n in range(FILES):
        folder = tree / f"d{n // 50}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file{n}.py").write_bytes(os.urandom(1 + n * 37 % 12000))
    archive = directory / "tree.tar"
    subprocess.run(["tar", "-cf", archive, "-C", tree, "."], check=True)
    return archive


def _untar(directories: list[Path], archive: Path) -> list[float]:
    """Seconds that each of them takes, all at once."""
    began = time.monotonic()
    running = {subprocess.Popen(["tar", "-xf", archive, "-C", path]).pid: path for path in directories}
    taken = []
    while running:
        pid, status = os.wait()
        assert status == 0, f"tar ended with {status} in {running[pid]}"
        del running[pid]
        taken.append(time.monotonic() - began)
    return taken


def untar(host: Host) -> Figures:
    archive = _archive(host.directory)
    sessions, plains = host.sessions(UNTARS + 1), host.plains(UNTARS + 1)
    alone = {"session": _untar(sessions[UNTARS:], archive)[0], "plain": _untar(plains[UNTARS:], archive)[0]}
    figures: Figures = {"files": FILES, "at_once": UNTARS}
    for name, directories in (("plain", plains[:UNTARS]), ("session", sessions[:UNTARS])):
        taken = _untar(directories, archive)
        figures[name] = {
            "alone_s": round(alone[name], 2),
            "first_s": round(min(taken), 2),
            "last_s": round(max(taken), 2),
            "last_over_20_alone": round(max(taken) / (UNTARS * alone[name]), 2),
        }
    return figures


# ---- many small loops


def _loop(directory: Path, gate: tuple[int, int], tell: int) -> None:
    """Once the gate is closed: writes, reads and removes a file for some seconds; how often goes into a pipe."""
    done, path = 0, directory / "looped"
    os.close(gate[1])
    os.read(gate[0], 1)
    until = time.monotonic() + LOOP_SECONDS
    while time.monotonic() < until:
        path.write_bytes(b"x" * 100)
        path.read_bytes()
        path.unlink()
        done += 1
    os.write(tell, b"%d\n" % done)


def fairness(counts: list[int]) -> float:
    """Jain's index: 1 where all have done as much, 1/n where one has done all."""
    return sum(counts) ** 2 / (len(counts) * sum(count * count for count in counts))


def loops(host: Host) -> Figures:
    figures: Figures = {"at_once": LOOPS, "seconds": LOOP_SECONDS}
    for name, directories in (("session", host.sessions(LOOPS)), ("plain", host.plains(LOOPS))):
        (read, write), gate = os.pipe(), os.pipe()
        tasks = [partial(_loop, path, gate, write) for path in directories]
        with children(tasks), os.fdopen(read) as told:
            for fd in (write, *gate):
                os.close(fd)
            counts = [int(told.readline()) for _ in directories]
        figures[name] = {
            "jain": round(fairness(counts), 3),
            **{f"p{part}": percentile(counts, part) for part in (0, 10, 50, 90, 100)},
            "loops_per_s": round(sum(counts) / LOOP_SECONDS),
        }
    return figures


# ---- a day's events and a slow subscriber


async def _fill(state: Path, session: str) -> None:
    """A session in which as much has happened as in a busy day."""
    async with Session.open(session, state) as opened:
        for n in range(EVENTS // 1000):
            directory = opened.mkdir(ROOT, b"d%d" % n, 0o755, KERNEL).ino
            for name in range(500):
                inode = opened.create(directory, b"%d" % name, 0o644, KERNEL)
                opened.remember(inode.ino)
                await opened.write(inode.ino, 0, b"x")
                opened.release(inode.ino)
            await trio.sleep(0.02)


def _heap(pid: int) -> float:
    """Private memory in MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:")) / 1024


def events(host: Host) -> Figures:
    """Replayed to a subscriber that reads some, waits, and reads on, while more happens."""
    trio.run(_fill, host.state, "events")
    with Client(host.state) as client:
        client.new(NewSession(session="events"))
        worker = client.status("events").worker
    assert worker is not None and worker.pid is not None
    pids = {"daemon": host.pid, "worker": worker.pid}
    path = host.root / "events/live"
    with socket.socket(socket.AF_UNIX) as subscriber:
        subscriber.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        subscriber.connect(str(host.state / ".daemon/control.sock"))
        subscriber.sendall(b"GET /v1/sessions/events/events HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n")
        subscriber.recv(1 << 16)
        began, taken, last = time.monotonic(), 0, b""
        before, most = {name: _heap(pid) for name, pid in pids.items()}, dict.fromkeys(pids, 0.0)
        while last.count(b"/live") == 0 or taken < EVENTS // 2:
            if taken % 100 == 0:
                path.write_text("x")
                most = {name: max(most[name], _heap(pid)) for name, pid in pids.items()}
            received = subscriber.recv(1 << 16)
            taken += received.count(b"\nid: ")
            last = last[-10:] + received
            time.sleep(0.008)
    return {
        "events": taken,
        "seconds": round(time.monotonic() - began, 1),
        "growth_mib": {name: round(most[name] - before[name], 1) for name in pids},
        "private_mib": {name: round(before[name], 1) for name in pids},
    }


QUESTIONS: dict[str, Callable[[Host], Figures]] = {
    "mount": mount,
    "storm": storm,
    "untar": untar,
    "loops": loops,
    "events": events,
}


def main() -> None:
    directory = Path(tempfile.mkdtemp(prefix="bench-host.", dir=os.environ.get("BENCH_DIR")))
    try:
        with serving(directory) as host:
            for name in sys.argv[1:] or QUESTIONS:
                print(json.dumps({name: QUESTIONS[name](host)}), flush=True)
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
