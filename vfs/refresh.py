"""Refresh: what others changed in the persistence appears in the session.

At opening, every `Options.refresh_interval` and whenever it is asked for, each route that has an `on_list` is listed,
and the listing is compared with what the persistence was known to hold: new files are adopted, clean files that changed
are renewed (their content is fetched when it is read), clean files that are gone go. What is being written back, or was
while the listing was made, is left alone: a dirty file never changes, and its upload finds the conflict.

No request is made for any single file. The comparison goes in slices, and awaits nothing within one.
"""

from __future__ import annotations

import logging
import math
import os
import time
from typing import TYPE_CHECKING

import msgspec
import trio

from vfs.adoption import adopt
from vfs.errors import Emptied
from vfs.fileref import FileRef
from vfs.inode import Inode
from vfs.listing import UNKNOWN_SIZE
from vfs.persistence import Persistence
from vfs.records import Removed, Stored, Storing, Unlink
from vfs.remote import Entry
from vfs.routes import Route

if TYPE_CHECKING:
    from vfs.persisted import PersistedSession

__all__ = ["Refresh", "Refreshed"]

log = logging.getLogger(__name__)

SLICE = 500


class Refreshed(msgspec.Struct):
    """How many files appeared, changed and went."""

    new: int = 0
    changed: int = 0
    gone: int = 0


class Refresh:
    """It hears of every record, to know what is written back while a listing is made."""

    def __init__(self, session: PersistedSession) -> None:
        self.session = session
        self.namespace = session.namespace
        self.error: OSError | None = None  # why the last listing failed
        self.refused: dict[str, str] = {}  # listed paths that have no place in the session, and why
        self.interval_changed = trio.Event()
        self._first = True
        self._touched: set[bytes] = set()  # while a listing is made
        self._stamps: dict[bytes, tuple[int | None, str | None]] = {}
        self._lock = trio.Lock()

    # ---- what the session tells

    def stored(self, record: Stored | Storing) -> None:
        self._touch(record.path, record.source)

    def removed(self, record: Removed) -> None:
        self._touch(record.path)

    def _touch(self, path: bytes, source: bytes = b"") -> None:
        self._stamps.pop(path, None)
        if self._lock.locked():
            self._touched.update((path, source))

    # ---- when

    async def begin(self) -> None:
        """The first listing. A session that has nothing yet cannot do without; any other goes on with what it has."""
        try:
            await self.once()
        except OSError as e:
            if not self.namespace.remote.entries and len(self.namespace.inodes) == 1:
                raise
            log.warning(
                "%s: the persistence cannot be listed: %s; the session begins with what it has", self.session.id, e
            )

    async def run(self) -> None:
        """Again and again. A failure is logged once, until a listing succeeds."""
        while True:
            self.interval_changed = trio.Event()
            interval = self.session.refresh_interval
            with trio.move_on_after(math.inf if interval is None else interval) as scope:
                await self.interval_changed.wait()
            if scope.cancelled_caught:
                await self.attempt()

    async def attempt(self) -> None:
        """List, and log a failure that is new."""
        before = self.error
        try:
            await self.once()
        except OSError as e:
            if before is None:
                log.warning("%s: the persistence cannot be listed: %s; it is tried again", self.session.id, e)

    async def once(self, *, reread: bool = False) -> Refreshed:
        """List every route. With `reread`, files of which a listing tells nothing but the path are read again."""
        result = Refreshed()
        async with self._lock:
            for route in self.session.routes:
                if route.persistence is not None and "on_list" in route.persistence.can:
                    try:
                        await self._list(route, route.persistence, result, reread)
                    except OSError as e:
                        self.error = e
                        raise
            if self.error is not None:
                self.session.writeback.hurry()  # what was in the way of the listing may have been in the way of all
            self.error = None
            self._first = False
            self._touched.clear()
        return result

    # ---- what is done

    async def _list(self, route: Route, persistence: Persistence, result: Refreshed, reread: bool) -> None:
        self._touched.clear()
        try:
            refs = await persistence.list()
        except Emptied as e:
            log.error("%s: %s; what is here goes there again", self.session.id, e)
            refs = await persistence.list()
            self._give_again(route, {os.fsencode(ref.path) for ref in refs})
        new: list[FileRef] = []
        for number, ref in enumerate(refs, 1):
            path = os.fsencode(ref.path)
            entry = self.namespace.remote.get(path)
            if entry is None:
                if self._mine(path, route) and not self._busy(path) and not self._is_ours(path):
                    new.append(ref)
                    self._stamps[path] = (ref.mtime_ns, ref.checksum)
            elif self._changed(path, entry, ref, reread) and self._renew(path, entry, ref):
                result.changed += 1
            if number % SLICE == 0:
                await trio.lowlevel.checkpoint()
        self.refused = {path: why for path, why in self.refused.items() if not self._mine(os.fsencode(path), route)}
        for first in range(0, len(new), SLICE):
            free = [ref for ref in new[first : first + SLICE] if not self._busy(os.fsencode(ref.path))]
            refused = dict(adopt(self.session, free, self.session.described(route)))
            for name in refused.keys() - self.refused.keys():
                log.warning("%s: %r is left out: %s", self.session.id, name, refused[name])
            self.refused.update(refused)
            result.new += len(free) - len(refused)
            await trio.lowlevel.checkpoint()
        listed = {os.fsencode(ref.path) for ref in refs}
        for attempts in self.namespace.remote.attempts.values():
            listed.update(attempt.source for attempt in attempts)  # moved perhaps, which write-back finds out
        gone = [path for path in self.namespace.remote.under(os.fsencode(route.base)) if path not in listed]
        for number, path in enumerate(gone, 1):
            if self._mine(path, route) and self._drop(path):
                result.gone += 1
            if number % SLICE == 0:
                await trio.lowlevel.checkpoint()

    def _give_again(self, route: Route, listed: set[bytes]) -> None:
        """What is not there any more but is here is not deleted, it is stored anew."""
        lost = 0
        for path in list(self.namespace.remote.under(os.fsencode(route.base))):
            if path in listed or not self._mine(path, route) or path in self.session.writeback.transfer.busy:
                continue
            entry = self.namespace.remote.get(path)
            inode = None if entry is None else self.namespace.inodes.get(entry.ino)
            if inode is not None and inode.remote:
                lost += 1
                continue
            self.session.commit(Removed(path))
            self.session.writeback.note_path(path)
        if lost:
            log.error("%s: %d files had content that was only there", self.session.id, lost)
        self.session.changed(route)

    def _mine(self, path: bytes, route: Route) -> bool:
        place = self.session.place(path)
        return place.route is route and place.persistence is not None

    def _busy(self, path: bytes) -> bool:
        """Being written back, or it was since the listing began: the listing may be older than that."""
        writeback = self.session.writeback
        return path in self._touched or path in writeback.transfer.busy or writeback.queue.get(path) is not None

    def _is_ours(self, path: bytes) -> bool:
        """A file that is here and not there yet, or may be left over from an upload of ours: that is write-back's."""
        inode = self.session.at(path)
        return (inode is not None and inode.is_file) or self.session.writeback.transfer.differs(path)

    def _changed(self, path: bytes, entry: Entry, ref: FileRef, reread: bool) -> bool:
        if entry.version is not None and ref.version is not None:
            return entry.version != ref.version
        if UNKNOWN_SIZE not in (entry.size, ref.size) and entry.size != ref.size:
            return True
        stamp = (ref.mtime_ns, ref.checksum)
        if stamp == (None, None):
            return reread and ref.size == UNKNOWN_SIZE
        before = self._stamps.get(path)
        self._stamps[path] = stamp
        if before is None and self._first and ref.mtime_ns is not None:
            inode = self.namespace.inodes.get(entry.ino)
            return inode is not None and inode.mtime_ns != ref.mtime_ns
        return before is not None and before != stamp

    def _clean(self, path: bytes, entry: Entry) -> Inode | None:
        """The file at the path, if all that it has is what the persistence had."""
        inode = self.session.at(path)
        if inode is None or inode.ino != entry.ino or inode.generation != entry.generation or self._busy(path):
            return None
        return inode

    def _renew(self, path: bytes, entry: Entry, ref: FileRef) -> bool:
        inode = self._clean(path, entry)
        if inode is None:
            return False
        self.session.writeback.transfer.conflicts.renew(path, inode, ref)
        return True

    def _drop(self, path: bytes) -> bool:
        entry = self.namespace.remote.get(path)
        if entry is None or self._busy(path):
            return False
        inode = self.session.at(path)
        if inode is not None and self._clean(path, entry) is None:
            return False  # dirty: its upload finds that it is gone, and creates it again
        if inode is not None:
            parent_path, _, name = path.rpartition(b"/")
            parent = self.session.at(parent_path)
            assert parent is not None
            self.session.drop_name(Unlink(parent.ino, name, time.time_ns()))
        self.session.writeback.transfer.conflicts.vanished(path)  # and where else it was to be had from there
        return inode is not None
