"""The audit log: who asked the daemon to change what, one JSON line each, chained by hashes.

A line's `hash` is SHA-256 over the line without it, and that line holds the `hash` of the line before (`previous`):
whoever changes, removes or moves a line breaks the chain there. `audit.head` names the last line, so lines cut off
the end are missed too, and the daemon knows its last line itself, so none is added behind its back. A log that is not
as the daemon before had left it gets a line that says so, for good. `verify` reads all of it. It proves that the log
is whole, not that its writer was honest: to hold it against root on this host, note the head elsewhere
(`mount-session verify` prints it).

Appending is one write and one fdatasync, in a thread. A line torn by power loss was never acknowledged and is cut.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import trio

from mount import durable

__all__ = ["Audit", "Head", "Tampered", "verify"]

log = logging.getLogger(__name__)

_FIRST = "0" * 64
_BROKEN = "audit.broken"


class Tampered(Exception):
    """The log is not what was written; the text says where and why."""


class Head(msgspec.Struct, frozen=True):
    """The last line: its number, counted from 1, and its hash."""

    seq: int = 0
    hash: str = _FIRST


class _Line(msgspec.Struct, kw_only=True):
    seq: int
    time: float
    action: str
    session: str | None
    actor: dict[str, Any]
    detail: dict[str, Any]
    previous: str
    hash: str = ""


_encoder = msgspec.json.Encoder(order="deterministic")
_decoder = msgspec.json.Decoder(_Line)


def _sealed(line: _Line) -> str:
    return hashlib.sha256(_encoder.encode(msgspec.structs.replace(line, hash=""))).hexdigest()


class Audit:
    """The log in `directory`, open for appending. The daemon has the only one."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "audit.log"
        self._head_path = directory / "audit.head"
        self._lock = trio.Lock()
        self._cut()
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self.head = self._recover()

    def _cut(self) -> None:
        """Take away the half of a line that power loss has left."""
        with contextlib.suppress(FileNotFoundError), open(self.path, "rb+") as file:
            end = file.seek(0, os.SEEK_END)
            start = _last_line_start(file, end)
            file.seek(start)
            tail = file.read()
            if tail and not tail.endswith(b"\n"):
                log.warning("%s: %d bytes of a line that was never acknowledged were cut", self.path, len(tail))
                file.truncate(start)

    def _recover(self) -> Head:
        """The head to go on from. `audit.head` may be one line behind after a crash; all else is put on record."""
        claimed, found = _claimed(self.directory), _last(self.path)
        if found == claimed or (found is not None and found.seq == claimed.seq + 1):
            return found
        ends = "in no line of it" if found is None else f"at line {found.seq}"
        log.error("%s ends %s, and not as it was left, at line %d: was it tampered with?", self.path, ends, claimed.seq)
        self.head = found or claimed
        detail = {"left": msgspec.to_builtins(claimed), "found": msgspec.to_builtins(found)}
        line = self._line(_BROKEN, None, {}, detail)
        self._write(_encoder.encode(line) + b"\n")
        head = Head(line.seq, line.hash)
        durable.write(self._head_path, msgspec.json.encode(head))
        return head

    def _line(self, action: str, session: str | None, actor: dict[str, Any], detail: dict[str, Any]) -> _Line:
        line = _Line(
            seq=self.head.seq + 1,
            time=time.time(),
            action=action,
            session=session,
            actor=actor,
            detail=detail,
            previous=self.head.hash,
        )
        line.hash = _sealed(line)
        return line

    async def append(
        self, action: str, session: str | None, actor: dict[str, Any], detail: dict[str, Any] | None = None
    ) -> None:
        """Returns when the line is on disk."""
        async with self._lock:
            line = self._line(action, session, actor, detail or {})
            await trio.to_thread.run_sync(self._write, _encoder.encode(line) + b"\n")
            self.head = Head(line.seq, line.hash)
            await trio.to_thread.run_sync(durable.write, self._head_path, msgspec.json.encode(self.head))

    def _write(self, line: bytes) -> None:
        """All of the line or none: a short write, on a full disk, is taken back."""
        end = os.fstat(self._fd).st_size
        written = os.write(self._fd, line)
        if written < len(line):
            os.ftruncate(self._fd, end)
            raise OSError(28, os.strerror(28), str(self.path))
        os.fdatasync(self._fd)

    async def verify(self) -> Head:
        """As `verify`, and that the log ends with what this process wrote last. Raises Tampered."""
        await trio.to_thread.run_sync(verify, self.directory)
        async with self._lock:
            found = await trio.to_thread.run_sync(_last, self.path)
            if found != self.head:
                raise Tampered(f"{self.path}: does not end at line {self.head.seq}, which was written last")
        return self.head

    def close(self) -> None:
        os.close(self._fd)


def _claimed(directory: Path) -> Head:
    return msgspec.json.decode(_read(directory / "audit.head") or b"{}", type=Head)


def _last(path: Path) -> Head | None:
    """The head that the last line says; None where that is no line of this log."""
    if not path.exists():
        return Head()
    with open(path, "rb") as file:
        file.seek(_last_line_start(file, file.seek(0, os.SEEK_END)))
        tail = file.read()
    try:
        last = _decoder.decode(tail) if tail else Head()
    except msgspec.DecodeError:
        return None
    return Head(last.seq, last.hash)


def _last_line_start(file: Any, end: int) -> int:
    """Where the last line begins, the newline at the very end not counted."""
    position, block = end - 1, b""
    while position > 0:
        step = min(position, 65536)
        position -= step
        file.seek(position)
        block = file.read(step)
        if (found := block.rfind(b"\n")) >= 0:
            return int(position + found + 1)
    return 0


def verify(directory: Path) -> Head:
    """Read the whole log; its head if every line is as it was written. Raises Tampered."""
    path, head = directory / "audit.log", Head()
    claimed = _claimed(directory)
    for number, raw in enumerate(_lines(path), 1):
        try:
            line = _decoder.decode(raw)
        except msgspec.DecodeError as e:
            raise Tampered(f"{path}, line {number}: not a line of this log: {e}") from None
        if line.seq != number or line.previous != head.hash:
            raise Tampered(f"{path}, line {number}: does not follow the line before it")
        if line.hash != _sealed(line) or raw != _encoder.encode(line) + b"\n":
            raise Tampered(f"{path}, line {number}: was changed after it was written")
        if line.action == _BROKEN:
            raise Tampered(f"{path}, line {number}: before it the log was not as it had been left: {line.detail}")
        head = Head(line.seq, line.hash)
        if head.seq == claimed.seq and head != claimed:
            raise Tampered(f"{path}, line {number}: is not the one that audit.head names")
    if head.seq < claimed.seq:
        raise Tampered(f"{path}: ends at line {head.seq}; audit.head says that there were {claimed.seq}")
    return head


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _lines(path: Path) -> Iterator[bytes]:
    if path.exists():
        with open(path, "rb") as file:
            yield from file
