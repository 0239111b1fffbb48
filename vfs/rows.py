"""Rows: what the session tells of its changes, as rows of the event log that has yet to be written.

This is what a request pays for an event: a tuple in a list. Also recovery tells of the records that it applies, so
what a crash took of the list is made again by the same code. A file that changes is noted once until its next event
(`_changed`). Nothing here waits or touches the disk; `events` takes it from here.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Callable
from typing import Any, Protocol

import trio

from vfs.inode import Inode
from vfs.journal import Journal
from vfs.namespace import Namespace
from vfs.origin import Origins
from vfs.quota import SoftLimit
from vfs.records import (
    Adopt,
    Dirty,
    Link,
    Make,
    Record,
    Removed,
    Removexattr,
    Rename,
    Renewed,
    Setattr,
    Setxattr,
    Stored,
    Storing,
    Unlink,
)
from vfs.tree import UNNAMED

__all__ = ["NOBODY", "Row", "Rows", "Told"]

_FULL = 500  # rows in the list: written at once
_UNNAMED = UNNAMED.partition(b"%")[0]  # what a file is called that has no name yet: nobody is told
_PATHS = 10_000  # directories whose path is remembered

Row = tuple[Any, ...]
"""As `event.Row`."""


class Told(Protocol):
    """What of the session is looked at here. `actor`: who asks for the change that is being made; `foreign`: someone
    else has made it, in the persistence."""

    namespace: Namespace
    journal: Journal
    actor: Any
    foreign: bool

    def is_open(self, ino: int) -> bool: ...


class Change:
    """A file that has changed since its last event. Times by trio's clock; `content`: not only attributes."""

    __slots__ = ("actor", "content", "last", "since")

    def __init__(self, now: float, content: bool, actor: Any) -> None:
        self.since = self.last = now
        self.content = content
        self.actor = actor


class _Nobody:
    """Who asked is not known but for the thread."""

    __slots__ = ("gid", "pid", "uid")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.uid = self.gid = None


NOBODY = _Nobody(0)
_REMOTE = {"remote": True}


class Rows:
    def __init__(self) -> None:
        self.namespace: Namespace
        self._tree: Told | None = None
        self._starting = False
        self._recovered = True
        self._failed: OSError | None = None
        self._rows: list[Row] = []
        self._changed: dict[int, Change] = {}
        self._openers: dict[int, Any] = {}
        self._paths: dict[int, bytes] = {}
        self._checksums: dict[bytes, bytes] = {}
        self._origins = Origins()
        self._flush_soon = trio.Event()
        self._notes: dict[type, Callable[[Any, Inode | None], None]] = {
            Make: self._named,
            Link: self._named,
            Unlink: self._unlinked,
            Rename: self._renamed,
            Setattr: self._set_attributes,
            Setxattr: self._set_attributes,
            Removexattr: self._set_attributes,
            Dirty: self._dirty,
            Adopt: self._adopted,
            Renewed: self._renewed,
            Storing: self._storing,
            Stored: self._stored,
            Removed: self._removed,
        }

    def write(self) -> bool:
        raise NotImplementedError

    # ---- what the session tells (Observer)

    def committed(self, record: Record, inode: Inode | None) -> None:
        note = self._notes.get(type(record))
        if note is not None:
            note(record, inode)

    def written(self, inode: Inode) -> None:
        change = self._changed.get(inode.ino)
        if change is None or not change.content:
            self._change(inode, True, self._openers.get(inode.ino, NOBODY))

    def released(self, inode: Inode) -> None:
        self._openers.pop(inode.ino, None)
        change = self._changed.pop(inode.ino, None)
        if change is not None:
            self._modified(inode, change)

    def opened(self, ino: int, caller: Any) -> None:
        """Someone has opened a file for writing: what is written to it is theirs."""
        self._openers[ino] = caller
        if caller.pid and not self._origins.is_fresh(caller.pid, time.monotonic()):
            self._origins.look(caller.pid)

    # ---- what write-back and the quota tell

    def failed(self, path: bytes, e: OSError) -> None:
        self._note(("error", time.time_ns(), path, None, None, 0, 0, 0, 0, None, None, {"message": str(e)}))

    def conflicted(self, path: bytes, beside: bytes | None) -> None:
        self._note(("conflict", time.time_ns(), path, beside, None, 0, 0, 0, 0, None, None, None))
        self.write()  # no record tells of it

    def passed(self, limit: SoftLimit) -> None:
        about = {"limit": {"of": limit.of, "used": limit.used, "limit": limit.limit}}
        assert self._tree is not None
        actor = self._tree.actor if limit.ino is None else self._openers.get(limit.ino, NOBODY)
        who = (actor.pid, actor.uid, actor.gid)
        self._note(("soft_limit", time.time_ns(), b"", None, None, 0, 0, 0, *who, about))

    # ---- from records to rows

    def _path(self, parent: int, name: bytes) -> bytes:
        path = self._paths.get(parent)
        if path is None:
            path = self.namespace.path(self.namespace.inodes[parent])
            if len(self._paths) >= _PATHS:
                self._paths.clear()
            self._paths[parent] = path
        return path + b"/" + name if path else name

    def _actor(self, pid: int) -> Any:
        """Who asked for a record with this pid."""
        if self._tree is None or self._tree.foreign:
            return _Nobody(pid) if pid else NOBODY
        actor = self._tree.actor
        return actor if actor.pid == pid else _Nobody(pid)

    def _note(self, row: Row) -> None:
        rows = self._rows
        if not rows:
            self._flush_soon.set()
        rows.append(row)
        pid = row[8]
        if pid and self._tree is not None and not self._origins.is_fresh(pid, time.monotonic()):
            self._origins.look(pid)
        if len(rows) >= _FULL and self._failed is None and self._tree is not None:
            self.write()

    def _told(self, kind: str, time_ns: int, path: bytes, inode: Inode, actor: Any, old: bytes | None = None) -> None:
        self._note(
            (
                kind,
                time_ns,
                path,
                old,
                inode.mode,
                inode.size,
                inode.mtime_ns,
                inode.ctime_ns,
                actor.pid,
                actor.uid,
                actor.gid,
                _REMOTE if self._tree is not None and self._tree.foreign else None,
            )
        )

    def _named(self, r: Make | Link, inode: Inode | None) -> None:
        assert inode is not None
        if r.name.startswith(_UNNAMED):
            return
        if isinstance(r, Link) and len(inode.dentries) == 1:
            self._changed.pop(r.ino, None)  # all that it holds is news with its first name
        self._told("created", r.time_ns, self._path(r.parent, r.name), inode, self._actor(r.pid))

    def _unlinked(self, r: Unlink, inode: Inode | None) -> None:
        assert inode is not None
        if r.name.startswith(_UNNAMED):
            return
        if inode.entries is not None:
            self._paths.pop(inode.ino, None)
        elif not inode.nlink:
            self._changed.pop(inode.ino, None)
        self._told("deleted", r.time_ns, self._path(r.parent, r.name), inode, self._actor(r.pid))

    def _renamed(self, r: Rename, inode: Inode | None) -> None:
        assert inode is not None
        actor = self._actor(r.pid)
        if inode.entries is not None or r.exchange:
            self._paths.clear()
        old, new = self._path(r.old_parent, r.old_name), self._path(r.new_parent, r.new_name)
        if r.old_name.startswith(_UNNAMED):
            self._changed.pop(inode.ino, None)
            self._told("modified", r.time_ns, new, inode, actor)
            return
        self._told("moved", r.time_ns, new, inode, actor, old)
        if r.exchange:
            entries = self.namespace.inodes[r.old_parent].entries
            assert entries is not None
            self._told("moved", r.time_ns, old, entries[r.old_name].inode, actor, new)

    def _set_attributes(self, r: Setattr | Setxattr | Removexattr, inode: Inode | None) -> None:
        assert inode is not None
        if inode is self.namespace.root:
            return
        content = isinstance(r, Setattr) and (r.size is not None or self._recovered)
        if content or not isinstance(r, Setattr) or not (r.mode is r.uid is r.gid is r.mtime_ns is None):
            self._change(inode, content, self._actor(r.pid))

    def _dirty(self, r: Dirty, inode: Inode | None) -> None:
        if self._recovered and inode is not None:
            self._change(inode, True, NOBODY)

    def _adopted(self, r: Adopt, inode: Inode | None) -> None:
        if self._starting:
            return
        for parent, name, _, mode, _, _, size, mtime_ns, *_ in r.rows:
            self._note(
                (
                    *("created", r.time_ns, self._path(parent, name), None),
                    *(mode, max(0, size), mtime_ns, mtime_ns, 0, None, None, _REMOTE),
                )
            )

    def _renewed(self, r: Renewed, inode: Inode | None) -> None:
        if inode is not None:
            row = ("modified", r.time_ns, r.path, None, inode.mode, max(0, r.size), r.mtime_ns, inode.ctime_ns)
            self._note((*row, 0, None, None, _REMOTE))

    def _storing(self, r: Storing, inode: Inode | None) -> None:
        self._checksums[r.path] = r.checksum

    def _stored(self, r: Stored, inode: Inode | None) -> None:
        about: dict[str, Any] = {"version": r.version, "metadata": r.metadata}
        if checksum := self._checksums.pop(r.path, None):
            about["checksum"] = checksum.hex()
        mode, mtime_ns, ctime_ns = (
            (stat.S_IFREG, 0, 0) if inode is None else (inode.mode, inode.mtime_ns, inode.ctime_ns)
        )
        row = ("synced", time.time_ns(), r.path, r.source or None, mode, r.size, mtime_ns, ctime_ns)
        self._note((*row, 0, None, None, about))

    def _removed(self, r: Removed, inode: Inode | None) -> None:
        self._checksums.pop(r.path, None)
        about = {"absent": True}
        self._note(("synced", time.time_ns(), r.path, None, stat.S_IFREG, 0, 0, 0, 0, None, None, about))

    # ---- files that change

    def _change(self, inode: Inode, content: bool, actor: Any) -> None:
        now = trio.current_time()
        change = self._changed.get(inode.ino)
        if change is None:
            if not self._changed and not self._rows:
                self._flush_soon.set()
            self._changed[inode.ino] = Change(now, content, actor)
            return
        change.last = now
        if content and not change.content:
            change.content, change.actor = True, actor

    def _modified(self, inode: Inode, change: Change) -> None:
        if not inode.dentries:
            return
        dentry = inode.dentries[0]
        actor = change.actor
        about: dict[str, Any] | None = None if change.content else {"attributes": True}
        self._note(
            (
                "modified",
                time.time_ns(),
                self._path(dentry.parent.ino, dentry.name),
                None,
                inode.mode,
                inode.size,
                inode.mtime_ns,
                inode.ctime_ns,
                actor.pid,
                actor.uid,
                actor.gid,
                about,
            )
        )
