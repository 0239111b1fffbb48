"""The image: a whole namespace in one file, so that the journal does not grow without bound.

It is a sequence of the journal's frames: `Header`; `Inodes`, `Dentries` and `Held` in chunks; `End` with the number of
frames. A file without its End is damaged, never half a tree. It is written aside, synced and renamed. `Header.segment`
is the first journal segment that is not in it.

`COMMAND STATE-DIRECTORY SEGMENT` makes the next image from the last one and the closed segments below SEGMENT, and
deletes them: a process of its own, so the request path never waits for it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from vfs import failpoints
from vfs.durable import sync_directory
from vfs.errors import DamagedState
from vfs.inode import Dentry, Inode
from vfs.journal import frame, frames, segment_path, segments
from vfs.namespace import ROOT, Namespace
from vfs.records import Record, decode
from vfs.remote import Attempt, Entry, Remote

__all__ = ["ASIDE", "COMMAND", "Applied", "compact", "load", "lock", "main", "replay", "save"]

_CHUNK = 1000
NICENESS = 10  # nobody waits for an image: it takes a tenth of what other sessions' requests are given
ASIDE = "image.new"


class Header(msgspec.Struct, array_like=True, frozen=True, tag=1):
    segment: int
    next_ino: int
    next_cookie: int


class Inodes(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """ino, mode, nlink, uid, gid, rdev, size, atime, mtime, ctime, generation, unsettled|sealed|remote, target,
    xattrs."""

    rows: list[tuple[int, int, int, int, int, int, int, int, int, int, int, int, bytes, dict[bytes, bytes] | None]]


class Dentries(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """parent, name, ino, cookie; each directory's in cookie order."""

    rows: list[tuple[int, bytes, int, int]]


class End(msgspec.Struct, array_like=True, frozen=True, tag=4):
    frames: int


class Held(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """What the persistences hold, and uploads whose answer is not known: path, and the fields of each."""

    rows: list[tuple[bytes, Entry]]
    attempts: list[tuple[bytes, list[Attempt]]] = []


_decode = msgspec.msgpack.Decoder(Header | Inodes | Dentries | End | Held).decode
_encode = msgspec.msgpack.Encoder().encode


def _inode_rows(namespace: Namespace) -> Iterator[tuple[Any, ...]]:
    for i in namespace.inodes.values():
        flags = i.unsettled | i.sealed << 1 | i.remote << 2
        times = (i.atime_ns, i.mtime_ns, i.ctime_ns)
        yield (i.ino, i.mode, i.nlink, i.uid, i.gid, i.rdev, i.size, *times, i.generation, flags, i.target, i.xattrs)


def _dentry_rows(namespace: Namespace) -> Iterator[tuple[int, bytes, int, int]]:
    for inode in namespace.inodes.values():
        if inode.entries:
            for dentry in inode.entries.values():
                yield inode.ino, dentry.name, dentry.inode.ino, dentry.cookie


def _chunks(namespace: Namespace) -> Iterator[Inodes | Dentries | Held]:
    inode_rows = _inode_rows(namespace)
    while chunk := list(islice(inode_rows, _CHUNK)):
        yield Inodes(chunk)
    dentry_rows = _dentry_rows(namespace)
    while rows := list(islice(dentry_rows, _CHUNK)):
        yield Dentries(rows)
    held = iter(namespace.remote.entries.items())
    while entries := list(islice(held, _CHUNK)):
        yield Held(entries)
    if namespace.remote.attempts:
        yield Held([], list(namespace.remote.attempts.items()))


def save(namespace: Namespace, directory: Path, segment: int) -> None:
    """The image of `namespace`, durably in place of the one before."""
    aside = directory / ASIDE
    try:
        with open(aside, "wb", opener=_private) as file:
            count = 1
            file.write(frame(_encode(Header(segment, namespace.next_ino, namespace.next_cookie))))
            for chunk in _chunks(namespace):
                file.write(frame(_encode(chunk)))
                count += 1
            file.write(frame(_encode(End(count))))
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        aside.unlink(missing_ok=True)
        raise
    failpoints.reach("image.before-rename")
    aside.rename(directory / "image")
    sync_directory(directory)
    failpoints.reach("image.after-rename")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def load(directory: Path) -> tuple[Namespace, int]:
    """The namespace in the image, and the first segment to apply to it; an empty one where there is no image yet."""
    path = directory / "image"
    if not path.exists():
        return Namespace(), 0
    header: Header | None = None
    inodes: dict[int, Inode] = {}
    remote = Remote()
    ended = False
    for count, (at, payload) in enumerate(frames(path, torn_ok=False)):
        try:
            chunk = _decode(payload)
        except msgspec.DecodeError as e:
            raise DamagedState(str(path), f"the frame that ends at byte {at} is not an image's: {e}") from e
        if isinstance(chunk, Header):
            header = chunk
        elif isinstance(chunk, Inodes):
            _load_inodes(inodes, chunk)
        elif isinstance(chunk, Dentries):
            _load_dentries(inodes, chunk, path)
        elif isinstance(chunk, Held):
            for held, entry in chunk.rows:
                remote.put(held, entry)
            for tried, attempts in chunk.attempts:
                for attempt in attempts:
                    remote.attempt(tried, attempt)
        else:
            ended = chunk.frames == count
    if header is None or not ended or ROOT not in inodes:
        raise DamagedState(str(path), "it has no beginning or no end")
    namespace = Namespace(inodes[ROOT])
    namespace.inodes = inodes
    namespace.remote = remote
    namespace.orphans = {ino: inode for ino, inode in inodes.items() if not inode.nlink}
    namespace.next_ino, namespace.next_cookie = header.next_ino, header.next_cookie
    return namespace, header.segment


def _load_inodes(inodes: dict[int, Inode], chunk: Inodes) -> None:
    for ino, mode, nlink, uid, gid, rdev, size, atime, mtime, ctime, generation, flags, target, xattrs in chunk.rows:
        inode = Inode(ino, mode, uid, gid, ctime)
        inode.nlink = nlink
        inode.rdev = rdev
        inode.size = size
        inode.atime_ns = atime
        inode.mtime_ns = mtime
        inode.generation = generation
        inode.unsettled, inode.sealed, inode.remote = bool(flags & 1), bool(flags & 2), bool(flags & 4)
        inode.target = target
        inode.xattrs = xattrs
        inodes[ino] = inode


def _load_dentries(inodes: dict[int, Inode], chunk: Dentries, path: Path) -> None:
    for parent_ino, name, ino, cookie in chunk.rows:
        parent, inode = inodes.get(parent_ino), inodes.get(ino)
        if parent is None or inode is None or parent.entries is None:
            raise DamagedState(str(path), f"the entry {name!r} of inode {parent_ino} leads nowhere")
        dentry = Dentry(parent, name, inode, cookie)
        parent.entries[name] = dentry
        inode.dentries.append(dentry)


@contextmanager
def lock(directory: Path) -> Iterator[None]:
    """Held while an image is made, and by recovery, which must not read segments that are being deleted."""
    fd = os.open(directory / "image.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


Applied = Callable[[Namespace, int, Record, Inode | None], None]
"""Told of each record that was applied: where it ends in its segment, and the inode that it is about."""


def replay(
    namespace: Namespace,
    path: Path,
    *,
    torn_ok: bool,
    powered_off: bool = False,
    applied: Applied = lambda namespace, end, record, inode: None,
) -> int:
    """Apply a journal segment; the result is the length of what is whole in it."""
    end = 0
    for at, payload in frames(path, torn_ok=torn_ok, powered_off=powered_off):
        try:
            record = decode(payload)
            applied(namespace, at, record, namespace.apply(record))
        except (msgspec.DecodeError, KeyError, AssertionError, ValueError) as e:
            raise DamagedState(str(path), f"the record that ends at byte {at} does not fit: {e!r}") from e
        end = at
    return end


def compact(directory: Path, upto: int) -> None:
    """Take the closed segments below `upto` into the image, and delete them."""
    namespace, first = load(directory)
    for segment in segments(directory):
        if first <= segment < upto:
            replay(namespace, segment_path(directory, segment), torn_ok=False)
    if first < upto:
        save(namespace, directory, upto)
    for segment in segments(directory):
        if segment < upto:
            segment_path(directory, segment).unlink()


_PROJECT = str(Path(__file__).resolve().parent.parent)
_MAIN = f"import sys; sys.path.insert(0, {_PROJECT!r}); from vfs.image import main; main()"
COMMAND = (sys.executable, "-P", "-c", _MAIN)  # -P: a module in the current directory is not ours
"""Run it with a pipe as standard input, whose other end the worker keeps: see `main`."""


def main() -> None:
    """Ends with the worker that asked for it: its successor must not find segments vanishing.

    PR_SET_PDEATHSIG would end it with the thread that forked it, and trio's threads end after ten idle seconds.
    """
    os.nice(NICENESS)
    directory, upto = Path(sys.argv[1]), int(sys.argv[2])
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with lock(directory):
        compact(directory, upto)


def _end_with_parent() -> None:
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGKILL)
