"""Parts: what a persisted session is told of its own changes, handed on to the parts that need to hear of each.

One observer instead of five, because most changes concern write-back only, and a request pays for every call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from vfs.inode import Inode
from vfs.records import (
    Adopt,
    Dirty,
    Evicted,
    Hydrated,
    Reclaim,
    Record,
    Removed,
    Renewed,
    Stored,
    Storing,
)

if TYPE_CHECKING:
    from vfs.persisted import PersistedSession

__all__ = ["Parts"]

_SAYS_NOTHING = frozenset({Evicted, Hydrated, Reclaim, Storing})
"""Records that change nothing that a description has."""


class Parts:
    def __init__(self, session: PersistedSession) -> None:
        self.session = session
        notes, hydration, listing = session.writeback.notes, session.hydration, session.listing

        def overtaken(record: Renewed | Removed) -> None:
            session.removed(record.path)  # from what the next receipt says is stored

        self._takers: dict[type, tuple[Callable[[Any], None], ...]] = {
            **dict.fromkeys(notes.kinds, (notes.told,)),
            Dirty: (notes.dirty,),
            Reclaim: (notes.told, hydration.reclaimed, session.cache.reclaimed),
            Adopt: (hydration.adopted,),
            Renewed: (hydration.renewed, overtaken),
            Storing: (listing.stored,),
            Stored: (listing.stored,),
            Removed: (listing.removed, overtaken),
        }
        self._notes = notes
        self.written = notes.written

    def committed(self, record: Record, inode: Inode | None) -> None:
        kind = type(record)
        for take in self._takers.get(kind, ()):
            take(record)
        descriptions = self.session.descriptions
        if descriptions and kind not in _SAYS_NOTHING:
            for description in descriptions:
                description.changed()

    def released(self, inode: Inode) -> None:
        self._notes.released(inode)
        if inode.remote:
            self.session.hydration.released(inode)
