"""Kills processes of a mounted session: one worker at a time, at random or at a named point of the code."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DEADLINE = 60.0


def worker_of(session: str) -> int | None:
    """The process that serves the session now."""
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            title = Path("/proc", entry, "cmdline").read_bytes().split(b"\0")[0]
        except (FileNotFoundError, ProcessLookupError):  # ended since the listing
            continue
        if title == f"mount-session: worker {session}".encode():
            return int(entry)
    return None


def other_worker(session: str, than: int | None) -> int:
    """The worker once it is another process than `than`."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        pid = worker_of(session)
        if pid is not None and pid != than:
            return pid
        threading.Event().wait(0.005)
    raise AssertionError(f"no other worker of {session} than {than} after {DEADLINE} s")


def kill_worker(session: str) -> int:
    pid = other_worker(session, None)
    os.kill(pid, signal.SIGKILL)
    return pid


class Killer:
    """Kills the session's workers, one after another, from a thread of its own."""

    def __init__(self, session: str, shortest: float, longest: float) -> None:
        self.kills = 0
        self._session = session
        self._pause = shortest, longest
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        last: int | None = None
        chance = random.Random(4)
        while not self._enough.is_set():
            last = other_worker(self._session, last)
            if self._enough.wait(chance.uniform(*self._pause)):
                return
            try:
                os.kill(last, signal.SIGKILL)
            except ProcessLookupError:  # it was stopped meanwhile
                return
            self.kills += 1

    def stop(self) -> None:
        self._enough.set()
        self._thread.join()

    def start(self) -> None:
        self._thread.start()


@contextmanager
def killing(session: str, shortest: float, longest: float | None = None) -> Iterator[Killer]:
    """While the block runs, the session's worker is killed again and again, after `shortest` to `longest` seconds."""
    killer = Killer(session, shortest, longest or shortest)
    killer.start()
    try:
        yield killer
    finally:
        killer.stop()
