"""Copies: what a cache knows of its files, kept over restarts in a database that no container sees.

Without it every file would be a stranger after a restart: an old copy could not be told from an edit, and uploading it
would bring back what others have replaced or deleted since."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vfs.errors import error

__all__ = ["Copies", "Copy"]

_SCHEMA = """
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS copies (path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, version TEXT);
"""


@dataclass(frozen=True, slots=True)
class Copy:
    """A file of the directory as it was when it was the same as the object of `version`."""

    size: int
    mtime_ns: int
    version: str

    def is_of(self, status: os.stat_result) -> bool:
        return (self.size, self.mtime_ns) == (status.st_size, status.st_mtime_ns)


class Copies:
    """The newest copy by path, of files that have been edited since too."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._database: sqlite3.Connection | None = None

    def load(self) -> list[tuple[str, Copy]]:
        """All, oldest first."""
        rows = self._run("SELECT path, size, mtime_ns, version FROM copies ORDER BY rowid")
        return [(os.fsdecode(path), Copy(size, mtime_ns, version)) for path, size, mtime_ns, version in rows]

    def put(self, path: str, copy: Copy) -> None:
        row = (os.fsencode(path), copy.size, copy.mtime_ns, copy.version)
        self._run("INSERT OR REPLACE INTO copies VALUES (?, ?, ?, ?)", row)

    def drop(self, path: str) -> None:
        self._run("DELETE FROM copies WHERE path = ?", (os.fsencode(path),))

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def remove(self) -> None:
        self.close()
        for suffix in ("", "-wal", "-shm"):
            self.file.with_name(self.file.name + suffix).unlink(missing_ok=True)

    def _run(self, statement: str, values: Iterable[object] = ()) -> list[tuple[bytes, int, int, str]]:
        try:
            if self._database is None:
                # Opened in a thread, used in the loop; a commit is a write(2) and waits for no disk.
                self._database = sqlite3.connect(self.file, isolation_level=None, check_same_thread=False)
                self._database.executescript(_SCHEMA)
            return self._database.execute(statement, tuple(values)).fetchall()
        except sqlite3.Error as e:
            raise error(errno.EIO, self.file, str(e)) from e
