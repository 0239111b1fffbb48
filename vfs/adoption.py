"""Adoption: files that are in the persistence and not yet in the session get inodes, without being asked for.

One record for each thousand files, no request for any. Owner is that of the directory which a file or directory
appears in; mode and mtime as the FileRef says, else 0644 and the time it was made. Nothing is awaited within one
`adopt`. Called at opening, by `refresh`, and for the other side of a conflict.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

from vfs.description import Row
from vfs.fileref import FileRef
from vfs.inode import Inode
from vfs.records import Adopt
from vfs.routes import Route

if TYPE_CHECKING:
    from vfs.persisted import PersistedSession

__all__ = ["adopt", "make_base"]

log = logging.getLogger(__name__)

_BATCH = 1000
_NOTHING: Mapping[bytes, Row] = MappingProxyType({})
_Fields = tuple[int, bytes, int, int, int, int, int, int, str | None, dict[str, str] | None]


def adopt(
    session: PersistedSession, refs: Iterable[FileRef], described: Mapping[bytes, Row] = _NOTHING
) -> list[tuple[str, str]]:
    """Inodes for all `refs` whose path is free. The result names those whose path is not, and why.

    What `described` says of a path's mode, owner and time wins over the FileRef. The kernel is told of each name, as it
    may know that there was none.
    """
    rows = _Rows(session, described)
    refused = []
    for ref in refs:
        why = rows.add(ref)
        if why is not None:
            refused.append((ref.path, why))
        elif len(rows.rows) >= _BATCH:
            rows.commit()
    rows.commit()
    return refused


def make_base(session: PersistedSession, route: Route) -> None:
    """The route's directory is there, also where its persistence has no file yet, or nobody may make one."""
    rows = _Rows(session, _NOTHING)
    why = rows.directory(os.fsencode(route.base))
    if isinstance(why, str):
        log.warning("%s: the route %r has no directory: %s", session.id, route.base, why)
    rows.commit()


class _Rows:
    """Rows of the next record. `made` are directories that it will make: path -> (ino, uid, gid, session's inode)."""

    def __init__(self, session: PersistedSession, described: Mapping[bytes, Row]) -> None:
        self.session = session
        self.described = described
        self.rows: list[_Fields] = []
        self._directories: dict[bytes, tuple[int, int, int]] = {}
        self._names: list[tuple[int, bytes]] = []
        self._now = time.time_ns()
        self._next_ino = session.namespace.next_ino

    def add(self, ref: FileRef) -> str | None:
        path = os.fsencode(ref.path)
        parent_path, _, name = path.rpartition(b"/")
        found = self.directory(parent_path)
        if isinstance(found, str):
            return found
        if self.session.at(path) is not None:
            return "the session has something else there"
        parent, uid, gid = found
        mode = stat.S_IFREG | (0o644 if ref.mode is None else ref.mode & 0o777)
        mtime_ns = int(ref.created_at.timestamp()) * 10**9 if ref.mtime_ns is None else ref.mtime_ns
        row = self.described.get(path)
        if row is not None and row.is_file:
            mode, uid, gid = row.mode, row.uid, row.gid
            if (row.version, row.size) == (ref.version, ref.size):
                mtime_ns = row.mtime_ns
        self._row(parent, name, mode, uid, gid, ref.size, mtime_ns, ref.version, ref.metadata or None)
        return None

    def directory(self, path: bytes) -> tuple[int, int, int] | str:
        """Number and owner of the directory, which is made if it is not there; or why it cannot be."""
        known = self._directories.get(path)
        if known is not None:
            return known
        inode: Inode | None = self.session.at(path)
        if inode is not None:
            if inode.entries is None:
                return f"{os.fsdecode(path)} is not a directory in the session"
            found = inode.ino, inode.uid, inode.gid
        else:
            parent_path, _, name = path.rpartition(b"/")
            parent = self.directory(parent_path)
            if isinstance(parent, str):
                return parent
            mode, uid, gid, mtime_ns = stat.S_IFDIR | 0o755, parent[1], parent[2], self._now
            row = self.described.get(path)
            if row is not None and stat.S_ISDIR(row.mode):
                mode, uid, gid, mtime_ns = row.mode, row.uid, row.gid, row.mtime_ns
            found = self._row(parent[0], name, mode, uid, gid, 0, mtime_ns, None, None), uid, gid
        self._directories[path] = found
        return found

    def _row(
        self,
        parent: int,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        size: int,
        mtime_ns: int,
        version: str | None,
        metadata: dict[str, str] | None,
    ) -> int:
        ino = self._next_ino
        self._next_ino += 1
        self.rows.append((parent, name, ino, mode, uid, gid, size, mtime_ns, version, metadata))
        self._names.append((parent, name))
        return ino

    def commit(self) -> None:
        if self.rows:
            self.session.commit_foreign(Adopt(self.rows, self._now))
            self.session.outdated(self._names, ())
            self.rows, self._names = [], []
