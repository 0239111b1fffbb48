"""Sizes: how long a file is that was listed as a bare path.

Whoever looks at a directory wants to know, and only the persistence can tell: by `on_stat`; by `on_read_range`, where a
few calls of one byte find the end of a file of any size; else by reading the whole. `fetch` asks for one file,
`PersistedSession` for those of a directory.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

import trio

from vfs.callbacks import Context
from vfs.errors import error
from vfs.inode import Inode
from vfs.listing import UNKNOWN_SIZE
from vfs.persistence import Persistence

if TYPE_CHECKING:
    from vfs.persisted import PersistedSession

__all__ = ["Measured", "Sizes", "measure"]

log = logging.getLogger(__name__)

PIECE = 1 << 20  # bytes that are read at once: most files end in the first
LONGEST = 1 << 62
PATIENCE = 1.0  # seconds without one more size after which a directory is listed without the rest
BUSY = 10.0  # seconds after that in which no listing waits


class Measured(NamedTuple):
    """`content`: the whole of it, where it had to be read."""

    size: int
    version: str | None = None
    mtime_ns: int | None = None
    content: bytes | None = None


async def measure(persistence: Persistence, name: str, context: Context) -> Measured:
    """What the file's size is, in bounded memory where the callbacks allow it."""
    if "on_stat" in persistence.can:
        ref = await persistence.stat(name)
        if ref.size != UNKNOWN_SIZE:
            return Measured(ref.size, ref.version, ref.mtime_ns)
    if "on_read_range" not in persistence.can:
        content = await persistence.read(name, context)
        return Measured(len(content), content=content)
    first = await persistence.read_range(name, 0, PIECE, context)
    if len(first) < PIECE:
        return Measured(len(first), content=first)
    return Measured(await _end(persistence, name, context))


async def _end(persistence: Persistence, name: str, context: Context) -> int:
    """Where a file of at least PIECE bytes ends."""
    least, beyond = PIECE, 2 * PIECE
    while await persistence.read_range(name, beyond - 1, 1, context):
        least, beyond = beyond, 2 * beyond
        if beyond > LONGEST:
            raise error(errno.EFBIG, name, "on_read_range finds no end of it")
    while beyond - least > PIECE:
        middle = (least + beyond) // 2
        if await persistence.read_range(name, middle - 1, 1, context):
            least = middle
        else:
            beyond = middle
    return least + len(await persistence.read_range(name, least, beyond - least, context))


class Sizes:
    """Of the files of a directory that is listed."""

    def __init__(self, session: PersistedSession) -> None:
        self.session = session
        self._not_before = 0.0

    async def settle(self, inodes: Iterable[Inode]) -> None:
        """Those sizes are known when this returns that come in time: one callback that hangs, or a persistence that is
        away, keeps no `ls` waiting. The rest goes on being asked for."""
        if trio.current_time() < self._not_before:
            return
        async with trio.open_nursery() as nursery:
            scope = nursery.cancel_scope
            scope.deadline = trio.current_time() + PATIENCE
            for inode in inodes:
                nursery.start_soon(self._settle, inode, scope)
        if scope.cancelled_caught:
            self._not_before = trio.current_time() + BUSY
            log.warning("%s: a directory is listed without all sizes: the persistence does not answer", self.session.id)

    async def _settle(self, inode: Inode, scope: trio.CancelScope) -> None:
        try:
            await self.session.settle(inode)
        except OSError as e:
            log.warning("%s: size of inode %d is not known: %s", self.session.id, inode.ino, e)
        scope.deadline = trio.current_time() + PATIENCE
