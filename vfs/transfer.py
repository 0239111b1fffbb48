"""One step that brings the persistence nearer to what the namespace says, for one path: a write, a move or a delete.

What is to be done is decided from the state at the moment it begins, never from what was asked for earlier, so any
order of steps ends at the same result. Four rules keep content safe on the way:

- content that is nowhere but at a path of the persistence is moved or fetched before that path is overwritten or
  deleted;
- what was renamed is deleted at its old path only when the persistence has acknowledged it at the new one;
- a write, a move or a delete says which version it expects to find (`if_version`); what else is there is a conflict;
- what a renamed file has at its old path goes only when the disk knows what is left of it: after power loss we would
  look for it there.

A path in `busy` is being worked on, and nobody else touches it in the persistence. `WriteBack` calls `step`.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from vfs import failpoints
from vfs.callbacks import Context
from vfs.capture import SMALL, Capture, Torn, capture
from vfs.conflict import Conflicts
from vfs.errors import Conflict
from vfs.fileref import FileRef, guess_content_type
from vfs.inode import Inode
from vfs.persistence import Persistence
from vfs.records import Dirty, Removed, Stored, Storing
from vfs.remote import Entry

if TYPE_CHECKING:
    from vfs.persisted import PersistedSession

__all__ = ["Blocked", "Transfer"]

log = logging.getLogger(__name__)

_IN_THE_WAY = frozenset({errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ENOTEMPTY})


class Blocked(Exception):
    """The step has to wait until something has been done to the path `on`."""

    def __init__(self, on: bytes) -> None:
        super().__init__(on)
        self.on = on


class Transfer:
    def __init__(self, session: PersistedSession, release: Callable[[bytes], None]) -> None:
        """`release` is called when a path that a step has claimed beside its own is free again."""
        self.session = session
        self._release = release
        self.namespace = session.namespace
        self.busy: set[bytes] = set()
        self.errors: dict[bytes, OSError] = {}  # why a path could not be brought there, last time
        self.conflicts = Conflicts(session)

    # ---- what is to be done

    def desired(self, path: bytes) -> Inode | None:
        """The file that the persistence should hold at the path."""
        inode = self.session.at(path)
        if inode is None or not inode.is_file or self.session.place(path).persistence is None:
            return None
        return inode

    def differs(self, path: bytes) -> bool:
        """Whether something is to be done that can be done."""
        inode, held = self.session.at(path), self.namespace.remote.get(path)
        place = self.session.place(path)
        persistence = place.persistence
        if persistence is None:
            return False
        if inode is None or not inode.is_file:
            if held is None:
                return path in self.namespace.remote.attempts and "on_delete" in persistence.can
            return not persistence.can.isdisjoint({"on_delete", "on_commit"})
        if held is not None and held.ino == inode.ino and held.generation == inode.generation:
            return False
        return persistence.writes

    async def step(self, path: bytes, *, copy: bool = False) -> bool:
        """One step for the path, which is claimed (`busy`). True if the persistence now holds there what it should have
        held when the step began; False if that took something else first. Raises Blocked, Torn, OSError."""
        want, held = self.desired(path), self.namespace.remote.get(path)
        arriving = self.namespace.remote.arriving(path)
        if arriving is not None and (want is None or want.ino != arriving.ino or not self._moves(path)):
            if arriving.source in self.busy:
                raise Blocked(arriving.source)
            if await self.conflicts.follow(self._persistence(path), arriving.source):
                return False
        if want is None:
            return await (self._forget(path) if held is None else self._delete(path, held))
        if held is not None and (held.ino, held.generation) == (want.ino, want.generation):
            return True
        if held is not None and held.ino != want.ino and await self._rescue(held.ino, path):
            return False
        source = self.movable(path, want, held)
        if source is not None:
            return await self._move(source, path, want)
        if want.remote:
            await self._fetch(want)
            return False
        return await self._write(path, want, held, copy)

    def _moves(self, path: bytes) -> bool:
        """Whether a move there can be tried again by itself, and not only in a batch."""
        return "on_move" in self._persistence(path).can

    def _persistence(self, path: bytes) -> Persistence:
        persistence = self.session.place(path).persistence
        if persistence is None:
            raise OSError(errno.ENOSYS, "no persistence", os.fsdecode(path))
        return persistence

    def context(self, path: bytes, inode: Inode, held: Entry | None) -> Context:
        """What the callback is told about the file; `if_version` is about what is there now."""
        context: Context = {
            "mode": stat.S_IMODE(inode.mode),
            "mtime_ns": inode.mtime_ns,
            "uid": inode.uid,
            "gid": inode.gid,
            "content_type": guess_content_type(os.fsdecode(path)),
            "size": inode.size,
            "generation": inode.generation,
        }
        metadata = self.session.metadata_of(inode, held)
        if metadata:
            context["metadata"] = metadata
        if held is None:
            context["if_version"] = None
        elif held.version is not None:
            context["if_version"] = held.version
        return context

    def context_of_write(self, path: bytes, inode: Inode, held: Entry | None, captured: Capture) -> Context:
        """As `context`, of what was captured."""
        context = self.context(path, inode, held)
        context["size"], context["checksum"] = captured.size, captured.checksum
        context["generation"], context["mtime_ns"] = captured.generation, captured.mtime_ns
        return context

    # ---- write

    async def _write(self, path: bytes, want: Inode, held: Entry | None, copy: bool) -> bool:
        persistence = self._persistence(path)
        async with capture(self.session, want, copy=copy) as captured:
            if await self.conflicts.restored(persistence, path, want, captured):
                return False
            context = self.context_of_write(path, want, held, captured)
            checksum = bytes.fromhex(captured.checksum)
            self.session.commit(Storing(path, want.ino, captured.generation, captured.size, checksum))
            failpoints.reach("upload.before-answer")
            await self.secure([path])
            try:
                ref = await self._upload(persistence, path, captured, context)
            except Conflict as e:
                await self.conflicts.on_write(persistence, path, want, e)
                return False
            except OSError:
                if captured.torn:
                    raise Torn(want.ino) from None
                raise
        failpoints.reach("upload.before-record")
        self.stored(path, want.ino, captured.generation, captured.size, ref)
        failpoints.reach("upload.after-record")
        return True

    async def _upload(self, persistence: Persistence, path: bytes, captured: Capture, context: Context) -> FileRef:
        if captured.content is not None:
            return await persistence.write(os.fsdecode(path), captured.content, context)
        with captured.file() as file:
            return await persistence.write_file(os.fsdecode(path), file, context)

    def stored(self, path: bytes, ino: int, generation: int, size: int, ref: FileRef, source: bytes = b"") -> None:
        """The persistence has answered."""
        self.session.commit(Stored(path, ino, generation, ref.version, size, ref.metadata or None, source))
        self.acknowledged(path, size, ref, source)

    def acknowledged(self, path: bytes, size: int, ref: FileRef, source: bytes) -> None:
        """That it has answered is recorded."""
        if source:
            self.session.removed(source)
        else:
            self.session.traffic.uploads += 1
            self.session.traffic.bytes += size
        self.session.synced(path, size, ref)

    async def secure(self, paths: Iterable[bytes]) -> None:
        """What the paths hold is about to go. Where that is content of a file with another name, it is on disk when
        this returns that the persistence has it there too; or else the content is, as a generation that is only here.
        """
        renamed = [holder for path in paths if (holder := self._renamed(path)) is not None]
        alone = [holder for holder in renamed if not self._has_its_name(holder)]
        for holder in alone:
            if not holder.remote and self.namespace.remote.holding(holder.ino, holder.generation) is not None:
                self.session.commit(Dirty(holder.ino, holder.generation + 1))
        for holder in alone:
            await self.session.content.sync(holder.ino)
        if renamed:
            await self.session.sync_journal()

    def _renamed(self, path: bytes) -> Inode | None:
        """The file whose content the path holds, if that has other names."""
        held = self.namespace.remote.get(path)
        holder = None if held is None else self.namespace.inodes.get(held.ino)
        return None if holder is None or not holder.nlink or self.session.at(path) is holder else holder

    def _has_its_name(self, inode: Inode) -> bool:
        """Whether the persistence holds the newest that it has of the file at a name of the file."""
        remote, newest = self.namespace.remote, self.namespace.remote.newest(inode.ino)
        return newest is not None and any(
            self.session.at(path) is inode and remote.entries[path].generation == newest[1].generation
            for path in remote.paths(inode.ino)
        )

    # ---- move

    def movable(self, path: bytes, want: Inode, held: Entry | None) -> bytes | None:
        """A path that holds this very content, wanted there no more, from where the persistence itself can move it."""
        persistence = self._persistence(path)
        if not self._moves(path):
            return None
        if held is not None and not want.remote and want.size <= SMALL:
            return None  # a write says which version it replaces, a move cannot
        for source in self.namespace.remote.paths(want.ino):
            entry = self.namespace.remote.entries[source]
            if source == path or entry.generation != want.generation or self.session.at(source) is want:
                continue
            if self.namespace.remote.is_doubtful(source):
                continue
            if self.session.place(source).persistence is not persistence:
                continue
            if source in self.busy:
                raise Blocked(source)
            return source
        return None

    async def _move(self, source: bytes, path: bytes, want: Inode) -> bool:
        persistence = self._persistence(path)
        entry = self.namespace.remote.entries[source]
        claimed = source not in self.busy
        self.busy.add(source)
        try:
            target = await self.conflicts.target(persistence, path, want)
            if target is None:
                return False
            if self.namespace.remote.get(source) is not entry or self.session.at(path) is not want:
                return False
            tried = any(a.source == source for a in self.namespace.remote.attempts.get(path, ()))
            context: Context = {**self.context(path, want, entry), **target}
            self.session.commit(Storing(path, want.ino, entry.generation, entry.size, b"", source))
            failpoints.reach("move.before-answer")
            await self.secure([path])
            await self.session.sync_journal()
            try:
                ref = await persistence.move(os.fsdecode(source), os.fsdecode(path), context)
            except FileNotFoundError:
                found = await self.conflicts.current(persistence, path) if tried else None
                if found is None:
                    if not await self.conflicts.follow(persistence, source, but=path):
                        self.conflicts.vanished(source)
                    return False
                ref = found
            except Conflict as e:
                if await self.conflicts.target(persistence, path, want) is not None:
                    await self.conflicts.on_source_changed(persistence, source, want, e)
                return False
            failpoints.reach("move.before-record")
            self.stored(path, want.ino, entry.generation, entry.size, ref, source)
            return True
        finally:
            if claimed:
                self.busy.discard(source)
                self._release(source)

    async def _rescue(self, ino: int, path: bytes) -> bool:
        """Where `path` is the only place that holds content of a file that still exists, bring it into safety first.

        True if that was needed, and done: what is to be done is then decided anew.
        """
        holder = self.namespace.inodes.get(ino)
        if holder is None or not holder.remote:
            return False
        newest = self.namespace.remote.newest(ino)
        if newest is None or self.namespace.remote.entries[path].generation < newest[1].generation:
            return False
        if await self.conflicts.follow(self._persistence(path), path):
            return True
        for target in self.session.paths(holder):
            if target in self.busy or self.namespace.remote.get(target) is not None or self.desired(target) is None:
                continue
            if self._moves(target) and self._is_source(path, target, holder):
                self.busy.add(target)
                try:
                    await self._move(path, target, holder)
                finally:
                    self.busy.discard(target)
                    self._release(target)
                return True
        await self._fetch(holder)
        return True

    async def _fetch(self, inode: Inode) -> None:
        """All of the file is here afterwards; what the persistence has no more is gone here too."""
        remote = self.namespace.remote
        if (newest := remote.newest(inode.ino)) is None:
            known = self.session.hydration.map(inode)
            self.conflicts.give_up(inode, is_clean=known.missing == known.blocks)
            return
        try:
            await self.session.hydration.complete(inode)
        except FileNotFoundError:
            source, persistence = newest[0], self.session.place(newest[0]).route.persistence
            if persistence is None or await self.conflicts.current(persistence, source) is not None:
                raise
            if not await self.conflicts.follow(persistence, source) and remote.newest(inode.ino) == newest:
                self.conflicts.vanished(source)

    def _is_source(self, path: bytes, target: bytes, holder: Inode) -> bool:
        return (
            self.namespace.remote.entries[path].generation == holder.generation
            and self.session.place(path).persistence is self.session.place(target).persistence
        )

    # ---- delete

    async def _delete(self, path: bytes, held: Entry) -> bool:
        holder = self.namespace.inodes.get(held.ino)
        if holder is not None:
            if holder.nlink and (on := self.awaited(path, held, holder)) is not None:
                raise Blocked(on)
            if await self._rescue(held.ino, path):
                return False
        await self.secure([path])
        if self.namespace.remote.get(path) is not held or self.desired(path) is not None:
            return False
        persistence = self._persistence(path)
        try:
            await persistence.delete(os.fsdecode(path), self.context_of_delete(path, held))
        except Conflict as e:
            await self.conflicts.on_delete(persistence, path, e)
            return False
        failpoints.reach("delete.before-record")
        self.session.commit(Removed(path))
        return True

    async def _forget(self, path: bytes) -> bool:
        """Nothing is wanted here, but an upload or a move that nobody knows the end of may have left something."""
        if path in self.namespace.remote.attempts:
            try:
                await self.conflicts.on_left_over(self._persistence(path), path)
            except OSError as e:
                if e.errno != errno.ENAMETOOLONG:
                    raise
                self.session.commit(Removed(path))  # the attempt failed for the same reason: nothing got there
        return True

    def context_of_delete(self, path: bytes, held: Entry) -> Context:
        context: Context = {"content_type": guess_content_type(os.fsdecode(path))}
        if held.version is not None:
            context["if_version"] = held.version
        if held.metadata:
            context["metadata"] = held.metadata
        return context

    def awaited(self, path: bytes, held: Entry, holder: Inode) -> bytes | None:
        """The new path of a renamed file that the persistence does not hold yet."""
        waiting = None
        for target in self.session.paths(holder):
            if target == path or self.desired(target) is None:
                continue
            entry = self.namespace.remote.get(target)
            if entry is not None and entry.ino == holder.ino and entry.generation >= held.generation:
                return None
            failed = self.errors.get(target)
            if failed is not None and failed.errno in _IN_THE_WAY and not holder.remote:
                return None  # the old path may be what is in the way of the new one; the content is here
            waiting = target
        return waiting
