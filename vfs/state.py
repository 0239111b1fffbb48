"""The state directory of one session: who has it open, which version wrote it, and what was left behind by a crash.

session.json   version, id, when it was made
lock           flock(2)ed while the session is open
running        there while the session is open: the machine's boot id; found at opening, it tells of a crash
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Any

import msgspec

from vfs.errors import DamagedState, StateInUse, UnsupportedState

__all__ = ["VERSION", "State"]

VERSION = 1


class State:
    def __init__(self, directory: Path, session_id: str) -> None:
        """Take the directory, making it where it is not there yet.

        StateInUse if another process has it; UnsupportedState, DamagedState; PermissionError where it cannot be
        written.
        """
        self.directory = directory
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            self._acquire()
            self._check_version(session_id)
        except BaseException:
            os.close(self._lock)
            raise
        running = directory / "running"
        self.crashed = running.exists()
        self.powered_off = self.crashed and running.read_text() != _boot_id()
        _write_durably(running, _boot_id().encode())

    def _acquire(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateInUse(str(self.directory)) from None

    def _check_version(self, session_id: str) -> None:
        path = self.directory / "session.json"
        if not path.exists():
            self.about: dict[str, Any] = {"version": VERSION, "session": session_id, "made_ns": time.time_ns()}
            _write_durably(path, msgspec.json.encode(self.about))
            return
        try:
            self.about = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except msgspec.DecodeError as e:
            raise DamagedState(str(path), str(e)) from e
        if self.about.get("version") != VERSION:
            raise UnsupportedState(str(self.directory), self.about.get("version"))
        if self.about.get("session") != session_id:
            raise DamagedState(str(path), f"it is of session {self.about.get('session')!r}, not {session_id!r}")

    def close(self, *, clean: bool) -> None:
        """Let go of the directory; `clean` says that all is on disk."""
        if clean:
            (self.directory / "running").unlink()
        os.close(self._lock)


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _write_durably(path: Path, content: bytes) -> None:
    """Written aside, synced, renamed: there is never half of it."""
    aside = path.with_name(path.name + ".new")
    with open(aside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)
    fd = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
