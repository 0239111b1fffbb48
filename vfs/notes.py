"""Notes: what requests have changed, until write-back turns it into pending paths.

A request only leaves its record here. Which directory entry or inode it changed, and what paths that concerns, is found
out later: for any path whose meaning has changed, the highest entry on it that was changed is noted, and the path of
that entry's directory is the same before and after. What is noted is compared as it is by then; so what is made and
deleted in between costs nothing more.

Also known here, because it is told by the same calls: when a file's present generation was first and last written, and
which files no persistence has seen yet. Owned by `WriteBack`.
"""

from __future__ import annotations

import stat
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import trio

from vfs.inode import Inode
from vfs.records import Dirty, Link, Make, Reclaim, Record, Rename, Unlink

if TYPE_CHECKING:
    from vfs.persisted import PersistedSession

__all__ = ["Notes", "Writes"]

SLICE = 100  # paths compared without a checkpoint, about a millisecond
MOST = 5000  # records told that are not taken up; taking them up takes about a millisecond


class Writes:
    """When this generation of a file was first and last written."""

    __slots__ = ("first", "last")

    def __init__(self, now: float) -> None:
        self.first = self.last = now


class Notes:
    """`wake` is called when there is something to compare where there was nothing."""

    def __init__(self, session: PersistedSession, wake: Callable[[], None]) -> None:
        self.session = session
        self.namespace = session.namespace
        self._wake = wake
        self._told: list[Record] = []  # what is not taken up yet
        self._count = 0  # of writes, and of records taken up
        self.writes: dict[int, Writes] = {}
        self._fresh: set[int] = set()
        self._names: deque[tuple[int, bytes]] = deque()
        self._inodes: dict[int, None] = {}
        self._now = trio.lowlevel.current_clock().current_time
        self._steps = 0
        self._kinds: dict[type, Callable[[Any], None]] = {
            Make: self._made,
            Link: self._named,
            Unlink: self._named,
            Rename: self._renamed,
            Dirty: self._dirtied,
            Reclaim: self._reclaimed,
        }
        self.kinds = self._kinds.keys()
        """Of the records that `told` is for."""

    def __bool__(self) -> bool:
        return bool(self._told or self._names or self._inodes)

    @property
    def count(self) -> int:
        """Changes told so far."""
        return self._count + len(self._told)

    @property
    def fresh(self) -> set[int]:
        self._take_up()
        return self._fresh

    # ---- what the session tells

    def told(self, record: Record) -> None:
        """A request pays for no more than this."""
        told = self._told
        told.append(record)
        if len(told) == 1 and not (self._names or self._inodes):
            self._wake()
        elif len(told) == MOST:
            self._take_up()

    def dirty(self, record: Dirty) -> None:
        """As `told`; when it was is needed later."""
        self.writes[record.ino] = Writes(self._now())
        self.told(record)

    def written(self, inode: Inode) -> None:
        self._count += 1
        if (writes := self.writes.get(inode.ino)) is not None:
            writes.last = self._now()

    def released(self, inode: Inode) -> None:
        """After its last close; what is still to be taken up is so then."""
        if inode.ino in self._fresh:
            if not self:
                self._wake()
            self._inodes[inode.ino] = None

    def note_all(self) -> None:
        """Compare everything: at the start, and when what goes where is another now."""
        if not self:
            self._wake()
        self._names.append((self.namespace.root.ino, b""))

    # ---- taking it up

    def _take_up(self) -> None:
        """What was told so far."""
        if self._told:
            told = self._told[:]
            self._told.clear()
            self._count += len(told)
            for record in told:
                self._kinds[type(record)](record)

    def _named(self, record: Link | Unlink) -> None:
        self._names.append((record.parent, record.name))

    def _made(self, record: Make) -> None:
        if stat.S_ISREG(record.mode):
            self._fresh.add(record.ino)
            self._inodes[record.ino] = None

    def _renamed(self, record: Rename) -> None:
        self._names.append((record.old_parent, record.old_name))
        self._names.append((record.new_parent, record.new_name))

    def _dirtied(self, record: Dirty) -> None:
        self._inodes[record.ino] = None

    def _reclaimed(self, record: Reclaim) -> None:
        for ino in record.inos:
            self.writes.pop(ino, None)
            self._fresh.discard(ino)

    # ---- from notes to paths

    async def compare(self, mark: Callable[[bytes], None]) -> None:
        """Have `mark` look at every path that what was noted so far can concern."""
        while self:
            self._take_up()
            while self._names:
                parent, name = self._names[0]  # and gone when all of it was looked at: who compares may be cancelled
                directory = self.namespace.inodes.get(parent)
                if directory is not None and directory.nlink:
                    path = self.namespace.path(directory)
                    await self._mark_under(path + b"/" + name if path and name else path or name, mark)
                self._names.popleft()
            while self._inodes:
                ino, _ = self._inodes.popitem()
                inode = self.namespace.inodes.get(ino)
                if inode is not None:
                    for path in self.session.paths(inode):
                        mark(path)
                    await self._step()

    async def _step(self) -> None:
        self._steps += 1
        if self._steps % SLICE == 0:
            await trio.lowlevel.checkpoint()

    async def _mark_under(self, prefix: bytes, mark: Callable[[bytes], None]) -> None:
        await self._step()
        inode = self.session.at(prefix)
        if inode is None or inode.entries is None or self.namespace.remote.get(prefix) is not None:
            mark(prefix)
        for path in [path for path in self.namespace.remote.under(prefix) if path != prefix]:
            mark(path)
            await self._step()
        directories = [] if inode is None or inode.entries is None else [(prefix, inode)]
        while directories:
            path, directory = directories.pop()
            for dentry in list((directory.entries or {}).values()):
                child = path + b"/" + dentry.name if path else dentry.name
                if dentry.inode.entries is not None:
                    directories.append((child, dentry.inode))
                elif dentry.inode.is_file:
                    mark(child)
                await self._step()
