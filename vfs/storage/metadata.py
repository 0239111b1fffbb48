"""User metadata of objects: mtime, mode and owner in rclone's convention, so that both programs understand both's
objects.

`mtime` is seconds since the epoch with a decimal fraction, `mode` is octal with the file type (`100644`), `uid` and
`gid` are decimal. Whatever else an object carries is handed on untouched, and is sent back when the file is written
again."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from decimal import Decimal
from typing import NamedTuple

from vfs.callbacks import Context
from vfs.fileref import guess_content_type

__all__ = ["Attributes", "attributes_of", "parse", "user_metadata"]

LIMIT = 2048  # bytes of all names and values; S3's limit
_OURS = frozenset({"mtime", "mode", "uid", "gid"})
_HEADERS = frozenset(
    {"content-type", "content-disposition", "content-encoding", "content-language", "cache-control", "storage-class"}
)


class Attributes(NamedTuple):
    """What an object's metadata says about the file."""

    mtime_ns: int | None
    mode: int | None
    rest: dict[str, str]


def user_metadata(context: Context) -> dict[str, str]:
    """The user metadata for a write with this context."""
    found: dict[str, str] = {}
    if (mtime := context.get("mtime_ns")) is not None:
        found["mtime"] = f"{mtime // 10**9}.{mtime % 10**9:09d}" if mtime >= 0 else str(Decimal(mtime).scaleb(-9))
    if (mode := context.get("mode")) is not None:
        found["mode"] = f"{stat.S_IFREG | stat.S_IMODE(mode):o}"
    for owner in ("uid", "gid"):
        if (number := context.get(owner)) is not None:
            found[owner] = str(number)
    room = LIMIT - sum(len(name) + len(value) for name, value in found.items())
    for name, value in context.get("metadata", {}).items():
        name = name.lower()
        if name in found or name in _OURS or name in _HEADERS or not _is_header(name, value):
            continue
        if (room := room - len(name) - len(value)) < 0:
            break
        found[name] = value
    return found


def attributes_of(path: str, context: Context) -> dict[str, str]:
    """Content-Type and user metadata, in the form that obstore takes."""
    return {"Content-Type": context.get("content_type") or guess_content_type(path), **user_metadata(context)}


def parse(metadata: Mapping[str, str]) -> Attributes:
    """What the metadata of an object says; what cannot be understood is as if it were not there."""
    lower = {name.lower(): value for name, value in metadata.items()}
    rest = {name: value for name, value in lower.items() if name not in _OURS and name not in _HEADERS}
    return Attributes(_mtime(lower.get("mtime")), _mode(lower.get("mode")), rest)


def _mtime(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        ns = Decimal(text).scaleb(9)
        return int(ns) if abs(ns) < 2**63 else None
    except (ArithmeticError, ValueError):
        return None


def _mode(text: str | None) -> int | None:
    if text is None or not text.isascii() or not text.isdigit():
        return None
    # s3fs and goofys write the same number in decimal; the file type tells which it is.
    for base in (8, 10):
        try:
            number = int(text, base)
        except ValueError:
            continue
        if stat.S_ISREG(number) or (base == 8 and number <= 0o7777):
            return stat.S_IMODE(number)
    return None


def _is_header(name: str, value: str) -> bool:
    token = name.replace("-", "").replace("_", "").replace(".", "")
    return token.isascii() and token.isalnum() and value.isascii() and value.isprintable() and value == value.strip()
