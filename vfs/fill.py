"""A fill: fetched bytes on their way into a backing file, in a thread, while the requests go on.

Nobody writes or truncates the file meanwhile (`over` is what they wait for), and the map is marked when the bytes are
in the file; so a fill never overwrites what was written here, and never makes a truncated file long again. What may
happen meanwhile is that the file goes, becomes another version, or is evicted: then there is another map or none, the
bytes went into a file without a name, and the map is not marked. `Fetches` is who fills.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from vfs.blockmap import BLOCK, BlockMap
from vfs.inode import Inode
from vfs.remote import Entry

if TYPE_CHECKING:
    from vfs.hydrate import Hydration
    from vfs.persisted import PersistedSession

__all__ = ["Fills"]

AT_ONCE = 256 << 10
"""Bytes in one write(2). For larger ones the page cache takes larger folios, which are found only in memory that was
long unused: 1 GiB in writes of 8 MiB took 2.2 to 3.1 s of CPU, in these 0.6 (a virtual machine, whose host has to
give such memory first)."""

Piece = tuple[int, memoryview]  # where in the file, and what


class Fills:
    def __init__(self, session: PersistedSession, hydration: Hydration) -> None:
        self.session = session
        self.namespace = session.namespace
        self.content = session.content
        self.hydration = hydration
        self._under_way: dict[int, tuple[int, trio.Event]] = {}

    async def over(self, ino: int) -> None:
        """Nothing is being filled into the file when this returns, and nothing has been awaited since."""
        while (under_way := self._under_way.get(ino)) is not None:
            await under_way[1].wait()

    async def into(self, inode: Inode, entry: Entry, content: bytes | memoryview, first: int) -> None:
        """What of `content`, which begins with block `first`, is still absent and still of that version."""
        view = memoryview(content)
        while self._is_current(inode, entry):
            known = self.hydration.map(inode)
            absent = list(known.absent(first, first - (-len(view) // BLOCK)))
            if not absent:
                break
            pieces = _pieces(known, absent, view, first)
            self.hydration.back(inode)
            with self.content.lease(inode.ino) as fd:
                if len(view) <= BLOCK:  # a thread costs more than so few bytes
                    _write_all(fd, pieces)
                else:
                    await self._in_thread(inode.ino, fd, pieces)
            if self._is_current(inode, entry) and self.hydration.maps.get(inode.ino) is known:
                if inode.unsettled:
                    self.content.touch(inode.ino, inode.mtime_ns)
                known.fetched(*absent)
                break
        if self._is_current(inode, entry):
            self.hydration.check_complete(inode, self.hydration.map(inode))

    async def _in_thread(self, ino: int, fd: int, pieces: list[Piece]) -> None:
        count, over = self._under_way.get(ino) or (0, trio.Event())
        self._under_way[ino] = count + 1, over
        try:
            await trio.to_thread.run_sync(_write_all, fd, pieces)
        finally:
            count, over = self._under_way.pop(ino)
            if count > 1:
                self._under_way[ino] = count - 1, over
            else:
                over.set()

    def _is_current(self, inode: Inode, entry: Entry) -> bool:
        newest = self.namespace.remote.newest(inode.ino)
        if not inode.remote or newest is None or self.namespace.inodes.get(inode.ino) is not inode:
            return False
        return (newest[1].generation, newest[1].version) == (entry.generation, entry.version)


def _pieces(known: BlockMap, blocks: list[int], view: memoryview, first: int) -> list[Piece]:
    """The blocks' bytes, as few pieces as they make."""
    pieces: list[tuple[int, int]] = []
    for block in blocks:
        offset, end = known.extent(block)
        if pieces and pieces[-1][1] == offset:
            pieces[-1] = pieces[-1][0], end
        else:
            pieces.append((offset, end))
    start = first * BLOCK
    return [(offset, view[offset - start : end - start]) for offset, end in pieces]


def _write_all(fd: int, pieces: list[Piece]) -> None:
    for at, left in pieces:
        offset, view = at, left
        while view:
            done = os.pwrite(fd, view[:AT_ONCE], offset)
            offset += done
            view = view[done:]
