"""Stats: how much of a session is where. Counted when it is asked for; a file with several names counts once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import trio

from vfs.inode import Inode

if TYPE_CHECKING:
    from vfs.persisted import PersistedSession
    from vfs.session import Session

__all__ = ["Backlog", "Count", "Stats", "backlog", "count"]

_SLICE = 1000


class Count(msgspec.Struct):
    """Files, and the bytes of their sizes."""

    files: int = 0
    bytes: int = 0

    def add(self, inode: Inode) -> None:
        self.files += 1
        self.bytes += inode.size


class Stats(msgspec.Struct):
    """total        all files
    local        that belong nowhere but here
    persisted    whose content, as it is, a persistence holds
    loaded       whose content is here, all of it
    not_loaded   whose content is (in part) in the persistence only; a size that is not known yet counts as 0
    dirty        that the persistence does not hold as they are
    deletions    paths that the persistence still holds, and is going to lose
    """

    total: Count = msgspec.field(default_factory=Count)
    local: Count = msgspec.field(default_factory=Count)
    persisted: Count = msgspec.field(default_factory=Count)
    loaded: Count = msgspec.field(default_factory=Count)
    not_loaded: Count = msgspec.field(default_factory=Count)
    dirty: Count = msgspec.field(default_factory=Count)
    deletions: int = 0


class Backlog(msgspec.Struct):
    """What the persistences do not hold as it is: `changes`, deletions and descriptions of the tree among them;
    `dirty`, the bytes of its files; `pending`, of those the bytes of files that nobody writes any more: they are on
    their way, wait for their turn, or are tried again."""

    changes: int = 0
    dirty: int = 0
    pending: int = 0


def backlog(session: PersistedSession) -> Backlog:
    """Looks at what is pending, and at nothing else."""
    found, now, transfer = Backlog(), trio.current_time(), session.writeback.transfer
    for pending in session.writeback.queue:
        if not transfer.differs(pending.path):
            continue
        found.changes += 1
        inode = transfer.desired(pending.path)
        if inode is not None:
            found.dirty += inode.size
            if pending.busy or pending.tries or pending.due <= now:
                found.pending += inode.size
    found.changes += sum(description.pending for description in session.descriptions)
    return found


async def count(session: Session, persisted: PersistedSession | None) -> Stats:
    """`persisted`: the same session, if it has routes."""
    stats = Stats()
    for number, inode in enumerate(list(session.namespace.inodes.values()), 1):
        if number % _SLICE == 0:
            await trio.lowlevel.checkpoint()
        if not inode.is_file or not inode.nlink:
            continue
        stats.total.add(inode)
        (stats.not_loaded if inode.remote else stats.loaded).add(inode)
        if persisted is None:
            stats.local.add(inode)
        else:
            _place(persisted, stats, inode)
    if persisted is not None:
        paths = list(persisted.namespace.remote.entries)
        stats.deletions = sum(persisted.at(path) is None and _differs(persisted, path) for path in paths)
    return stats


def _place(session: PersistedSession, stats: Stats, inode: Inode) -> None:
    paths = list(session.paths(inode))
    if all(session.place(path).persistence is None for path in paths):
        stats.local.add(inode)
    if session.namespace.remote.holding(inode.ino, inode.generation) is not None:
        stats.persisted.add(inode)
    if any(_differs(session, path) for path in paths):
        stats.dirty.add(inode)


def _differs(session: PersistedSession, path: bytes) -> bool:
    return session.writeback.transfer.differs(path)
