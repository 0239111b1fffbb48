"""Parts: what a persisted session is told of its own changes, handed on to the parts that need to hear of each.

One observer instead of five, because most changes concern write-back only, and a request pays for every call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from vfs.inode import Inode
from vfs.records import Adopt, Evicted, Hydrated, Reclaim, Record, Removed, Renewed, Stored, Storing

if TYPE_CHECKING:
    from vfs.persisted import PersistedSession

__all__ = ["Parts"]

_INWARD = frozenset({Adopt, Evicted, Hydrated, Reclaim, Removed, Renewed, Stored, Storing})
"""Records that are not a request's, other than Reclaim."""

_SAYS_NOTHING = frozenset({Evicted, Hydrated, Reclaim, Storing})
"""Records that change nothing that a description has."""


class Parts:
    def __init__(self, session: PersistedSession) -> None:
        self.session = session
        self._notes = notes = session.writeback.notes
        self._noted = notes.takers
        self.written = notes.written

    def committed(self, record: Record, inode: Inode | None) -> None:
        session, kind = self.session, type(record)
        note = self._noted.get(kind)
        if note is not None:
            self._notes.count += 1
            note(record)
        if kind in _INWARD:
            session.hydration.committed(record, inode)
            session.cache.committed(record, inode)
            session.listing.committed(record, inode)
        if session.descriptions and kind not in _SAYS_NOTHING:
            for description in session.descriptions:
                description.changed()

    def released(self, inode: Inode) -> None:
        self._notes.released(inode)
        if inode.remote:
            self.session.hydration.released(inode)
