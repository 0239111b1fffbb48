"""One event: what happened to one path of a session, when, and who did it. docs/events.md is the contract.

In the log an event is a `Row`, which costs the request path a tuple and nothing else; `read_events` makes Events of
rows for who reads them. Paths begin with `/`.
"""

from __future__ import annotations

import base64
import stat
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from vfs import eventlog
from vfs.eventlog import Batch, Place
from vfs.fileref import FileRef, guess_content_type

__all__ = ["KINDS", "Event", "Kind", "Row", "read_events"]

Kind = Literal["created", "modified", "deleted", "moved", "synced", "conflict", "error", "soft_limit", "lost"]
KINDS: frozenset[str] = frozenset(Kind.__args__)  # type: ignore[attr-defined]
Type = Literal["file", "directory", "symlink", "fifo", "socket", "block", "character"]

_TYPES: dict[int, Type] = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFBLK: "block",
    stat.S_IFCHR: "character",
}


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Absent fields are not known, or do not apply.

    seq          counts a session's events, from 1, over all its restarts; later events have higher numbers
    time_ns      nanoseconds since the epoch
    path         b"\\xff" and the like, which are no UTF-8, are shown as `\\xff`; `path_base64` has the bytes then
    old_path     where it was (moved), with `old_path_base64`; for a conflict: where our version is kept
    file         as the file was then; of a `synced` event: as the persistence has it, or absent if it has nothing there
    attributes   a `modified` event that is about mode, owner, times or xattrs only
    remote       someone else did it, in the persistence
    uid, gid     of the process that asked; pid: the thread, as the host numbers it
    program      its name (/proc/PID/comm); container: the id of its container
    recovered    made from the journal after a crash: `file.size` may be that of an earlier time
    message      of an `error`: what is wrong; it is tried again
    limit        of `soft_limit`: which one, what is used, and the limit
    missed       of `lost`: how many events are not kept any more, as far as is known
    """

    seq: int
    time_ns: int
    session: str
    kind: Kind
    path: str = ""
    path_base64: str | None = None
    old_path: str | None = None
    old_path_base64: str | None = None
    type: Type | None = None
    file: FileRef | None = None
    attributes: bool = False
    remote: bool = False
    uid: int | None = None
    gid: int | None = None
    pid: int | None = None
    program: str | None = None
    container: str | None = None
    recovered: bool = False
    message: str | None = None
    limit: dict[str, Any] | None = None
    missed: int | None = None


class Row(msgspec.Struct, array_like=True, frozen=True):
    """An event in the log. Paths are relative to the session's root; `pid` 0 is nobody's; `about` has the rest."""

    kind: Kind
    time_ns: int
    path: bytes
    old_path: bytes | None = None
    mode: int | None = None
    size: int = 0
    mtime_ns: int = 0
    ctime_ns: int = 0
    pid: int = 0
    uid: int | None = None
    gid: int | None = None
    about: dict[str, Any] | None = None


_decode = msgspec.msgpack.Decoder(Row).decode


def _shown(path: bytes | None) -> tuple[str | None, str | None]:
    """The path for people, and in base64 if that is not all of it."""
    if path is None:
        return None, None
    try:
        return "/" + path.decode(), None
    except UnicodeDecodeError:
        return "/" + path.decode(errors="backslashreplace"), base64.b64encode(b"/" + path).decode()


def _file(row: Row, path: str, about: dict[str, Any]) -> FileRef | None:
    if row.mode is None or (row.kind == "synced" and about.get("absent")):
        return None
    return FileRef(
        path=path,
        size=row.size,
        content_type=guess_content_type(path) if stat.S_ISREG(row.mode) else None,
        checksum=about.get("checksum"),
        created_at=datetime.fromtimestamp(row.ctime_ns / 1e9, UTC),
        version=about.get("version"),
        mtime_ns=row.mtime_ns,
        mode=stat.S_IMODE(row.mode),
        metadata=about.get("metadata") or {},
    )


def _events_of(session_id: str, batch: Batch, since: int) -> Iterator[Event]:
    """The batch's events numbered above `since`."""
    skip = max(0, since + 1 - batch.first)
    for seq, raw in enumerate(batch.rows[skip:], batch.first + skip):
        row = _decode(raw)
        about = row.about or {}
        path, path_base64 = _shown(row.path)
        old_path, old_path_base64 = _shown(row.old_path)
        program, container = batch.origins.get(row.pid, (None, None))
        yield Event(
            seq=seq,
            time_ns=row.time_ns,
            session=session_id,
            kind=row.kind,
            path=path or "",
            path_base64=path_base64,
            old_path=old_path,
            old_path_base64=old_path_base64,
            type=None if row.mode is None else _TYPES.get(stat.S_IFMT(row.mode)),
            file=_file(row, path or "", about),
            attributes=about.get("attributes", False),
            remote=about.get("remote", False),
            uid=row.uid,
            gid=row.gid,
            pid=row.pid or None,
            program=program,
            container=container,
            recovered=batch.recovered,
            message=about.get("message"),
            limit=about.get("limit"),
            missed=about.get("missed"),
        )


def read_events(
    session_id: str, directory: Path, since: int, *, last: int | None = None, place: Place | None = None, most: int
) -> tuple[list[Event], Place | None]:
    """Some of the events numbered above `since` in the log in `directory`, and where the next ones are. Blocks.

    `last`: the number of the last one that may be told, if that is known. Where what was asked for is not kept any
    more, or `since` is a number that this log has not given yet (another log than the reader thinks), the first is
    `lost`, and what follows begins at the oldest.
    """
    found: list[Event] = []
    asked = since
    if last is not None and since > last:
        since, place = -1, None
    page = eventlog.read(directory, since, place=place, most=most)
    if page.lost is not None or since < 0:
        since = page.lost or 0
        missed = max(0, since - asked)
        found.append(Event(seq=since, time_ns=time.time_ns(), session=session_id, kind="lost", missed=missed))
    for batch in page.batches:
        found += _events_of(session_id, batch, since)
    if last is None or not found or found[-1].seq <= last:
        return found, page.place
    return [event for event in found if event.seq <= last], None
