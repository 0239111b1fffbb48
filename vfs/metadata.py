"""Metadata: what an integrator's answer leaves with a file, as text by name, so that each pair can be a `user.*`
xattr.

Text stays as it is; numbers, booleans, dates, UUIDs and nested values become their JSON; None is left out. What
cannot be an xattr (name or value too long, NUL, no Unicode, no JSON form) is left out with a log line: the write itself
has happened.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import msgspec

from vfs.errors import said, shown

__all__ = ["normalised", "plain"]

log = logging.getLogger(__name__)

NAME_MAX = 255 - len("user.")  # linux/limits.h: XATTR_NAME_MAX
VALUE_MAX = 65536  # XATTR_SIZE_MAX


def normalised(answer: Mapping[Any, Any], subject: str) -> dict[str, str]:
    """`subject` says in a log line whose answer it was, and about what."""
    metadata: dict[str, str] = {}
    try:
        pairs = list(answer.items())
    except Exception as e:  # a row of a database that is closed by now
        log.warning("%s: metadata is left out: %s", subject, said(e))
        return metadata
    for key, value in pairs:
        if value is None:
            continue
        try:
            metadata[_key(key)] = _text(value)
        except Exception as e:  # what its `__str__` raises, or what is nested too deep, too
            log.warning("%s: metadata %.100s is left out: %s", subject, shown(key), said(e))
    return metadata


def plain(text: str) -> str:
    """`text` as a str and nothing more, which alone can be written. ValueError if it is no Unicode."""
    if type(text) is not str:
        text = str.__str__(text)
    if not text.isascii():
        text.encode()
    return text


def _key(key: object) -> str:
    text = plain(key if isinstance(key, str) else str(key))
    if not text or "\0" in text or len(text.encode()) > NAME_MAX:
        raise ValueError(f"not a name of 1 to {NAME_MAX} bytes without NUL")
    return text


def _text(value: object) -> str:
    if not isinstance(value, str):
        text = msgspec.json.encode(value).decode()
        quoted = text.startswith('"')  # a date, a UUID ...: its text, without JSON's quotes
        value = msgspec.json.decode(text, type=str) if quoted else text
    value = plain(value)
    if len(value.encode()) > VALUE_MAX:
        raise ValueError(f"longer than {VALUE_MAX} bytes")
    return value
