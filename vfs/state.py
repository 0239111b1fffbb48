"""The state directory of one session: who has it open, which version wrote it, and what was left behind by a crash.

session.json   version, id, when it was made; written last when a session is made: where it is, the rest must be
lock           flock(2)ed while the session is open; holds the machine's boot id while it is, blanks once it was closed
               cleanly. It is only ever written in place, so that a session can be opened on a disk that is full
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path
from typing import Any

import msgspec

from vfs.durable import sync_directory, write_durably
from vfs.errors import DamagedState, StateInUse, UnsupportedState, error
from vfs.journal import segment_path, segments

__all__ = ["VERSION", "State"]

VERSION = 1


class State:
    """`crashed`: the last process that had it open did not close it; `powered_off`: the machine went down with it."""

    def __init__(self, directory: Path, session_id: str) -> None:
        """Take the directory, making it where it is not there yet.

        StateInUse if another process has it; UnsupportedState, DamagedState; PermissionError where it cannot be
        written.
        """
        self.directory = directory
        try:
            if not directory.exists():
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                sync_directory(directory.parent)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as e:
            why = f"the state cannot be kept here: {e.strerror}; let this user write here, or choose another --state"
            raise error(e.errno or errno.EIO, directory, why) from None
        try:
            self._acquire()
            self.about = self._read(session_id) if self._is_made() else self._make(session_id)
            left = os.pread(self._lock, 64, 0).strip()
            self.crashed = bool(left)
            self.powered_off = self.crashed and left != _boot_id()
            os.pwrite(self._lock, _boot_id(), 0)
            os.fsync(self._lock)
        except BaseException:
            os.close(self._lock)
            raise

    def _acquire(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateInUse(str(self.directory)) from None

    def _is_made(self) -> bool:
        """Is there a session, or nothing but what a crash left of the making of one?"""
        path = self.directory / "session.json"
        if path.exists():
            return True
        remains = [segment_path(self.directory, segment) for segment in segments(self.directory)]
        if (self.directory / "image").exists() or any(segment.stat().st_size for segment in remains):
            raise DamagedState(str(path), "it is not there, though the session is")
        return False

    def _make(self, session_id: str) -> dict[str, Any]:
        (self.directory / "content").mkdir(mode=0o700, exist_ok=True)
        os.close(os.open(segment_path(self.directory, 0), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        about = {"version": VERSION, "session": session_id, "made_ns": time.time_ns()}
        write_durably(self.directory / "session.json", msgspec.json.encode(about))
        return about

    def _read(self, session_id: str) -> dict[str, Any]:
        path = self.directory / "session.json"
        try:
            about = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        except msgspec.DecodeError as e:
            raise DamagedState(str(path), str(e)) from e
        if about.get("version") != VERSION:
            raise UnsupportedState(str(self.directory), about.get("version"))
        if about.get("session") != session_id:
            raise DamagedState(str(path), f"it is of session {about.get('session')!r}, not {session_id!r}")
        content = self.directory / "content"
        if not content.is_dir():
            raise DamagedState(str(content), "it is not there, though the session is")
        return about

    def close(self, *, clean: bool) -> None:
        """Let go of the directory; `clean` says that all is on disk."""
        if clean:
            os.pwrite(self._lock, b" " * len(_boot_id()), 0)
        os.close(self._lock)


def _boot_id() -> bytes:
    return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()
