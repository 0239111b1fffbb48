"""Hydration: brings content from the persistence into backing files, when it is read or partly written.

An inode with `remote` set has content that is not (all) here; which blocks are, its `BlockMap` says. What is fetched is
the version that `namespace.remote` names (`if_version`), so two versions never meet in one file: if the persistence has
another one by now, a clean file is renewed as a whole. `Fetches` bring blocks, `Fills` put them into the backing file.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from vfs.blockmap import BLOCK, BlockMap
from vfs.errors import error
from vfs.fetch import SPAN, Fetches
from vfs.fill import Fills
from vfs.fresh import Fresh
from vfs.inode import Inode
from vfs.readahead import MUCH, ReadAhead
from vfs.records import Adopt, Evicted, Hydrated, Reclaim, Renewed
from vfs.remote import UNKNOWN_SIZE

if TYPE_CHECKING:
    from vfs.persisted import PersistedSession

__all__ = ["Hydration"]

log = logging.getLogger(__name__)

PARALLEL = 8  # requests under way for a file that is fetched as a whole
FAR = 1024  # blocks: 256 MiB, ahead of who reads what comes in streams
CACHES = 4  # times as much has room in the cache


class Hydration:
    def __init__(self, session: PersistedSession, *, powered_off: bool) -> None:
        self.session = session
        self.namespace = session.namespace
        self.content = session.content
        self.unsized: set[int] = set()
        self.maps: dict[int, BlockMap] = {}
        self._powered_off = powered_off
        self._ahead = ReadAhead()
        self.fresh = Fresh()
        self.fills = Fills(session, self)
        self._fetches = Fetches(session, self, self.fills)

    def begin(self) -> None:
        """At the start of a session: what recovery cannot know."""
        for entry in self.namespace.remote.entries.values():
            if entry.size == UNKNOWN_SIZE:
                self.unsized.add(entry.ino)
        for path in Path(self.content.directory).glob("*.map*"):
            inode = self.namespace.inodes.get(int(path.name.partition(".")[0]))
            if inode is None or not inode.remote or path.suffix != ".map":
                path.unlink()
        if self._powered_off:
            self._distrust()

    def _distrust(self) -> None:
        """After power loss: content that the persistence holds is taken from there; what the disk lost is not known."""
        rows = []
        for path, entry in self.namespace.remote.entries.items():
            inode = self.namespace.inodes.get(entry.ino)
            persistence = self.session.place(path).route.persistence
            if inode is None or inode.remote or entry.generation != inode.generation or entry.size == UNKNOWN_SIZE:
                continue
            if persistence is not None and persistence.reads and not self.namespace.remote.is_doubtful(path):
                rows.append((inode.ino, entry.size, inode.mtime_ns))
        for first in range(0, len(rows), 1000):
            self.session.commit(Evicted(rows[first : first + 1000]))
        for ino, _, _ in rows:
            self.content.remove(ino)

    # ---- what the session tells

    def reclaimed(self, record: Reclaim) -> None:
        for ino in record.inos:
            self.unsized.discard(ino)
            self._ahead.forget(ino)
            self.fresh.forget(ino)
            if (known := self.maps.pop(ino, None)) is not None:
                known.remove()

    def adopted(self, record: Adopt) -> None:
        self.unsized.update(row[2] for row in record.rows if row[6] == UNKNOWN_SIZE)

    def renewed(self, record: Renewed) -> None:
        if record.size == UNKNOWN_SIZE:
            self.unsized.add(record.ino)
        else:
            self.unsized.discard(record.ino)

    def released(self, inode: Inode) -> None:
        self._ahead.forget(inode.ino)
        self.fresh.forget(inode.ino)

    # ---- requests

    async def before_read(self, inode: Inode, offset: int, size: int) -> bool:
        """The bytes are in the backing file or `fresh` when this returns; whether that had to be waited for."""
        await self.settle(inode)
        end = min(offset + size, inode.size)
        if end <= offset or not inode.remote:
            return False
        first, last = offset // BLOCK, (end - 1) // BLOCK
        ahead = self._ahead.wanted(inode.ino, offset, end, lambda: self._far(inode))
        if ahead is not None:
            self._fetches.start(inode, self.map(inode).absent(*ahead))
        return await self._fetches.need(inode, first, last + 1, (offset, end))

    def _far(self, inode: Inode) -> int:
        """Blocks to be fetched ahead at most."""
        limit = self.session.policy.cache_bytes
        has_room = limit is None or limit >= CACHES * FAR * BLOCK
        return FAR if has_room and self._fetches.longest(inode) > SPAN else MUCH

    async def before_write(self, inode: Inode, offset: int, length: int) -> None:
        """Blocks that will be written in part are here when this returns, and nothing has been awaited since."""
        await self.settle(inode)
        while inode.remote:
            await self.fills.over(inode.ino)
            known = self.map(inode)
            end = offset + length
            partial = [
                block
                for block in {offset // BLOCK, max(offset, end - 1) // BLOCK}
                if known.is_absent(block) and not (offset <= known.extent(block)[0] and known.extent(block)[1] <= end)
            ]
            if not partial:
                self.back(inode)
                return
            for block in partial:
                await self._fetches.need(inode, block, block + 1)

    def after_write(self, inode: Inode, offset: int, length: int, taken: int) -> int:
        """Blocks that were overwritten are here. The result is what of the write counts: on a full disk the part of
        it that ends within an absent block would be overwritten when that is fetched, so it does not."""
        if not inode.remote:
            return taken
        known = self.map(inode)
        end = offset + taken
        if taken < length and known.is_absent(end // BLOCK) and known.extent(end // BLOCK)[1] > end:
            end = max(offset, end // BLOCK * BLOCK)
            if end == offset:
                raise error(errno.ENOSPC, f"inode {inode.ino}")
        for block in range(offset // BLOCK, -(-end // BLOCK)):
            if known.is_absent(block):
                known.overwritten(block)
        self.check_complete(inode, known)
        return end - offset

    def before_truncate(self, inode: Inode) -> None:
        """What the persistence has a say in is on disk before the size changes."""
        known = self.map(inode)
        if not known.path.exists():
            known.save()
        self.back(inode)

    def truncated(self, inode: Inode) -> None:
        known = self.map(inode)
        known.truncate(inode.size)
        self.check_complete(inode, known)

    async def settle(self, inode: Inode) -> None:
        """The file's size is known when this returns."""
        while inode.ino in self.unsized and inode.remote:
            await self._fetches.settle(inode)

    async def complete(self, inode: Inode) -> None:
        """All of the file is here when this returns, or it is no more. FileNotFoundError if the persistence has it no
        more."""
        await self.settle(inode)
        while inode.remote and self.namespace.inodes.get(inode.ino) is inode:
            step = self._fetches.longest(inode)
            for first in range(0, self.map(inode).blocks, step):
                self._fetches.start(inode, self.map(inode).absent(first, first + PARALLEL * step))
                await self._fetches.need(inode, first, first + step, at_once=False)
                if not inode.remote:
                    return
            if not self.map(inode).missing:
                await self._record(inode, self.map(inode))

    async def _record(self, inode: Inode, known: BlockMap) -> None:
        """All of the file is here. The bytes are on disk before the record that says so, and that is before the map
        goes: what was written here is nowhere else."""
        async with self.lasting([inode]):
            await self.content.sync(inode.ino)
        if inode.remote and self.maps.get(inode.ino) is known:
            self._hydrated(inode)
            await self.session.sync_journal()
            if not inode.remote:
                known.remove()

    def written(self) -> list[Inode]:
        """Files that are not all here, and were written here."""
        partly = [inode for ino in self.maps if (inode := self.namespace.inodes.get(ino)) is not None]
        return [inode for inode in partly if inode.remote and not self._is_held(inode)]

    @contextlib.asynccontextmanager
    async def lasting(self, inodes: Iterable[Inode]) -> AsyncIterator[None]:
        """What of the files is here as the block begins counts after power loss when it has ended. The block brings
        their backing files to the disk; this does so with what is known of those that are not all here."""
        partly = [inode for inode in inodes if inode.remote and inode.is_file]
        before = [(inode.ino, known, known.here()) for inode in partly for known in [self.map(inode)]]
        yield
        for ino, known, here in before:
            if self.maps.get(ino) is known:
                known.lasts(here)
                if known.needs_sync:
                    await trio.to_thread.run_sync(known.sync)

    def _is_held(self, inode: Inode) -> bool:
        """Whether the persistence has what the file is now."""
        newest = self.namespace.remote.newest(inode.ino)
        return newest is not None and newest[1].generation == inode.generation

    def give_up(self, inode: Inode) -> None:
        """Written in part over a version that is gone before the rest of it was fetched: that becomes holes."""
        known = self.map(inode)
        if known.missing:
            names = list(self.session.paths(inode))
            log.error("%s: %s was written in part, and the rest of it is gone", self.session.id, names)
        known.truncate(0)
        self.check_complete(inode, known)

    def forget(self, inode: Inode) -> None:
        """Nothing is known to be here of a file whose content is elsewhere too."""
        self.maps.pop(inode.ino, None)
        self._path(inode.ino).unlink(missing_ok=True)
        self._ahead.forget(inode.ino)

    def drop(self, inode: Inode) -> None:
        """What of the content is here is not the file's any more."""
        self.forget(inode)
        self.content.remove(inode.ino)

    # ---- maps

    def _path(self, ino: int) -> Path:
        return Path(self.content.directory) / f"{ino}.map"

    def map(self, inode: Inode) -> BlockMap:
        known = self.maps.get(inode.ino)
        if known is None:
            newest = self.namespace.remote.newest(inode.ino)
            held = inode.size if newest is None else newest[1].size
            limit = min(held, inode.size) if held != UNKNOWN_SIZE else inode.size
            known = BlockMap.load(self._path(inode.ino), limit, powered_off=self._powered_off)
            self.maps[inode.ino] = known
        return known

    def back(self, inode: Inode) -> None:
        """There is a backing file of the full size."""
        if self.content.stat(inode.ino) is None:
            self.content.truncate(inode.ino, inode.size)
            self.content.touch(inode.ino, inode.mtime_ns)

    def check_complete(self, inode: Inode, known: BlockMap) -> None:
        """If all of the file is here, that is recorded; of one that was written here `complete` does it, later."""
        if inode.remote and not known.missing and inode.ino not in self.unsized:
            self.back(inode)
            if not known.limit or self._is_held(inode):
                self._hydrated(inode)
                known.remove()

    def _hydrated(self, inode: Inode) -> None:
        self.session.commit(Hydrated(inode.ino))
        self.maps.pop(inode.ino, None)
        self._ahead.forget(inode.ino)
