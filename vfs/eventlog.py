"""The event log: what happened in a session, as an append-only file in segments, bounded in size.

STATE/<session>/events/ holds segments named by the number of their first event. A segment is a sequence of the
journal's frames, a frame holds one `Batch` of events with consecutive numbers. What is in a batch was written by one
write(2), so it survives the death of the process; nobody is shown an event before. The last batch says how far into
the journal its events reach (`Mark`): what the journal has behind that is made into events at the next start, so
nothing that survives a crash goes without its event, and no number is given twice.

Segments beyond the size that is allowed are deleted, oldest first; who reads behind that is told what it lost.

`EventLog` writes, and belongs to `events.Events`. `read` is for everyone, also for another process: of what it finds
in the directory it trusts nothing, and half a frame at the end is what is being written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from vfs.durable import sync_directory
from vfs.errors import error
from vfs.journal import HEADER_SIZE, frame, payload_at

__all__ = ["BATCH", "Batch", "EventLog", "Mark", "Page", "Place", "last_number", "read"]

BATCH = 100  # events in one frame: about 20 KB
_CHUNK = 256 << 10
_AFTER_POWER_LOSS = 1_000_000  # numbers left out: the end of the log, which is gone, may have been read


class Mark(msgspec.Struct, array_like=True, frozen=True):
    """How far the events reach: the journal's place, the time (ns), and the files that were written since their last
    event. `starting`: the session is being opened, and what is found in a persistence by that is no news."""

    segment: int
    offset: int
    time_ns: int
    writing: list[int] = []
    starting: bool = False


class Batch(msgspec.Struct, array_like=True, frozen=True):
    """Events `first` and following. `rows` as `event.Row`; `origins`: pid -> program and container of those rows.

    `mark` is None in all but the last of the batches that were written together. `recovered`: made from the journal
    after a crash.
    """

    first: int
    rows: Sequence[msgspec.Raw]
    mark: Mark | None
    origins: Mapping[int, tuple[str | None, str | None]] = {}
    recovered: bool = False


class _Written(NamedTuple):
    """A Batch on its way out: its rows are plain tuples."""

    first: int
    rows: Sequence[tuple[Any, ...]]
    mark: Mark | None
    origins: Mapping[int, tuple[str | None, str | None]]
    recovered: bool


class Place(NamedTuple):
    """Where a reader goes on: a segment's first number, and an offset in it."""

    segment: int
    offset: int


class Page(NamedTuple):
    """Batches behind the number that was asked for (the first may begin before it), and where the next page begins.

    `lost`: the number of the last event before the oldest one kept, if events that were asked for are gone.
    """

    batches: list[Batch]
    place: Place | None
    lost: int | None


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Batch).decode


def _name(first: int) -> str:
    return f"{first:020d}"


def _segments(directory_fd: int) -> list[int]:
    return sorted(int(name) for name in os.listdir(directory_fd) if name.isdecimal())


class EventLog:
    """The end of the log. `last` is the number of the last event that is in it, `mark` what its last batch says."""

    def __init__(self, directory: Path, max_bytes: int, *, powered_off: bool = False) -> None:
        """Go on with what is there; what a crash left half written at its end is cut."""
        directory.mkdir(mode=0o700, exist_ok=True)
        self.directory = directory
        self.last = 0
        self.mark: Mark | None = None
        self._segment_bytes = max(128 << 10, min(4 << 20, max_bytes // 8))
        self._max_bytes = max(max_bytes, 2 * self._segment_bytes)
        self._directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._fd = -1
        self._size = 0
        self._sizes: dict[int, int] = {}
        self._recover(powered_off)

    @property
    def oldest(self) -> int:
        """The number of the oldest event that is kept, or that the next one will have."""
        return next(iter(self._sizes), self.last + 1)

    def _recover(self, powered_off: bool) -> None:
        segments = _segments(self._directory_fd)
        while segments and self.mark is None:
            first = segments[-1]
            whole = self._whole(self._read(first))
            if self.mark is None:
                os.unlink(_name(first), dir_fd=self._directory_fd)
                segments.pop()
                self.last = first - 1
        for first in segments:
            self._sizes[first] = os.stat(_name(first), dir_fd=self._directory_fd).st_size
        if not segments:
            return
        if powered_off:
            self.last += _AFTER_POWER_LOSS
        self._fd = self._open(segments[-1])
        os.ftruncate(self._fd, whole)
        self._size = self._sizes[segments[-1]] = whole

    def _read(self, first: int) -> bytes:
        fd = os.open(_name(first), os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._directory_fd)
        with open(fd, "rb") as file:
            return file.read()

    def _whole(self, content: bytes) -> int:
        """The length of what ends with a mark; notes that mark, and the last number before it."""
        whole = at = 0
        while (payload := payload_at(content, at)) is not None:
            batch = _decode(payload)
            at += HEADER_SIZE + len(payload)
            if batch.mark is not None:
                whole, self.mark, self.last = at, batch.mark, batch.first + len(batch.rows) - 1
        return whole

    def _open(self, first: int) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return os.open(_name(first), flags, 0o600, dir_fd=self._directory_fd)

    def append(
        self,
        rows: Sequence[tuple[Any, ...]],
        mark: Mark,
        origins: Mapping[int, tuple[str | None, str | None]],
        *,
        recovered: bool = False,
    ) -> None:
        """The events get the next numbers, and are in the log when this returns; else an OSError, and nothing is."""
        first, framed = self.last + 1, bytearray()
        for at in range(0, len(rows), BATCH) or (0,):
            part = rows[at : at + BATCH]
            is_last = at + BATCH >= len(rows)
            framed += frame(_encode(_Written(first + at, part, mark if is_last else None, origins, recovered)))
        is_full = self._size + len(framed) > self._segment_bytes and first not in self._sizes
        if self._fd < 0 or is_full:
            self._begin_segment()
        try:
            written = os.write(self._fd, framed)
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        if written != len(framed):
            os.ftruncate(self._fd, self._size)
            raise error(errno.ENOSPC, self.directory)
        self.last += len(rows)
        self.mark = mark
        self._size += written
        self._sizes[next(reversed(self._sizes))] = self._size

    def _begin_segment(self) -> None:
        fd = self._open(self.last + 1)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._size = fd, 0
        self._sizes[self.last + 1] = 0
        total = sum(self._sizes.values()) + self._segment_bytes
        for first in list(self._sizes)[:-2]:
            if total <= self._max_bytes:
                break
            total -= self._sizes.pop(first)
            os.unlink(_name(first), dir_fd=self._directory_fd)

    def sync(self) -> None:
        """All that was appended is on disk. Blocks."""
        if self._fd >= 0:
            fd = os.dup(self._fd)
            try:
                os.fdatasync(fd)
            finally:
                os.close(fd)
            sync_directory(self.directory)

    def close(self) -> None:
        fds, self._fd, self._directory_fd = [self._fd, self._directory_fd], -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)


# ---- reading


def read(directory: Path, since: int, *, place: Place | None = None, most: int = BATCH) -> Page:
    """The batches with events numbered above `since`: at least `most` events, if there are as many.

    `place` is where an earlier page said that the next begins; without it the segment is searched. An unread log that
    is not there is an empty one. Blocks.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return Page([], None, None)
    try:
        while True:
            try:
                return _read_page(fd, since, place, most)
            except FileNotFoundError:  # the oldest segment was deleted meanwhile
                place = None
    finally:
        os.close(fd)


def _read_page(directory_fd: int, since: int, place: Place | None, most: int) -> Page:
    segments = _segments(directory_fd)
    lost = None
    if segments and since < segments[0] - 1:
        since = lost = segments[0] - 1
        place = None
    batches: list[Batch] = []
    count = 0
    if place is None or place.segment not in segments:
        at = [first for first in segments if first <= since + 1] or segments[:1]
        place = Place(at[-1], 0) if at else None
    while place is not None and count < most:
        for batch, end in _batches(directory_fd, place):
            place = Place(place.segment, end)
            if batch.rows and batch.first + len(batch.rows) > since + 1:
                batches.append(batch)
                count += batch.first + len(batch.rows) - max(since + 1, batch.first)
            if count >= most:
                break
        else:
            later = [first for first in segments if first > place.segment]
            if not later:
                break
            place = Place(later[0], 0)
    return Page(batches, place, lost)


def _batches(directory_fd: int, place: Place) -> Iterator[tuple[Batch, int]]:
    """The whole batches of a segment from an offset on, with the offsets where they end."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    fd = os.open(_name(place.segment), flags, dir_fd=directory_fd)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise error(errno.EINVAL, _name(place.segment))
        offset, content, at = place.offset, b"", 0
        while True:
            payload = payload_at(content, at)
            if payload is None:
                more = os.pread(fd, _CHUNK, offset + len(content))
                if not more:
                    return
                offset += at
                content = content[at:] + more
                at = 0
                continue
            at += HEADER_SIZE + len(payload)
            with contextlib.suppress(msgspec.DecodeError):
                yield _decode(payload), offset + at
    finally:
        os.close(fd)


def last_number(directory: Path) -> int:
    """The number of the last event in a log that nobody may have open. Blocks."""
    since, place = 0, None
    while True:
        page = read(directory, since, place=place, most=100 * BATCH)
        if not page.batches:
            return since if page.lost is None else page.lost
        since, place = page.batches[-1].first + len(page.batches[-1].rows) - 1, page.place
