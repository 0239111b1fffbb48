"""A disk that keeps what was synced and nothing else: content by fsync of the file, names by fsync of the directory."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from vfs.content import Content


class StrictDisk:
    """All below `root`, from now on; what `lose_power` leaves is what the machine finds at its next boot."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self._contents: dict[int, bytes] = {}
        self._names: dict[Path, dict[str, int]] = {}
        self._held: list[int] = []  # else the number of a deleted file would be that of another
        for name in ("fsync", "fdatasync"):
            monkeypatch.setattr(os, name, self._sync)
        monkeypatch.setattr(Content, "sync_all", lambda content: self.sync_all())

    def _sync(self, fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            self._sync_directory(path)
        else:
            self._contents[os.fstat(fd).st_ino] = Path(f"/proc/self/fd/{fd}").read_bytes()
            self._held.append(os.dup(fd))

    def _sync_directory(self, directory: Path) -> None:
        self._names[directory] = {entry.name: entry.inode() for entry in os.scandir(directory) if entry.is_file()}

    def sync_all(self) -> None:
        """As syncfs(2) does."""
        for directory, _, files in os.walk(self.root):
            self._sync_directory(Path(directory))
            for name in files:
                fd = os.open(Path(directory, name), os.O_RDONLY)
                self._sync(fd)
                os.close(fd)

    def lose_power(self) -> None:
        for session in self.root.iterdir():
            for path in [path for path in session.rglob("*") if path.is_file()]:
                path.unlink()
        for directory, names in self._names.items():
            directory.mkdir(parents=True, exist_ok=True)
            for name, number in names.items():
                (directory / name).write_bytes(self._contents.get(number, b""))
        for session in self.root.iterdir():
            shutil.rmtree(session / "events", ignore_errors=True)
            (session / "lock").write_text("another boot")

    def close(self) -> None:
        for fd in self._held:
            os.close(fd)
        self._held.clear()
