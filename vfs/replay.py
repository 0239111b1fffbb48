"""Replay: which of the requests that come again had been carried out already.

When a worker dies, the kernel sends every request that it had taken and not answered once more. Some of those were
carried out: their record is in the journal. Doing them again would be wrong (EEXIST for a directory that the same
mkdir(2) made, names exchanged back), so they are answered with what their record did.

Which records those are is known exactly, not guessed: before a record is appended, its place in the journal is noted as
in flight, and the note is taken back when the request was answered (`mount.inflight`). A thread waits for its request's
answer before it makes another, so a thread's record in flight and its request that is sent again belong together if the
operation and the names are the same; each record serves once.

A pure module: `mount.resend` makes `Resent` of what the kernel sends, `mount.repeated` answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

import msgspec

from vfs.records import Link, Make, Record, Removexattr, Rename, Setattr, Setxattr, Unlink

__all__ = ["MAKING", "Resent", "carried_out", "match"]

MAKING = frozenset({"create", "mkdir", "mknod", "symlink"})

K = TypeVar("K")


class Resent(msgspec.Struct, frozen=True):
    """A request that the kernel may have made before: who asked for what, on which names.

    `kind` is pyfuse3's name of the operation; `inode` the directory for operations on names, else the inode itself;
    `name` the entry or the extended attribute; `to_inode` and `to_name` a rename's target, or a link's new name in
    `to_inode`.
    """

    pid: int
    kind: str
    inode: int
    name: bytes = b""
    to_inode: int = 0
    to_name: bytes = b""
    exchange: bool = False
    exclusive: bool = False
    """A setxattr that must find no such attribute."""


def carried_out(request: Resent, record: Record) -> bool:
    """Is this record what the request did?"""
    match record:
        case Make(parent=parent, name=name, pid=pid):
            return request.kind in MAKING and (request.pid, request.inode, request.name) == (pid, parent, name)
        case Link(ino=ino, parent=parent, name=name, pid=pid):
            asked = (request.pid, request.inode, request.to_inode, request.to_name)
            return request.kind == "link" and asked == (pid, ino, parent, name)
        case Unlink(parent=parent, name=name, pid=pid):
            return request.kind in ("unlink", "rmdir") and (request.pid, request.inode, request.name) == (
                pid,
                parent,
                name,
            )
        case Rename():
            return request.kind == "rename" and (
                request.pid,
                request.inode,
                request.name,
                request.to_inode,
                request.to_name,
                request.exchange,
            ) == (
                record.pid,
                record.old_parent,
                record.old_name,
                record.new_parent,
                record.new_name,
                record.exchange,
            )
        case Setattr(ino=ino, pid=pid):
            # open(2) with O_TRUNC of a file that is there, also by way of a create, leaves this record as well
            return request.kind in ("setattr", "open") and (request.pid, request.inode) == (pid, ino)
        case Setxattr(ino=ino, name=name, pid=pid):
            return request.kind == "setxattr" and (request.pid, request.inode, request.name) == (pid, ino, name)
        case Removexattr(ino=ino, name=name, pid=pid):
            return request.kind == "removexattr" and (request.pid, request.inode, request.name) == (pid, ino, name)
        case _:
            return False


def match(requests: Iterable[Resent], in_flight: Mapping[K, Record]) -> dict[Resent, list[K]]:
    """For each request that had been carried out, the keys of the records that did it. Each record serves once."""
    left = dict(in_flight)
    found: dict[Resent, list[K]] = {}
    for request in requests:
        for key, record in left.items():
            if carried_out(request, record):
                found.setdefault(request, []).append(key)
                del left[key]
                break
    return found
