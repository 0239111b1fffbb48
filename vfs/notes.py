"""Notes: what requests have changed, until write-back turns it into pending paths.

A request only notes which directory entry or inode it changed. Turning notes into paths may come later: for any path
whose meaning has changed, the highest entry on it that was changed is noted, and the path of that entry's directory is
the same before and after. What is noted is compared as it is by then; so what is made and deleted in between costs
nothing more.

Also known here, because it is told by the same calls: when a file's present generation was first and last written, and
which files no persistence has seen yet. Owned by `WriteBack`.
"""

from __future__ import annotations

import stat
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from vfs.inode import Inode
from vfs.records import Dirty, Link, Make, Reclaim, Rename, Unlink

if TYPE_CHECKING:
    from vfs.persisted import PersistedSession

__all__ = ["Notes", "Writes"]

SLICE = 100  # paths compared without a checkpoint, about a millisecond


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
        self.writes: dict[int, Writes] = {}
        self.fresh: set[int] = set()
        self.count = 0  # changes told so far
        self._wake = wake
        self._now = trio.lowlevel.current_clock().current_time
        self._names: deque[tuple[int, bytes]] = deque()
        self._inodes: dict[int, None] = {}
        self._steps = 0

    def __bool__(self) -> bool:
        return bool(self._names or self._inodes)

    # ---- what the session tells

    def written(self, inode: Inode) -> None:
        self.count += 1
        writes = self.writes.get(inode.ino)
        if writes is not None:
            writes.last = self._now()

    def released(self, inode: Inode) -> None:
        if inode.ino in self.fresh:
            self._note_inode(inode.ino)

    def named(self, record: Link | Unlink) -> None:
        self.count += 1
        self._note_name(record.parent, record.name)

    def made(self, record: Make) -> None:
        self.count += 1
        if stat.S_ISREG(record.mode):
            self.fresh.add(record.ino)
            self._note_inode(record.ino)

    def renamed(self, record: Rename) -> None:
        self.count += 1
        self._note_name(record.old_parent, record.old_name)
        self._note_name(record.new_parent, record.new_name)

    def dirty(self, record: Dirty) -> None:
        self.count += 1
        self.writes[record.ino] = Writes(self._now())
        self._note_inode(record.ino)

    def reclaimed(self, record: Reclaim) -> None:
        self.count += 1
        for ino in record.inos:
            self.writes.pop(ino, None)
            self.fresh.discard(ino)

    def note_all(self) -> None:
        """Compare everything: at the start, and when what goes where is another now."""
        self._note_name(self.namespace.root.ino, b"")

    def _note_inode(self, ino: int) -> None:
        is_first = not (self._inodes or self._names)
        self._inodes[ino] = None
        if is_first:
            self._wake()

    def _note_name(self, parent: int, name: bytes) -> None:
        is_first = not (self._inodes or self._names)
        self._names.append((parent, name))
        if is_first:
            self._wake()

    # ---- from notes to paths

    async def compare(self, mark: Callable[[bytes], None]) -> None:
        """Have `mark` look at every path that what was noted so far can concern."""
        while self:
            while self._names:
                parent, name = self._names.popleft()
                directory = self.namespace.inodes.get(parent)
                if directory is not None and directory.nlink:
                    path = self.namespace.path(directory)
                    await self._mark_under(path + b"/" + name if path and name else path or name, mark)
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
