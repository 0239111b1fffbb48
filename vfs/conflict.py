"""Conflicts: the persistence holds something else than we expected. Nothing is ever lost of either side.

It may be our own: an upload whose answer was lost in a time-out or a crash is in the journal as an attempt, and what
has an attempt's content is taken as stored. It may be gone: then an edit of ours creates it again. What remains is
someone else's: it keeps the name, and ours goes on beside it as `NAME.conflict-SESSION-N`, uploaded too.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import msgspec

from vfs.adoption import adopt
from vfs.callbacks import Context
from vfs.capture import Capture
from vfs.errors import Conflict, error
from vfs.fileref import FileRef
from vfs.inode import Inode
from vfs.listing import UNKNOWN_SIZE
from vfs.persistence import Persistence
from vfs.records import Removed, Rename, Renewed, Stored, Unlink
from vfs.remote import Attempt

if TYPE_CHECKING:
    from vfs.persisted import PersistedSession

__all__ = ["Conflicts", "conflict_name"]

log = logging.getLogger(__name__)

_PIECE = 8 << 20


def conflict_name(name: bytes, session_id: str, number: int) -> bytes:
    """The name of the n-th copy of ours beside `name`: at most 255 bytes, the extension's place kept readable."""
    suffix = f".conflict-{session_id}-{number}".encode()
    end = min(len(name), 255 - len(suffix))
    while end < len(name) and name[end] & 0xC0 == 0x80:  # in the middle of a character
        end -= 1
    return name[:end] + suffix


class Conflicts:
    def __init__(self, session: PersistedSession) -> None:
        self.session = session
        self.namespace = session.namespace
        self.count = 0

    # ---- what is there

    async def current(self, persistence: Persistence, path: bytes, found: str | None = None) -> FileRef | None:
        """What the persistence holds at the path, by the cheapest callback that tells; None: nothing."""
        name = os.fsdecode(path)
        if "on_stat" in persistence.can:
            try:
                return await persistence.stat(name)
            except FileNotFoundError:
                return None
        if "on_list" in persistence.can:
            return next((ref for ref in await persistence.list() if ref.path == name), None)
        if not persistence.reads:
            raise error(errno.ESTALE, path, "changed by someone else, and there is no callback that reads it")
        try:
            checksum, size = await self._checksum(persistence, name, {})
        except FileNotFoundError:
            return None
        return FileRef(path=name, size=size, checksum=checksum.hex(), version=found, created_at=datetime.now(UTC))

    async def _checksum(self, persistence: Persistence, name: str, context: Context) -> tuple[bytes, int]:
        digest, size = hashlib.sha256(), 0
        if "on_read_range" not in persistence.can:
            content = await persistence.read(name, context)
            return hashlib.sha256(content).digest(), len(content)
        while True:
            part = await persistence.read_range(name, size, _PIECE, context)
            digest.update(part)
            size += len(part)
            if len(part) < _PIECE:
                return digest.digest(), size

    async def _own(self, persistence: Persistence, path: bytes, ref: FileRef) -> Attempt | None:
        """The attempt that made what is there, if it was one of ours."""
        attempts = self.namespace.remote.attempts.get(path, [])
        attempts = [a for a in attempts if a.checksum and ref.size in (UNKNOWN_SIZE, a.size)]
        if not attempts or not (ref.checksum or persistence.reads):
            return None
        if ref.checksum:
            checksum = bytes.fromhex(ref.checksum)
        else:
            context: Context = {} if ref.version is None else {"if_version": ref.version}
            checksum, _ = await self._checksum(persistence, os.fsdecode(path), context)
        return next((a for a in reversed(attempts) if a.checksum == checksum), None)

    def lost(self, path: bytes, inode: Inode, captured: Capture) -> list[Attempt]:
        """The attempts to write this very generation with other content: power loss has taken that from here."""
        checksum, generation = bytes.fromhex(captured.checksum), captured.generation
        attempts = [a for a in self.namespace.remote.attempts.get(path, ()) if a.checksum not in (b"", checksum)]
        return [a for a in attempts if (a.ino, a.generation) == (inode.ino, generation)]

    # ---- what is done about it

    async def restored(self, persistence: Persistence, path: bytes, inode: Inode, captured: Capture) -> bool:
        """Whether the persistence has what power loss has taken from here: then that is the file's content again."""
        lost = self.lost(path, inode, captured)
        ref = await self.current(persistence, path) if lost and persistence.reads else None
        own = None if ref is None else await self._own(persistence, path, ref)
        if ref is None or own not in lost or inode.generation != captured.generation:
            return False
        log.warning(
            "%s: power loss has taken content of %s, which is stored: it is read again", self.session.id, ref.path
        )
        self.renew(path, inode, ref)
        return True

    async def on_write(self, persistence: Persistence, path: bytes, inode: Inode, e: Conflict) -> None:
        """A write, or a move onto the path, was refused. Afterwards what is to be done is decided anew."""
        ref = await self.current(persistence, path, e.found)
        if ref is None:
            if self.namespace.remote.get(path) is None:
                raise error(errno.EAGAIN, path, "refused as changed by someone else, but nothing is there")
            self.session.commit(Removed(path))  # deleted by someone else; ours is newer, and creates it again
            return
        own = await self._own(persistence, path, ref)
        if own is not None:
            self._arrived(path, own, ref, e)
            return
        self._keep_both(path, ref if ref.version is not None else msgspec.structs.replace(ref, version=e.found))

    def _arrived(self, path: bytes, own: Attempt, ref: FileRef, e: Conflict) -> None:
        """An upload of ours whose answer was lost."""
        version = ref.version if ref.version is not None else e.found
        self.session.commit(Stored(path, own.ino, own.generation, version, own.size, ref.metadata or None))
        self.session.synced(path, own.size, ref)

    def _keep_both(self, path: bytes, ref: FileRef) -> None:
        """Nothing is awaited here. After a crash between the two records a delete of ours is refused, and adopts."""
        self.count += 1
        here = self.session.at(path)
        beside = self._aside(path) if here is not None and here.is_file else None
        if refused := adopt(self.session, [ref]):
            why = f"left out: {refused[0][1]}"  # as in a listing: theirs stays there, and ours is what it is here
            self.session.commit(Removed(path))
        else:
            why = "back" if beside is None else f"there, and ours goes on as {os.fsdecode(beside)!r}"
        log.warning("%s: %r was changed by someone else, and is %s", self.session.id, ref.path, why)
        self.session.conflicted(path, beside, ref)

    def _aside(self, path: bytes) -> bytes:
        """Ours makes room for theirs; its path then."""
        parent_path, _, name = path.rpartition(b"/")
        parent = self.session.at(parent_path)
        assert parent is not None and parent.entries is not None
        number = 1
        while (copy := conflict_name(name, self.session.id, number)) in parent.entries:
            number += 1
        self.session.commit_foreign(Rename(parent.ino, name, parent.ino, copy, time.time_ns()))
        return parent_path + b"/" + copy if parent_path else copy

    async def on_delete(self, persistence: Persistence, path: bytes, e: Conflict) -> None:
        """A delete was refused: what is there now stays, and comes back into the session where it has a place."""
        ref = await self.current(persistence, path, e.found)
        if ref is None:
            self.session.commit(Removed(path))
            return
        own = await self._own(persistence, path, ref)
        if own is not None:
            self.session.commit(Stored(path, own.ino, own.generation, ref.version or e.found, own.size))
            return
        here = self.session.at(path)
        if here is None or not here.is_file:
            self._keep_both(path, ref if ref.version is not None else msgspec.structs.replace(ref, version=e.found))

    async def on_left_over(self, persistence: Persistence, path: bytes) -> None:
        """Attempts whose answer was lost, and nobody wants the file any more: what they made goes, what others made
        stays, and comes into the session as everything of others does."""
        ref = await self.current(persistence, path) if persistence.reads else None
        if ref is not None and await self._is_left_over(persistence, path, ref):
            context: Context = {} if ref.version is None else {"if_version": ref.version}
            try:
                await persistence.delete(os.fsdecode(path), context)
            except Conflict as e:
                log.info("%s: %s was changed by someone else before it was deleted: %s", self.session.id, ref.path, e)
        self.session.commit(Removed(path))

    async def _is_left_over(self, persistence: Persistence, path: bytes, ref: FileRef) -> bool:
        if await self._own(persistence, path, ref) is not None:
            return True
        for attempt in self.namespace.remote.attempts.get(path, ()):
            source = attempt.source and self.namespace.remote.holding(attempt.ino, attempt.generation)
            if source and ref.size == attempt.size and persistence.reads:
                moved, _ = await self._checksum(persistence, os.fsdecode(path), {})
                return moved == (await self._checksum(persistence, os.fsdecode(source), {}))[0]
        return False

    async def target(self, persistence: Persistence, path: bytes, want: Inode) -> Context | None:
        """What a move to the path is told of what it replaces; None where it may not replace it, which was dealt
        with."""
        if "on_stat" not in persistence.can:
            return {}
        held = self.namespace.remote.get(path)
        ref = await self.current(persistence, path)
        if ref is None:
            if held is not None:
                self.session.commit(Removed(path))
            return {"if_target": None}
        free: Context = {} if ref.version is None else {"if_target": ref.version}
        if held is not None and held.version == ref.version:
            return free
        moved = [a for a in self.namespace.remote.attempts.get(path, ()) if a.source and a.ino == want.ino]
        if moved and ref.size in (UNKNOWN_SIZE, want.size):
            return free  # what an attempt of this move has brought there, whose answer was lost
        await self.on_write(persistence, path, want, Conflict(os.fsdecode(path), ref.version))
        return None

    async def on_source_changed(self, persistence: Persistence, source: bytes, inode: Inode, e: Conflict) -> None:
        """A clean file that was renamed here was changed there: the change goes with it to its new name."""
        ref = await self.current(persistence, source, e.found)
        if ref is None:
            self.vanished(source)
            return
        own = await self._own(persistence, source, ref)
        held = self.namespace.remote.get(source)
        if held is None or held.ino != inode.ino or held.generation != inode.generation:
            return
        if own is not None and own.ino != inode.ino:  # a file of ours that has this name now
            self._arrived(source, own, ref, e)
            return
        self.renew(source, inode, ref)

    def renew(self, path: bytes, inode: Inode, ref: FileRef) -> None:
        """A clean file's content is now what the persistence holds."""
        now = time.time_ns()
        generation = inode.generation + 1
        self.session.hydration.drop(inode)
        mtime_ns = now if ref.mtime_ns is None else ref.mtime_ns
        self.session.commit_foreign(
            Renewed(path, inode.ino, generation, ref.size, mtime_ns, ref.version, now, ref.metadata or None)
        )
        self.session.outdated((), (inode.ino,))
        if len(inode.dentries) > 1:
            for other in self.session.paths(inode):
                self.session.writeback.note_path(other)

    async def follow(self, persistence: Persistence, source: bytes, *, but: bytes | None = None) -> bool:
        """Whether what `source` held, and is not here, is not there any more either, for a move whose answer was lost
        has taken it elsewhere (`but` not to this path): then that is recorded."""
        remote = self.namespace.remote
        held, moves = remote.get(source), [move for move in remote.leaving(source) if move[0] != but]
        inode = None if held is None else self.namespace.inodes.get(held.ino)
        if not moves or inode is None or not inode.remote:
            return False
        if await self.current(persistence, source) is not None:
            return False
        for target, attempt in moves:
            ref, before = await self.current(persistence, target), remote.get(target)
            if ref is None or ref.size not in (UNKNOWN_SIZE, attempt.size):
                continue
            if before is not None and before.version is not None and before.version == ref.version:
                continue
            if remote.get(source) is held and remote.get(target) is before:
                stored = self.session.writeback.transfer.stored
                stored(target, attempt.ino, attempt.generation, attempt.size, ref, source)
            return True
        return False

    def vanished(self, path: bytes) -> None:
        """Someone else deleted what was at the path. What of it is neither here nor at another path is gone."""
        remote = self.namespace.remote
        held = remote.get(path)
        if held is None:
            return
        inode = self.namespace.inodes.get(held.ino)
        others = [remote.entries[other] for other in remote.paths(held.ino) if other != path]
        if inode is not None and inode.remote and all(other.generation < held.generation for other in others):
            self.give_up(inode, is_clean=inode.generation == held.generation)
        self.session.commit(Removed(path))

    def give_up(self, inode: Inode, *, is_clean: bool) -> None:
        """What of the file is not here is nowhere any more. A clean one goes; what was written here stays."""
        if not is_clean:
            self.session.hydration.give_up(inode)
            return
        for dentry in list(inode.dentries):
            self.session.drop_name(Unlink(dentry.parent.ino, dentry.name, time.time_ns()))
