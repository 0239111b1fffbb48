"""Describe: keeps the description of the tree in a persistence that can hold one, and takes it up at opening.

Saved when the tree has been left alone for a moment and at every barrier, on the condition that nobody else has saved
meanwhile; then theirs is taken up first. Taking up only adds: what this session has, and has changed, stays.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec
import trio

from vfs import description
from vfs.description import Row
from vfs.durable import write_durably
from vfs.errors import Conflict, error
from vfs.inode import Inode
from vfs.pending import PERMANENT
from vfs.persistence import Persistence
from vfs.records import (
    Link,
    Make,
    Rename,
    Setattr,
    Setxattr,
    Stored,
)
from vfs.routes import Route

if TYPE_CHECKING:
    from vfs.persisted import PersistedSession

__all__ = ["Describe", "describe"]

log = logging.getLogger(__name__)

QUIET, LONGEST = 3.0, 30.0  # seconds without a change before it is saved; with changes all the time
SLICE = 1000
TRIES = 5
REMEMBERED = "described.json"  # in the state directory: the version of each route's description that is known here


def describe(session: PersistedSession, route: Route) -> Describe | None:
    """For a route whose persistence keeps images."""
    persistence = route.persistence
    if persistence is None or not {"on_load_image", "on_save_image"} <= persistence.can:
        return None
    return Describe(session, route, persistence)


class Describe:
    """For one route."""

    def __init__(self, session: PersistedSession, route: Route, persistence: Persistence) -> None:
        self.session = session
        self.namespace = session.namespace
        self.route = route
        self.persistence = persistence
        self.rows: Mapping[bytes, Row] = {}
        self.error: OSError | None = None
        self._version: str | None = None
        self._known = False
        self._before: frozenset[int] = frozenset()
        self.listening = False  # not before what is there has been taken up
        self._only_read = session.read_only  # since it was opened: it has nothing to say
        self._changes = 0
        self._saved = 0
        self._wake = trio.Event()
        self._lock = trio.Lock()

    def changed(self) -> None:
        """Something of the tree has changed."""
        if self.listening:
            self._changes += 1
            self._wake.set()

    @property
    def pending(self) -> bool:
        return self._changes != self._saved and not (self._only_read and self.session.read_only)

    # ---- saving

    async def run(self) -> None:
        while True:
            self._wake = trio.Event()
            if not self.pending:
                await self._wake.wait()
            began = trio.current_time()
            while trio.current_time() < began + LONGEST:
                self._wake = trio.Event()
                with trio.move_on_after(QUIET):
                    await self._wake.wait()
                    continue
                break
            try:
                await self.save()
            except OSError as e:
                if self.error is None:
                    log.warning(
                        "%s: the description of the tree is not saved: %s; it is tried again", self.session.id, e
                    )
                self.error = e
                await trio.sleep(QUIET)

    async def save(self) -> None:
        """The persistence describes the tree as it is, or as it was when this was called."""
        async with self._lock:
            for _ in range(TRIES):
                if not self.pending:
                    return
                changes = self._changes
                image = await trio.to_thread.run_sync(description.encode, await self._build())
                try:
                    self._version = await self.persistence.save_image(image, {"if_version": self._version})
                except Conflict:
                    await self.load()
                    await self.take_up(frozenset(self.namespace.inodes))
                    continue
                self._saved, self.error = changes, None
                self._remember()
                return
            raise error(errno.EAGAIN, self.session.id, "someone else saves the description of the tree all the time")

    async def _build(self) -> list[Row]:
        base = os.fsencode(self.route.base)
        root = self.session.at(base)
        if root is None or root.entries is None:
            return []
        rows = [description.row(base, root, None)]
        stack: list[tuple[bytes, Inode]] = [(base, root)]
        while stack:
            directory, inode = stack.pop()
            for dentry in list((inode.entries or {}).values()):
                path = directory + b"/" + dentry.name if directory else dentry.name
                place = self.session.routes.for_path(path.split(b"/"), dentry.inode.is_dir)
                if place.route is not self.route or place.persistence is None:
                    continue
                rows.append(description.row(path, dentry.inode, self.namespace.remote.get(path)))
                if dentry.inode.is_dir:
                    stack.append((path, dentry.inode))
                if len(rows) % SLICE == 0:
                    await trio.lowlevel.checkpoint()
        return rows

    async def settle(self) -> None:
        """Nothing is pending when this returns, or `error` is one that will not pass by itself."""
        while self.pending:
            try:
                await self.save()
            except OSError as e:
                self.error = e
                if e.errno in PERMANENT:
                    return
                await trio.sleep(1)

    # ---- taking up

    async def begin(self, *, fresh: bool) -> None:
        """At opening. What this state directory has saved or taken up itself says nothing new, and is let be."""
        try:
            await self.load()
        except OSError as e:
            if fresh:
                raise
            log.warning("%s: the tree's description cannot be read: %s", self.session.id, e)
            self.error = e
        self._known = not fresh and self._version == self._remembered().get(self.route.base)
        self._changes += 1  # a crash may have come before the last save; one too many does no harm

    def resume(self, *, saved: bool) -> None:
        """Go on where an earlier process of this state directory was, without asking the persistence. Unless that one
        left with everything `saved`, a crash may have come before the last save."""
        self._version = self._remembered().get(self.route.base)
        self._known = self.listening = True
        if not saved:
            self._changes += 1

    async def catch_up(self, before: frozenset[int]) -> None:
        """After `resume` and a listing: what someone else saved meanwhile. What cannot be had now, the next save finds
        out."""
        async with self._lock:
            known = self._version
            try:
                await self.load()
            except OSError as e:
                log.warning("%s: the tree's description cannot be read: %s", self.session.id, e)
                return
            self._known = self._version == known
            await self.take_up(before)

    def _remembered(self) -> dict[str, str]:
        path = self.session.directory / REMEMBERED
        return msgspec.json.decode(path.read_bytes(), type=dict[str, str]) if path.exists() else {}

    def _remember(self) -> None:
        if self._version is not None:
            versions = {**self._remembered(), self.route.base: self._version}
            write_durably(self.session.directory / REMEMBERED, msgspec.json.encode(versions))

    async def load(self) -> None:
        """What was saved last, by anyone."""
        self._known = False
        found = await self.persistence.load_image()
        if found is None:
            self.rows, self._version = {}, None
        else:
            image, self._version = found
            self.rows = await trio.to_thread.run_sync(description.decode, image, self.persistence.name)

    async def take_up(self, before: frozenset[int]) -> None:
        """Add to the tree what the description says and the listing could not: after files were adopted.

        `before` are inodes that the session has of its own; they stay as they are.
        """
        if self._known:
            self.rows = {}
            return
        self._before = before
        first: dict[int, bytes] = {}
        directories: list[Row] = []
        for number, row in enumerate(self.rows.values(), 1):
            if stat.S_ISDIR(row.mode):
                self._make(row)
                directories.append(row)
            elif not row.is_file:
                self._make(row)
            elif row.describes(self.namespace.remote.get(row.path)):
                self._file(row, first.setdefault(row.ino, row.path))
            if number % SLICE == 0:
                await trio.lowlevel.checkpoint()
        for row in directories:
            inode = self.session.at(row.path)
            if inode is not None and inode.mtime_ns != row.mtime_ns and inode.ino not in self._before:
                self._attributes(inode, row)
        self.rows = {}
        self._remember()

    def _make(self, row: Row) -> None:
        inode = self.session.at(row.path)
        if inode is None:
            directory, _, name = row.path.rpartition(b"/")
            parent = self.session.at(directory)
            if parent is None or parent.entries is None or not name:
                return
            ino = self.namespace.next_ino
            made = Make(parent.ino, name, ino, row.mode, row.uid, row.gid, row.mtime_ns, 0, row.rdev, row.target)
            self.session.commit_foreign(made)
            self.session.outdated([(parent.ino, name)], ())
            inode = self.namespace.inodes[ino]
        elif inode.ino in self._before or stat.S_IFMT(inode.mode) != stat.S_IFMT(row.mode):
            return
        self._attributes(inode, row)

    def _file(self, row: Row, first: bytes) -> None:
        """A file that was adopted as it was described; with the inode of `first` where that was one file."""
        inode, other = self.session.at(row.path), self.session.at(first)
        if inode is None or inode.ino in self._before or inode.generation:
            return
        if other is not None and other is not inode and not other.generation and other.size == inode.size:
            self._link(row.path, inode, other)
            return
        self._attributes(inode, row)

    def _link(self, path: bytes, inode: Inode, other: Inode) -> None:
        """Two paths of one inode again. The name is never gone: after a crash it is one of the two."""
        entry = self.namespace.remote.entries[path]
        directory, _, name = path.rpartition(b"/")
        parent = self.session.at(directory)
        assert parent is not None
        now = time.time_ns()
        aside = b"mount-session-link-%d" % inode.ino
        self.session.commit_foreign(Link(other.ino, parent.ino, aside, now))
        self.session.commit_foreign(Rename(parent.ino, aside, parent.ino, name, now))
        self.session.commit(Stored(path, other.ino, other.generation, entry.version, entry.size, entry.metadata))
        self.session.let_go(inode)

    def _attributes(self, inode: Inode, row: Row) -> None:
        same = (inode.mode, inode.uid, inode.gid, inode.mtime_ns) == (row.mode, row.uid, row.gid, row.mtime_ns)
        if not same:
            size = inode.size if inode.is_file else None
            mode = stat.S_IMODE(row.mode)
            changed = Setattr(inode.ino, row.mtime_ns, mode, row.uid, row.gid, size, None, row.mtime_ns)
            self.session.commit_foreign(changed)
        for name, value in (row.xattrs or {}).items():
            if not inode.xattrs or name not in inode.xattrs:
                self.session.commit_foreign(Setxattr(inode.ino, name, value, inode.ctime_ns))
