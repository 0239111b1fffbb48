"""Reset: a session becomes what its persistences hold.

Clean content that is kept here is dropped and the persistences are listed anew, so the next read is of what is there
now. What was not written back yet stays, as it does in a refresh, unless it is to be discarded by force: then new files
go, edited and deleted ones come back as they were there. What is in no persistence (`local_only`, directories without a
route) is nothing that could be reset.
"""

from __future__ import annotations

import errno
import math
import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from vfs.adoption import adopt
from vfs.errors import error
from vfs.fileref import FileRef
from vfs.listing import check_path, checked
from vfs.records import Unlink
from vfs.refresh import Refreshed
from vfs.remote import Entry

if TYPE_CHECKING:
    from collections.abc import Iterable

    from vfs.persisted import PersistedSession

__all__ = ["Reset", "register", "reset"]


class Reset(msgspec.Struct):
    """`discarded`: paths whose unsaved change was given up; `refreshed`: what the new listing brought."""

    discarded: list[str]
    refreshed: Refreshed


async def reset(session: PersistedSession, *, force: bool) -> Reset:
    """Raises what listing a persistence raises; what is discarded by then stays discarded."""
    discarded = await _discard_all(session) if force else []
    session.cache.evict([inode for inode in session.namespace.inodes.values() if _droppable(session, inode.ino)])
    return Reset([os.fsdecode(path) for path in discarded], await session.refresh())


def _droppable(session: PersistedSession, ino: int) -> bool:
    inode = session.namespace.inodes[ino]
    return inode.is_file and inode.size > 0 and session.cache.is_clean(inode)


async def _discard_all(session: PersistedSession) -> list[bytes]:
    """Deepest first, so that a directory that took a file's place is empty when the file comes back."""
    writeback = session.writeback
    await writeback.expand()
    discarded = []
    held_up = list(writeback.queue)
    for pending in held_up:
        pending.not_before = math.inf  # what is to be given up must not go out while another path is waited for
    for pending in sorted(held_up, key=lambda pending: -pending.path.count(b"/")):
        while pending.path in writeback.transfer.busy:
            await writeback.progressed.wait()
        if writeback.transfer.differs(pending.path):
            _discard(session, pending.path)
            discarded.append(pending.path)
        pending.not_before = 0.0
        writeback.note_path(pending.path)
    return sorted(discarded)


def _discard(session: PersistedSession, path: bytes) -> None:
    """Nothing is awaited here, so write-back cannot begin with what is being given up."""
    inode, held = session.at(path), session.namespace.remote.get(path)
    if inode is not None and held is not None and held.ino == inode.ino:
        session.writeback.transfer.conflicts.renew(path, inode, _ref(path, held))
        return
    if inode is not None and (inode.is_file or not inode.entries):
        parent_path, _, name = path.rpartition(b"/")
        parent = session.at(parent_path)
        assert parent is not None
        session.drop_name(Unlink(parent.ino, name, time.time_ns()))
    if held is not None:
        adopt(session, [_ref(path, held)])


def _ref(path: bytes, held: Entry) -> FileRef:
    return FileRef(
        path=os.fsdecode(path),
        size=held.size,
        created_at=datetime.now(UTC),
        version=held.version,
        metadata=held.metadata or {},
    )


def register(session: PersistedSession, files: Iterable[FileRef | str]) -> None:
    """Files that are known to be in the persistence, by path or as FileRefs, are in the session without being read.

    All or none: EINVAL for what cannot be a path, EEXIST where there is something, ENOTSUP where no persistence reads.
    Where there is an on_list, a later refresh takes away again what that does not name.
    """

    def refuse(path: str, why: str) -> None:
        raise error(errno.EINVAL, path, why)

    refs = checked(files, _inward, refuse, "register")
    for ref in refs:
        path = os.fsencode(ref.path)
        persistence = session.place(path).persistence
        if persistence is None or not persistence.reads:
            raise error(errno.ENOTSUP, ref.path, "no persistence that could be read belongs there")
        if session.at(path) is not None or session.namespace.remote.get(path) is not None:
            raise error(errno.EEXIST, ref.path)
    for name, why in adopt(session, refs):
        raise error(errno.EEXIST, name, why)


def _inward(path: str) -> str:
    path = path.removeprefix("/")
    check_path(path)
    return path
