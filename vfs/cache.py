"""The cache: content that is here and in a persistence too, up to the policy's limit.

Files are dropped least recently used first, and only clean ones: what a path of the persistence holds in the very
generation that is here. When a writer finds the cache full of what is not written back yet it waits for that; after
`Options.cache_wait` it gets ENOSPC. Nothing that only frees space ever waits.

Sizes are those of the files, or of the blocks that are here of a partly fetched one; a sparse file counts for more than
it takes. A file may be larger than the limit: it is written back and dropped as it grows.
"""

from __future__ import annotations

import errno
from collections import OrderedDict
from typing import TYPE_CHECKING

import trio

from vfs.blockmap import BLOCK
from vfs.errors import error
from vfs.inode import Inode
from vfs.records import Evicted, Reclaim

if TYPE_CHECKING:
    from vfs.persisted import PersistedSession

__all__ = ["Cache"]

SHRINK = 64 << 20  # bytes dropped without a checkpoint
LULL = 0.02  # between two looks at what has become clean: each looks at all that is dirty


class Cache:
    """`used` is what the backing files take, by their files' sizes; nothing is counted before there is a limit. What
    stays here in any case (`local_only`, deleted but open) is left out when there is no room."""

    def __init__(self, session: PersistedSession) -> None:
        self.session = session
        self.limit = session.policy.cache_bytes
        self.used = 0
        self._counted = False
        self._sizes: OrderedDict[int, int] = OrderedDict()  # least recently used first

    def limited(self) -> None:
        """The policy has another limit: without one nothing was counted."""
        self.limit = self.session.policy.cache_bytes
        self._counted = False

    async def shrink(self) -> None:
        """What is here and clean goes at once down to the limit, also where nobody reads or writes."""
        while self.limit is not None and self.used_now > self.limit:
            before = self.used
            self.trim(max(self.limit, before - SHRINK))
            if self.used == before:
                return
            await trio.lowlevel.checkpoint()

    @property
    def used_now(self) -> int:
        if not self._counted:
            self._count()
        return self.used

    def _count(self) -> None:
        """What is here already; least recently used is what was changed longest ago."""
        self._counted = True
        self.used = 0
        self._sizes.clear()
        content, namespace = self.session.content, self.session.namespace
        here = [inode for ino in content.inos() if (inode := namespace.inodes.get(ino)) is not None]
        for inode in sorted(here, key=lambda inode: inode.mtime_ns):
            self.touch(inode)

    # ---- what the session tells

    def reclaimed(self, record: Reclaim) -> None:
        if self._sizes:
            for ino in record.inos:
                self._forget(ino)

    # ---- use

    def touch(self, inode: Inode) -> None:
        """The file's content is here, and was just used."""
        if not self._counted:
            self._count()
        size = self._size(inode)
        self.used += size - self._sizes.get(inode.ino, 0)
        self._sizes[inode.ino] = size
        self._sizes.move_to_end(inode.ino)

    def _size(self, inode: Inode) -> int:
        """What is here of the file. A file larger than the limit would else count in full again after each eviction,
        and be written back as a whole for every write that follows."""
        if not inode.remote or not inode.is_file:
            return inode.size
        known = self.session.hydration.map(inode)
        here = (known.blocks - known.missing) * BLOCK
        return min(here, known.limit) + max(0, inode.size - known.limit)

    def _forget(self, ino: int) -> None:
        size = self._sizes.pop(ino, None)
        if size is not None:
            self.used -= size

    async def admit(self, length: int) -> None:
        """Room for `length` bytes more: what is clean goes, and what is dirty is waited for. ENOSPC after a while."""
        limit = self.limit
        if limit is None:
            return
        if not self._counted:
            self._count()
        length = min(length, limit)  # more than that has no room whatever goes
        if self.used + length <= limit:
            return
        self.trim(limit - length)
        if self.used + length <= limit:
            return
        writeback = self.session.writeback
        writeback.limit.urgent += 1
        try:
            wait = self.session.policy.cache_wait
            with trio.move_on_after(self.session.options.cache_wait if wait is None else wait):
                writeback.hurry()
                while self.used + length > limit:
                    await writeback.progressed.wait()
                    await trio.sleep(LULL)
                    self.trim(limit - length)
                return
        finally:
            writeback.limit.urgent -= 1
        raise error(errno.ENOSPC, self.session.id, "the cache is full of what could not be written back yet")

    def trim(self, limit: int) -> None:
        """Drop clean content, least recently used first, until the rest is at most `limit` bytes."""
        if not self._counted or self.limit is None:
            self._count()
        if self.used <= limit:
            return
        chosen, left = [], self.used
        for ino, size in list(self._sizes.items()):
            inode = self.session.namespace.inodes.get(ino)
            if inode is None or not size:
                continue
            if self.is_clean(inode):
                chosen.append(inode)
            elif self._stays_here(inode):
                self._forget(ino)
            else:
                continue
            left -= size
            if left <= limit:
                break
        self.evict(chosen)

    def _stays_here(self, inode: Inode) -> bool:
        """Whether no persistence is going to take it, so that no wait would make room: it is not the cache's."""
        session = self.session
        return all(session.place(path).persistence is None for path in session.paths(inode))

    def is_clean(self, inode: Inode) -> bool:
        """Whether all of it can be had again: a persistence that reads holds it, and nothing is pending for any of its
        paths, nor for another file at a path that holds it: that may be replaced there at any moment."""
        session = self.session
        remote, newest = session.namespace.remote, session.namespace.remote.newest(inode.ino)
        if not inode.nlink or newest is None:
            return False
        path, entry = newest
        if (entry.generation, entry.size) != (inode.generation, inode.size) or remote.is_doubtful(path):
            return False
        persistence = session.place(path).route.persistence
        if persistence is None or not persistence.reads:
            return False
        pending = session.writeback.queue.paths
        return not any(name in pending for name in (*session.paths(inode), *remote.paths(inode.ino)))

    def evict(self, inodes: list[Inode]) -> None:
        """Clean content goes. The map first: a stale one would say that something is here."""
        rows = []
        for inode in inodes:
            self.session.hydration.forget(inode)
            if not inode.remote:
                rows.append((inode.ino, inode.size, inode.mtime_ns))
        if rows:
            self.session.commit(Evicted(rows))
        for inode in inodes:
            self.session.content.remove(inode.ino)
            self._forget(inode.ino)
