"""The write-ahead journal: append-only segments of framed records.

A frame is `u32 length, u32 crc32 of the payload, payload`, little-endian. A record is in the journal once write(2) has
taken its whole frame: from then on it survives the death of every process of ours. `sync` makes it survive power loss.

Space is reserved ahead of the end (fallocate with FALLOC_FL_KEEP_SIZE), so that on a full disk a record that makes room
(`Record.frees`) can still be written; any other is refused with ENOSPC, and the journal is as it was.

Reading tells a torn tail (the last frame, which a crash cut short: it was never acknowledged, or not synced before
power was lost) from damage (a frame that does not check with whole frames behind it), which is an error. Only after
power loss can there be whole frames behind one that never reached the disk: pages are written in any order.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from vfs import failpoints
from vfs.durable import sync_directory
from vfs.errors import DamagedState, error
from vfs.records import Begin, Record, encode

__all__ = ["HEADER_SIZE", "Journal", "frame", "frames", "payload_at", "segment_path", "segments"]

_HEADER = struct.Struct("<II")
HEADER_SIZE = _HEADER.size
_AHEAD = 1 << 20
_RESERVE = 1 << 16
_PAGE = 4096
_UNLIMITED = 1 << 62  # the disk cannot reserve
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE, linux/falloc.h

_libc = ctypes.CDLL(None, use_errno=True)


def segment_path(directory: Path, segment: int) -> Path:
    return directory / f"journal.{segment}"


def segments(directory: Path) -> list[int]:
    """The numbers of the segments that are there, oldest first."""
    found = []
    for path in directory.glob("journal.*"):
        with contextlib.suppress(ValueError):
            found.append(int(path.name.removeprefix("journal.")))
    return sorted(found)


def frame(payload: bytes) -> bytes:
    return _HEADER.pack(len(payload), zlib.crc32(payload)) + payload


def frames(path: Path, *, torn_ok: bool, powered_off: bool = False) -> Iterator[tuple[int, bytes]]:
    """Each frame's end offset and payload. A torn tail ends the iteration if `torn_ok`, and so does a page that was
    never written if the machine was `powered_off`; all other damage is an error."""
    content = path.read_bytes()
    at, end = 0, len(content)
    while at < end:
        payload = payload_at(content, at)
        if payload is None:
            if torn_ok and (not _whole_frame_behind(content, at) or (powered_off and _is_unwritten(content, at))):
                return
            raise DamagedState(str(path), f"the frame at byte {at} does not check")
        at += _HEADER.size + len(payload)
        yield at, payload


def payload_at(content: bytes, at: int) -> bytes | None:
    """The payload of the frame at `at`; None if there is no whole frame that checks."""
    if at + _HEADER.size > len(content):
        return None
    length, crc = _HEADER.unpack_from(content, at)
    if not 0 < length <= len(content) - at - _HEADER.size:
        return None
    payload = content[at + _HEADER.size : at + _HEADER.size + length]
    return payload if zlib.crc32(payload) == crc else None


def _whole_frame_behind(content: bytes, at: int) -> bool:
    """Whether a frame that checks begins anywhere behind the broken one at `at`.

    A length that is itself damaged cannot say where the next frame is, so every offset is tried.
    """
    if not content[at:].strip(b"\0"):
        return False
    return any(payload_at(content, offset) is not None for offset in range(at + 1, len(content) - _HEADER.size))


def _is_unwritten(content: bytes, at: int) -> bool:
    """Whether a page that the broken frame at `at` begins in or reaches into is nothing but zeros from there on."""
    length, _ = _HEADER.unpack_from(content.ljust(at + _HEADER.size, b"\0"), at)
    start, end = at, min(at + _HEADER.size + length, len(content))
    while start < end or start == at:
        page_end = start - start % _PAGE + _PAGE
        page = content[start:page_end]
        if page and not page.strip(b"\0"):
            return True
        start = page_end
    return False


def _reserve(fd: int, size: int) -> int:
    """Blocks for `size` bytes, whatever the file's size: how many bytes are reserved then, 0 on a full disk."""
    if _libc.fallocate(fd, _KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(size)) == 0:
        return size
    number = ctypes.get_errno()
    if number in (errno.EOPNOTSUPP, errno.ENOSYS):
        return _UNLIMITED
    if number in (errno.ENOSPC, errno.EDQUOT):
        return 0
    raise error(number, "the journal")


class Journal:
    """The segment that is being written. One writer; `append` neither waits nor yields."""

    def __init__(self, directory: Path, segment: int, size: int = 0) -> None:
        """Continues `segment` at `size` bytes (what lies behind is cut), or begins it."""
        self.directory = directory
        self.segment = segment
        self.size = size
        self._synced = (-1, 0)
        self._closed: list[int] = []
        self._failed: OSError | None = None
        self._torn = False
        self._fd = self._open(segment)
        if os.fstat(self._fd).st_size != size:
            os.ftruncate(self._fd, size)
        # What an earlier writer reserved is ours; on a full disk it cannot be had anew.
        self._reserved = _reserve(self._fd, size + _RESERVE) or os.fstat(self._fd).st_blocks * 512

    def _open(self, segment: int) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        return os.open(segment_path(self.directory, segment), flags, 0o600)

    def append(self, record: Record, *others: Record, frees: bool = False) -> None:
        """The record is in the journal when this returns, and others of its kind; ENOSPC or EIO if one is not, and then
        nothing has changed.

        `frees`: it makes room, though its kind need not.
        """
        framed = frame(encode(record))
        if others:
            framed = b"".join((framed, *(frame(encode(other)) for other in others)))
        if self.size + len(framed) > self._reserved - _RESERVE:
            self._make_room(len(framed), frees or record.frees)
        if self._torn:
            self._cut()
        failpoints.reach("journal.before-record")
        try:
            written = os.write(self._fd, framed)
        except OSError:
            self._cut()
            raise
        if written != len(framed):
            self._cut()
            raise error(errno.ENOSPC, segment_path(self.directory, self.segment))
        self.size += written
        failpoints.reach("journal.after-record")

    def _cut(self) -> None:
        """Take half a record away. If not even that works, nothing more is appended until it does."""
        self._torn = True
        os.ftruncate(self._fd, self.size)
        self._torn = False
        if self._reserved != _UNLIMITED:
            self._reserved = 0  # truncating gave it back

    def _make_room(self, length: int, frees: bool) -> None:
        """Reserve space ahead; on a full disk only what makes room may use the last of it."""
        needed = self.size + length
        reserved = _reserve(self._fd, needed + _AHEAD) or _reserve(self._fd, needed + _RESERVE)
        if reserved:
            self._reserved = reserved
        elif not (frees and needed <= self._reserved):
            raise error(errno.ENOSPC, segment_path(self.directory, self.segment))

    @property
    def end(self) -> tuple[int, int]:
        """Segment and size in it: where the next record goes."""
        return (self.segment, self.size)

    def is_synced(self, end: tuple[int, int]) -> bool:
        """Whether all records appended before `end` was the end are on disk."""
        return self._synced >= end

    @property
    def needs_sync(self) -> bool:
        return not self.is_synced(self.end)

    def sync(self) -> None:
        """All records appended before the call are on disk. Blocks: call it in a thread; appends may go on meanwhile.

        Closed segments go first: what survives power loss is a prefix of what was appended. A failure is for good: the
        kernel has dropped the pages that it could not write, so a second fdatasync(2) would succeed without them.
        """
        if self._failed is not None:
            raise self._failed
        # In this order a `rotate` between any two of them does no harm: what `end` names is in one of the others.
        end = self.end
        fd = os.dup(self._fd)
        closed = self._closed[:]
        try:
            for earlier in closed:
                os.fdatasync(earlier)
            os.fdatasync(fd)
            if end[0] != self._synced[0]:
                sync_directory(self.directory)
        except OSError as e:
            self._failed = e
            raise
        finally:
            os.close(fd)
        for earlier in closed:
            self._closed.remove(earlier)
            os.close(earlier)
        self._synced = max(self._synced, end)

    def rotate(self) -> int:
        """Begin the next segment; the one before takes no more records. The result is the new segment's number.

        ENOSPC, and nothing has changed, if the new one cannot have its reserve.
        """
        fd = self._open(self.segment + 1)
        begin = frame(encode(Begin(self.size)))
        reserved = _reserve(fd, _RESERVE)
        if not reserved or os.write(fd, begin) != len(begin):
            os.close(fd)
            segment_path(self.directory, self.segment + 1).unlink()
            raise error(errno.ENOSPC, segment_path(self.directory, self.segment + 1))
        os.ftruncate(self._fd, self.size)
        self._closed.append(self._fd)
        self._fd = fd
        self.segment += 1
        self.size, self._reserved = len(begin), reserved
        return self.segment

    def close(self) -> None:
        """Gives back what was reserved, but for what the next writer needs to delete on a full disk; does not sync.
        Whoever still appends has EBADF."""
        os.ftruncate(self._fd, self.size)
        _reserve(self._fd, self.size + _RESERVE)
        fds, self._closed, self._fd = [*self._closed, self._fd], [], -1
        for fd in fds:
            os.close(fd)
