"""OSErrors by name: every error of `vfs` carries the errno that the program in the container shall see.

`mount.operations` is the one place that turns them into FUSE errors. Each constructor takes what the error is about,
so that a log line or a traceback can name it.
"""

from __future__ import annotations

import errno
import os
import traceback
from typing import Final

__all__ = [
    "LONGEST",
    "Conflict",
    "DamagedState",
    "Emptied",
    "StateInUse",
    "UnsupportedState",
    "brief",
    "error",
    "errno_of",
    "leaves",
    "readable",
    "said",
    "shown",
    "single",
    "told",
]

LONGEST: Final = 1000  # characters


def error(number: int, subject: object = None, why: str | None = None) -> OSError:
    """The OSError subclass for errno `number` (FileNotFoundError for ENOENT, ...), about `subject`."""
    text = os.strerror(number) if why is None else why
    if subject is None:
        return OSError(number, text)
    name = os.fsdecode(subject) if isinstance(subject, (bytes, os.PathLike)) else str(subject)
    return OSError(number, text, name)


def errno_of(e: OSError) -> int | None:
    """What a program can be told; None: the error was raised without, or with a message there, or a resolver's code."""
    return e.errno if type(e.errno) is int and e.errno in errno.errorcode else None


def brief(text: str) -> str:
    """As much of an error's text as is told: some clients put the whole page that they were answered into it."""
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def single(e: BaseException) -> BaseException:
    """What a group of one holds, however deep: a nursery wraps what one task raised."""
    while isinstance(e, BaseExceptionGroup) and len(e.exceptions) == 1:
        e = e.exceptions[0]
    return e


def leaves(e: BaseException) -> list[BaseException]:
    """All that a group holds, however deep; the exception alone where it is no group."""
    return [leaf for inner in e.exceptions for leaf in leaves(inner)] if isinstance(e, BaseExceptionGroup) else [e]


class Conflict(OSError):
    """The persistence no longer holds the version that a conditional write or delete expected (errno ESTALE)."""

    def __init__(self, path: str, found: str | None = None) -> None:
        super().__init__(errno.ESTALE, "changed by someone else in the persistence", path)
        self.found = found


class Emptied(OSError):
    """The persistence has lost what it keeps for itself there, perhaps with all else (errno EIO). Said once: what the
    next listing lacks was not deleted file by file."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.EIO, "emptied, or made anew: what mount-session itself kept there is gone", what)


class StateInUse(OSError):
    """Another process has the session's state directory open (errno EBUSY)."""

    def __init__(self, directory: str) -> None:
        super().__init__(
            errno.EBUSY,
            "in use by another process; stop the other `mount-session`, or choose another --state",
            directory,
        )


class UnsupportedState(OSError):
    """The state directory was written by a version that this one does not know (errno EPROTONOSUPPORT)."""

    def __init__(self, directory: str, version: object) -> None:
        super().__init__(
            errno.EPROTONOSUPPORT,
            f"state of unknown version {version!r}; use the mount-session that wrote it, or choose another --state",
            directory,
        )


class DamagedState(OSError):
    """A file of the state directory does not check (errno EIO). Nothing was changed; the file is named."""

    def __init__(self, file: str, why: str) -> None:
        super().__init__(errno.EIO, f"damaged: {why}; restore it from a copy, or choose another --state", file)


def readable(text: object) -> str:
    """The text that came with an error, as events and receipts can hold it: what is no UTF-8 in it, escaped."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def said(e: BaseException) -> str:
    """An error of the integrator's code in one line, whatever its own text does."""
    try:
        return f"{type(e).__name__}: {e}"
    except Exception:
        return type(e).__name__


def shown(value: object) -> str:
    """An object of the integrator's, for a log line, whatever its own text does."""
    try:
        return repr(value)[:200]
    except Exception:
        return f"a {type(value).__name__}"


def told(e: Exception) -> str:
    """As `said`, with where it was raised."""
    frames = traceback.extract_tb(e.__traceback__)
    place = "" if isinstance(e, SyntaxError) or not frames else f" ({frames[-1].filename}, line {frames[-1].lineno})"
    return f"{said(e)}{place}"
