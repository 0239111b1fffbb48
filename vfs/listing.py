"""A listing: what a persistence says that it holds, checked entry by entry.

An entry that cannot be a file of the session (a path that is empty, too long or not text, an empty segment, `.`,
`..`, NUL, a file where another entry needs a directory, a path that comes twice, a FileRef with fields of the wrong
type) is left out, with one log line that names the callback and the path. The rest counts. `vfs.persistence` calls
this, and remembers what was left out, so that the status can name it and a listing that is repeated every 30 s does
not repeat its complaints.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import UTC, datetime

import msgspec

from vfs.fileref import FileRef
from vfs.metadata import normalised

__all__ = ["UNKNOWN_SIZE", "check_path", "checked", "sound"]

UNKNOWN_SIZE = -1
"""`FileRef.size` of an entry that was listed as a bare path."""

NAME_MAX = 255
PATH_MAX = 4095
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
    """`ref` under `path`, with version and metadata as text. ValueError says which field is of the wrong type.
    `subject` says in a log line whose answer it was.

    Needed because msgspec checks types when it decodes, not when a program makes the struct.
    """
    size, mtime_ns, mode = ref.size, ref.mtime_ns, ref.mode
    version: object = ref.version
    if type(version) is int:  # a row's version column, as it comes
        version = str(version)
    if type(size) is not int or size < UNKNOWN_SIZE:
        raise ValueError(f"size {size!r}")
    if not (version is None or isinstance(version, str)):
        raise ValueError(f"version of type {type(version).__name__}")
    if not (mtime_ns is None or type(mtime_ns) is int):
        raise ValueError(f"mtime_ns {mtime_ns!r}")
    if not (mode is None or (type(mode) is int and 0 <= mode <= 0o177777)):
        raise ValueError(f"mode {mode!r}")
    if not isinstance(ref.metadata, dict):
        raise ValueError(f"metadata of type {type(ref.metadata).__name__}")
    for name in ("content_type", "checksum", "storage_url"):
        if not isinstance(value := getattr(ref, name), str | None):
            raise ValueError(f"{name} of type {type(value).__name__}")
    metadata = normalised(ref.metadata, f"{subject}: {path!r}") if ref.metadata else {}
    return msgspec.structs.replace(ref, path=path, version=version, metadata=metadata)


def checked(
    entries: Iterable[object], inward: Callable[[str], str], reject: Callable[[str, str], None], subject: str
) -> list[FileRef]:
    """The entries that can be files, as FileRefs with relative paths. `inward` takes a path as the callback gave it
    to the session's, raising ValueError; `reject(path, reason)` hears of each entry that is left out; `subject` is
    as for `sound`."""
    now = datetime.now(UTC)
    files: dict[str, FileRef] = {}
    for entry in entries:
        given = entry.path if isinstance(entry, FileRef) else entry
        if not isinstance(given, str):
            reject(repr(given)[:200], f"a {type(given).__name__}, not a str or FileRef")
            continue
        try:
            path = inward(given)
            if path in files:
                raise ValueError("listed twice")
            if isinstance(entry, FileRef):
                files[path] = sound(entry, path, subject)
            else:
                files[path] = FileRef(path=path, size=UNKNOWN_SIZE, created_at=now)
        except ValueError as e:
            reject(given, str(e))
    for directory in _directories(files) & files.keys():
        reject(directory, "both a file and a directory; the file is left out")
        del files[directory]
    return list(files.values())


def _directories(paths: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for path in paths:
        parent = path.rpartition("/")[0]
        while parent and parent not in found:
            found.add(parent)
            parent = parent.rpartition("/")[0]
    return found
