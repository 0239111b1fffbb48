"""A batch: what is pending for many paths, in one call.

Into that of an `on_commit`, all or nothing, go writes of small files, moves and deletes that stand for themselves:
moves first, then writes, then deletes, so no old path is deleted before its content is at the new one. Into that of an
`on_write_many` go writes of still smaller files only, each of which is written or not; and where callbacks are sync,
many such writes, or many deletes, are made in one thread. A path that needs more care (content that has to be fetched
first, a large file, a path that is the source of one and the target of another move) is left out and goes alone, by
`transfer`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from vfs import failpoints
from vfs.callbacks import Change
from vfs.capture import SMALL, Torn, capture_small
from vfs.fileref import FileRef
from vfs.inode import Inode
from vfs.persistence import Persistence
from vfs.records import Removed, Stored, Storing
from vfs.remote import Entry

if TYPE_CHECKING:
    from vfs.persisted import PersistedSession

__all__ = ["LITTLE", "MANY", "commit", "delete_many", "write_many"]

BYTES = 32 << 20  # of content in one batch
MANY, LITTLE = 16, 64 << 10  # files of an on_write_many at most, and bytes of each


class _Step(msgspec.Struct):
    """One change, and what is recorded when it is made."""

    change: Change
    path: bytes
    ino: int
    generation: int
    size: int
    checksum: bytes = b""
    source: bytes = b""

    def storing(self) -> Storing:
        return Storing(self.path, self.ino, self.generation, self.size, self.checksum, self.source)

    def stored(self, ref: FileRef) -> Stored:
        return Stored(self.path, self.ino, self.generation, ref.version, self.size, ref.metadata or None, self.source)


async def commit(session: PersistedSession, persistence: Persistence, paths: set[bytes]) -> set[bytes]:
    """Carry out what fits into one batch; the paths that were. They are claimed, all of them. Raises OSError."""
    return await _carry_out(session, persistence.commit, await _plan(session, persistence, paths))


async def write_many(session: PersistedSession, persistence: Persistence, paths: set[bytes]) -> set[bytes]:
    """Write those that stand for themselves; the paths that were. They are claimed, all of them. Raises OSError."""
    writes: list[_Step] = []
    for path in sorted(paths):
        want, held = session.writeback.transfer.desired(path), session.namespace.remote.get(path)
        if want is None or want.remote or want.size > LITTLE or _is_needed(session, path, held, want):
            continue
        if all(other == path for other in session.namespace.remote.paths(want.ino)):  # else it may be moved
            with contextlib.suppress(Torn):
                writes.append(await _write(session, path, want))
    return await _carry_out(session, persistence.write_many, writes)


async def delete_many(session: PersistedSession, persistence: Persistence, paths: set[bytes]) -> set[bytes]:
    """Delete those that no file needs any more; the paths that were. They are claimed, all of them. Raises OSError."""
    return await _carry_out(session, persistence.delete_many, _deletes(session, paths, set()))


async def _carry_out(
    session: PersistedSession,
    call: Callable[[Sequence[Change]], Awaitable[Sequence[FileRef | None]]],
    steps: list[_Step],
) -> set[bytes]:
    """Have `call` answer for the first of these steps, and record what it has; the paths of those."""
    if not steps:
        return set()
    session.commit_all([step.storing() for step in steps if step.change.kind != "delete"])
    failpoints.reach("batch.before-answer")
    await session.writeback.transfer.secure([step.path for step in steps])
    if any(step.source for step in steps):
        await session.sync_journal()
    refs = await call([step.change for step in steps])
    failpoints.reach("batch.before-record")
    done = steps[: len(refs)]
    answered = list(zip(done, refs, strict=True))
    session.commit_all([step.stored(ref) for step, ref in answered if ref is not None])
    session.commit_all([Removed(step.path) for step, ref in answered if ref is None])
    for step, ref in answered:
        if ref is not None:
            session.writeback.transfer.acknowledged(step.path, step.size, ref, step.source)
    return {step.path for step in done}


async def _plan(session: PersistedSession, persistence: Persistence, paths: set[bytes]) -> list[_Step]:
    transfer, remote = session.writeback.transfer, session.namespace.remote
    moves: list[_Step] = []
    writes: list[_Step] = []
    sources: set[bytes] = set()
    size = 0
    for path in sorted(paths):
        want, held = transfer.desired(path), remote.get(path)
        if want is None or _is_needed(session, path, held, want):
            continue
        source = _source(session, persistence, path, want, held, paths)
        if source is not None and source not in sources:
            sources.add(source)
            moves.append(_move(session, path, want, source))
        elif not want.remote and want.size <= SMALL and size + want.size <= BYTES:
            with contextlib.suppress(Torn):
                writes.append(await _write(session, path, want))
                size += want.size
    steps = moves + writes
    return steps + _deletes(session, paths - sources, {step.path for step in steps})


def _deletes(session: PersistedSession, paths: set[bytes], fresh: set[bytes]) -> list[_Step]:
    """For those of the paths that hold nothing which a file needs, when the paths `fresh` have been stored."""
    return [
        _delete(session, path, held)
        for path in sorted(paths)
        if session.writeback.transfer.desired(path) is None
        and (held := session.namespace.remote.get(path)) is not None
        and not _is_needed(session, path, held, None)
        and _is_elsewhere(session, path, held, fresh)
    ]


def _is_needed(session: PersistedSession, path: bytes, held: Entry | None, want: Inode | None) -> bool:
    """Whether what the path holds is, or may be, content of another file that is not here."""
    if session.namespace.remote.arriving(path) is not None:
        return True
    if held is None or (want is not None and want.ino == held.ino):
        return False
    holder = session.namespace.inodes.get(held.ino)
    return holder is not None and holder.remote


def _is_elsewhere(session: PersistedSession, path: bytes, held: Entry, fresh: set[bytes]) -> bool:
    """Whether a renamed file is at its new path, or gets there in this batch: unless what is written is what the old
    path holds, for after power loss that is looked for there."""
    holder = session.namespace.inodes.get(held.ino)
    if holder is None or not holder.nlink:
        return True
    awaited = session.writeback.transfer.awaited(path, held, holder)
    return awaited is None or (awaited in fresh and held.generation != holder.generation)


def _source(
    session: PersistedSession, persistence: Persistence, path: bytes, want: Inode, held: Entry | None, paths: set[bytes]
) -> bytes | None:
    """Where a clean file can be moved from: a path of this batch where nothing is wanted, to one that is free."""
    if held is not None:
        return None
    for source in session.namespace.remote.paths(want.ino):
        entry = session.namespace.remote.entries[source]
        is_held = entry.generation == want.generation and not session.namespace.remote.is_doubtful(source)
        if source in paths and is_held and session.at(source) is None:
            return source if session.place(source).persistence is persistence else None
    return None


async def _write(session: PersistedSession, path: bytes, want: Inode) -> _Step:
    """Raises Torn, also for what has to be looked at first."""
    captured = await capture_small(session, want)
    if session.writeback.transfer.conflicts.lost(path, want, captured):
        raise Torn(want.ino)
    held = session.namespace.remote.get(path)
    context = session.writeback.transfer.context_of_write(path, want, held, captured)
    change = Change("write", os.fsdecode(path), context, file=captured.file())
    checksum = bytes.fromhex(captured.checksum)
    return _Step(change, path, want.ino, captured.generation, captured.size, checksum)


def _move(session: PersistedSession, path: bytes, want: Inode, source: bytes) -> _Step:
    entry = session.namespace.remote.entries[source]
    context = session.writeback.transfer.context(path, want, entry)
    change = Change("move", os.fsdecode(path), context, source=os.fsdecode(source))
    return _Step(change, path, want.ino, entry.generation, entry.size, source=source)


def _delete(session: PersistedSession, path: bytes, held: Entry) -> _Step:
    context = session.writeback.transfer.context_of_delete(path, held)
    return _Step(Change("delete", os.fsdecode(path), context), path, held.ino, held.generation, 0)
