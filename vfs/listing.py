"""A listing: what a persistence says that it holds, checked entry by entry.

An entry that cannot be a file of the session (a path that is empty, too long or not text, an empty segment, `.`,
`..`, NUL, a file where another entry needs a directory, a path that comes twice, a FileRef with fields of the wrong
type or out of all bounds) is left out, with one log line that names the callback and the path. The rest counts.
`vfs.persistence` calls this, and remembers what was left out, so that the status can name it and a listing that is
repeated every 30 s does not repeat its complaints.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

import msgspec

from vfs.errors import said, shown
from vfs.fileref import FileRef
from vfs.metadata import normalised, plain
from vfs.records import TIME_MAX, TIME_MIN

__all__ = ["UNKNOWN_SIZE", "check_path", "checked", "sound"]

UNKNOWN_SIZE = -1
"""`FileRef.size` of an entry that was listed as a bare path."""

NAME_MAX = 255
PATH_MAX = 4095
SIZE_MAX = (1 << 63) - 1  # an off_t
YEARS = (1678, 2553)  # that have those nanoseconds
_UNSOUND = re.compile(r"(?:^|/)(?:\.{0,2})(?:/|$)|\x00")


def check_path(path: str) -> None:
    """ValueError says why `path` (relative, without the leading slash) cannot be a file's path."""
    try:
        raw = path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError("a lone surrogate that stands for no byte") from None
    if found := _UNSOUND.search(path):
        fault = found[0].strip("/")
        raise ValueError("NUL" if fault == "\0" else f"a segment {fault!r}" if fault else "an empty segment")
    if len(raw) > NAME_MAX:
        if len(raw) > PATH_MAX:
            raise ValueError(f"longer than {PATH_MAX} bytes")
        if any(len(name) > NAME_MAX for name in raw.split(b"/")):
            raise ValueError(f"a name longer than {NAME_MAX} bytes")


def sound(ref: FileRef, path: str, subject: str) -> FileRef:
    """`ref` under `path`, with version and metadata as text. ValueError says which field cannot be.
    `subject` says in a log line whose answer it was.

    Needed because msgspec checks types when it decodes, not when a program makes the struct.
    """
    size, mtime_ns, mode = ref.size, ref.mtime_ns, ref.mode
    version: object = ref.version
    if type(version) is int:  # a row's version column, as it comes
        version = str(version)
    if type(size) is not int or not UNKNOWN_SIZE <= size <= SIZE_MAX:
        raise ValueError(f"size {shown(size)}")
    if not (version is None or isinstance(version, str)):
        raise ValueError(f"version of type {type(version).__name__}")
    if not (mtime_ns is None or (type(mtime_ns) is int and TIME_MIN <= mtime_ns <= TIME_MAX)):
        raise ValueError(f"mtime_ns {shown(mtime_ns)}")
    if not (mode is None or (type(mode) is int and 0 <= mode <= 0o177777)):
        raise ValueError(f"mode {shown(mode)}")
    if not isinstance(ref.metadata, dict):
        raise ValueError(f"metadata of type {type(ref.metadata).__name__}")
    changed: dict[str, Any] = {}
    for name in ("content_type", "checksum", "storage_url"):
        if (value := getattr(ref, name)) is not None:
            if not isinstance(value, str):
                raise ValueError(f"{name} of type {type(value).__name__}")
            changed[name] = plain(value)
    if type(ref.created_at) is not datetime or not YEARS[0] <= ref.created_at.year <= YEARS[1]:
        changed["created_at"] = _moment(ref.created_at)
    version = None if version is None else plain(version)
    metadata = normalised(ref.metadata, f"{subject}: {path!r}") if ref.metadata else {}
    return msgspec.structs.replace(ref, path=path, version=version, metadata=metadata, **changed)


def _moment(given: object) -> datetime:
    """A datetime of a kind of its own (pandas, pendulum) as a plain one."""
    if isinstance(given, datetime):
        with contextlib.suppress(Exception):
            moment = datetime.fromtimestamp(given.timestamp(), UTC)
            if YEARS[0] <= moment.year <= YEARS[1]:
                return moment
    raise ValueError(f"created_at {shown(given)}")


def checked(
    entries: Iterable[object], inward: Callable[[str], str], reject: Callable[[str, str], None], subject: str
) -> list[FileRef]:
    """The entries that can be files, as FileRefs with relative paths. `inward` takes a path as the callback gave it
    to the session's, raising ValueError; `reject(path, reason)` hears of each entry that is left out; `subject` is
    as for `sound`."""
    now = datetime.now(UTC)
    files: dict[str, FileRef] = {}
    for entry in entries:
        given: object = entry
        try:
            if isinstance(entry, FileRef):
                given = entry.path
            if type(given) is not str:
                given = _text(given)
            path = inward(given)
            if path in files:
                raise ValueError("listed twice")
            if isinstance(entry, FileRef):
                files[path] = sound(entry, path, subject)
            else:
                files[path] = FileRef(path=path, size=UNKNOWN_SIZE, created_at=now)
        except Exception as e:  # what an object of the integrator's raises, too
            why = str(e) if type(e) is ValueError else said(e)
            reject(given if type(given) is str else shown(given), why)
    for directory in _directories(files) & files.keys():
        reject(directory, "both a file and a directory; the file is left out")
        del files[directory]
    return list(files.values())


def _text(given: object) -> str:
    if not isinstance(given, str):
        raise ValueError(f"a {type(given).__name__}, not a str or FileRef")
    return str.__str__(given)


def _directories(paths: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for path in paths:
        parent = path.rpartition("/")[0]
        while parent and parent not in found:
            found.add(parent)
            parent = parent.rpartition("/")[0]
    return found
