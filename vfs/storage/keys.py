"""Keys: which object key is which path, and which keys cannot be paths.

A session's objects are `<prefix><session id>/<path>`, so that any S3 tool shows the same tree; all that is ours lies
under `<prefix><session id>/.mount-session/`. What a key cannot carry safely is written as U+201B and two hex digits
for each byte (rclone's way for bytes that are not UTF-8): bytes that are not UTF-8, control characters (obstore
refuses them, XML 1.0 cannot list them), U+FFFE and U+FFFF, a literal U+201B, and the dot of a top-level
`.mount-session` of the user's own.

Invariant: `path_of(key_of(path)) == path`; and a listed key that would be spelled otherwise by us is a `Misfit`,
never a file, so no two keys are ever the same path."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from dataclasses import dataclass

from vfs.errors import error
from vfs.fileref import validate_session_id

__all__ = ["KEY_MAX", "RESERVED", "Keys", "Misfit", "decode", "directories_of", "encode", "is_marker", "misfit"]

RESERVED = ".mount-session"
KEY_MAX = 1024  # bytes of UTF-8; docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
NAME_MAX = 255  # bytes; limits.h
PATH_MAX = 4096

_QUOTE = "\u201b"
_UNSAFE = re.compile("[\x00-\x1f\x7f\u201b\ufffe\uffff\udc80-\udcff]")
_QUOTED = re.compile("\u201b([0-9A-F]{2})")


@dataclass(frozen=True, slots=True)
class Misfit:
    """A key that cannot be a file, and why. It is reported and left alone."""

    key: str
    why: str


def encode(path: str) -> str:
    """The key of relative `path` within its session."""
    quoted = _UNSAFE.sub(_quote, path) if _UNSAFE.search(path) else path
    if quoted.startswith(RESERVED) and quoted[len(RESERVED) :][:1] in ("", "/"):
        return f"{_QUOTE}2E{quoted[1:]}"
    return quoted


def _quote(match: re.Match[str]) -> str:
    return "".join(f"{_QUOTE}{byte:02X}" for byte in match[0].encode("utf-8", "surrogateescape"))


def decode(name: str) -> str:
    """The path that `name` spells; bytes that are not UTF-8 become lone surrogates, as `os.fsdecode` makes them."""
    if _QUOTE not in name:
        return name
    pieces: list[bytes] = []
    end = 0
    for match in _QUOTED.finditer(name):
        pieces += (name[end : match.start()].encode(), bytes.fromhex(match[1]))
        end = match.end()
    pieces.append(name[end:].encode())
    return b"".join(pieces).decode("utf-8", "surrogateescape")


def is_marker(name: str, size: int) -> bool:
    """True for the empty object `dir/` that other tools make for a directory."""
    return size == 0 and name.endswith("/") and name != "/"


class Keys:
    """The keys of one session under one prefix."""

    def __init__(self, prefix: str, session_id: str) -> None:
        prefix = prefix.lstrip("/")
        if prefix and not prefix.endswith("/"):
            prefix += "/"
        self.prefix = f"{prefix}{validate_session_id(session_id)}/"
        self.own = f"{self.prefix}{RESERVED}/"

    def key_of(self, path: str) -> str:
        """The whole key of relative `path`. ENAMETOOLONG where S3 has no key so long."""
        if (why := misfit(path)) is not None:
            raise error(errno.EINVAL, path, f"cannot be a key: {why}")
        key = self.prefix + encode(path)
        if len(key.encode()) > KEY_MAX:
            raise error(errno.ENAMETOOLONG, path, f"longer than the {KEY_MAX} bytes that an object's key may have")
        return key

    def path_of(self, key: str) -> str | Misfit | None:
        """The path of a listed key; None for the session's own objects and for the prefix itself."""
        if not key.startswith(self.prefix):
            return Misfit(key, "is outside the session's prefix")
        name = key[len(self.prefix) :]
        if not name or name.startswith(f"{RESERVED}/"):
            return None
        bare = name.removesuffix("/")
        path = decode(bare)
        if (why := misfit(path)) is not None:
            return Misfit(key, why)
        if encode(path) != bare:
            return Misfit(key, "has characters that this program spells otherwise")
        return path


def misfit(path: str) -> str | None:
    """Why `path` cannot be a file's path; None if it can."""
    segments = path.split("/")
    if "" in segments:
        return "has an empty segment"
    if "." in segments or ".." in segments:
        return "has a segment '.' or '..'"
    if "\0" in path:
        return "has a NUL"
    if len(path) > NAME_MAX // 4 and any(len(name.encode("utf-8", "surrogateescape")) > NAME_MAX for name in segments):
        return f"has a name over {NAME_MAX} bytes"
    if len(path) > PATH_MAX // 4 and len(path.encode("utf-8", "surrogateescape")) >= PATH_MAX:
        return f"is over {PATH_MAX} bytes long"
    return None


def directories_of(paths: Iterable[str]) -> set[str]:
    """All directories that `paths` imply."""
    directories: set[str] = set()
    for path in paths:
        head = path.rpartition("/")[0]
        while head and head not in directories:
            directories.add(head)
            head = head.rpartition("/")[0]
    return directories
