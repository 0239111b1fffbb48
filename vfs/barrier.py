"""A barrier: returns when all that was done before it is in the persistence, whatever is done meanwhile.

It remembers the files and the paths that are pending when it begins. A file is through when every name that it has by
now holds that generation or a later one; a path is through when nothing is pending for it, or when an operation on it
that began after the barrier has succeeded. Who writes a file all the time does not hold it up for ever.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import trio

from vfs.errors import error

if TYPE_CHECKING:
    from vfs.persisted import PersistedSession

__all__ = ["barrier", "persisted"]


async def barrier(session: PersistedSession) -> bool:
    """True when everything is through; False when what is left failed with errors that will not pass by themselves."""
    writeback = session.writeback
    writeback.epoch += 1
    writeback.limit.urgent += 1
    epoch = writeback.epoch
    try:
        await writeback.expand()
        paths = list(writeback.queue.paths)
        inos = {
            inode.ino: inode.generation for path in paths if (inode := writeback.transfer.desired(path)) is not None
        }
        tries = {pending.path: pending.tries for pending in writeback.queue}
        writeback.hurry()
        stuck = False
        for path in paths:
            while not _through(session, path, epoch):
                if _hopeless(session, path, tries):
                    stuck = True
                    break
                await writeback.progressed.wait()
        for ino, generation in inos.items():
            while not _reached(session, ino, generation):
                if stuck and any(_hopeless(session, path, tries) for path in _names(session, ino)):
                    break
                await writeback.progressed.wait()
        return not stuck
    finally:
        writeback.limit.urgent -= 1


async def persisted(session: PersistedSession, ino: int) -> None:
    """What the file holds now is in the persistence under every name it has, or OSError says why it is not: what
    fsync(2) waits for where the policy's durability is `remote`. Waits as long as a reader would."""
    writeback, generation = session.writeback, session.namespace.inode(ino).generation
    writeback.limit.urgent += 1
    try:
        await writeback.expand()
        tries = {pending.path: pending.tries for pending in writeback.queue}
        for path in _names(session, ino):
            writeback.note_path(path)
        writeback.hurry()
        with trio.move_on_after(session.options.read_timeout):
            while not _reached(session, ino, generation):
                for path in _names(session, ino):
                    pending = session.writeback.queue.get(path)
                    if pending is not None and pending.error is not None and _hopeless(session, path, tries):
                        raise pending.error
                await writeback.progressed.wait()
            return
        raise error(errno.EIO, session.id, "not persisted in time; it is recorded here, and is tried again")
    finally:
        writeback.limit.urgent -= 1


def _through(session: PersistedSession, path: bytes, epoch: int) -> bool:
    pending = session.writeback.queue.get(path)
    return pending is None or (pending.done >= epoch and not pending.busy)


def _hopeless(session: PersistedSession, path: bytes, tries: dict[bytes, int]) -> bool:
    """Tried since the barrier began, and failed for good; or waiting for a path of which that is true."""
    pending = session.writeback.queue.get(path)
    if pending is None:
        return False
    if pending.stuck and pending.tries > tries.get(path, 0):
        return True
    held = session.namespace.remote.get(path)
    if held is None or session.writeback.transfer.desired(path) is not None:
        return False
    return any(
        other.stuck and other.tries > tries.get(other.path, 0)
        for name in _names(session, held.ino)
        if (other := session.writeback.queue.get(name)) is not None
    )


def _names(session: PersistedSession, ino: int) -> list[bytes]:
    inode = session.namespace.inodes.get(ino)
    return [] if inode is None else list(session.paths(inode))


def _reached(session: PersistedSession, ino: int, generation: int) -> bool:
    for path in _names(session, ino):
        if session.writeback.transfer.differs(path):
            held = session.namespace.remote.get(path)
            if held is None or held.ino != ino or held.generation < generation:
                return False
    return True
