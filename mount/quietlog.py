"""Logs for a service: one line an event, no secrets, no flood.

`install` sets the root logger up. As JSON a line has `time`, `level`, `logger`, `process`, `message`, and
`traceback` where there is one; as text the same in words. A message that repeats (same place in the code, same text)
is written once in `WINDOW` seconds; the next one says how often it came meanwhile. What looks like a credential is
masked, whoever logged it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from typing import Final, Literal, TextIO

import cachetools

__all__ = ["Handler", "install", "masked", "style"]

WINDOW: Final = 60.0  # seconds
KNOWN: Final = 2048
VARIABLE: Final = "MOUNT_SESSION_LOG"

_SECRETS: Final = re.compile(
    r"""(?xi)
      (?P<key> (?: aws_secret_access_key | aws_session_token | secret(?:_?access)?(?:_?key)? | password | passwd | token
                   | authorization | x-amz-signature | x-amz-security-token | x-amz-credential | signature )
               ["']? \s* [=:] \s* ["']? (?:bearer\s+|basic\s+)? )
      (?P<value> [^\s"',&;}]+ )
    | (?P<scheme> [a-z][a-z0-9+.-]*:// ) (?P<login> [^/\s:@]+ : [^/\s@]+ ) @
    """
)


def masked(text: str) -> str:
    """`text` with what looks like a credential replaced: after a telling name, or in a URL before the @."""
    return _SECRETS.sub(lambda found: f"{found['key']}***" if found["key"] else f"{found['scheme']}***@", text)


class Handler(logging.StreamHandler[TextIO]):
    """Writes to `stream`, each line once a window."""

    def __init__(self, stream: TextIO, style: Literal["text", "json"] = "text") -> None:
        super().__init__(stream)
        self._json = style == "json"
        self._seen: cachetools.LRUCache[tuple[str, int, str], tuple[float, int]] = cachetools.LRUCache(KNOWN)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message = record.getMessage()
            key = (record.pathname, record.lineno, message)
            since, repeats = self._seen.get(key, (-WINDOW, 0))
            now = time.monotonic()
            if now - since < WINDOW:
                self._seen[key] = since, repeats + 1
                return
            self._seen[key] = now, 0
            if repeats:
                message = f"{message} (and {repeats} more times in the last {now - since:.0f} s)"
            self.stream.write(self._line(record, message) + "\n")
            self.flush()
        except Exception:
            self.handleError(record)

    def _line(self, record: logging.LogRecord, message: str) -> str:
        trace = logging.Formatter().formatException(record.exc_info) if record.exc_info else None
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z"
        if self._json:
            fields = {"time": stamp, "level": record.levelname.lower(), "logger": record.name}
            fields["process"] = str(record.process)
            fields["message"] = masked(message)
            if trace:
                fields["traceback"] = masked(trace)
            return json.dumps(fields)
        text = masked(message).replace("\r", "\\r").replace("\n", "\\n")
        line = f"{stamp} {record.levelname:<7} {record.name}[{record.process}]: {text}"
        return f"{line}\n{masked(trace)}" if trace else line


def style() -> Literal["text", "json"]:
    """What MOUNT_SESSION_LOG says: how the processes that a daemon starts are told."""
    return "json" if os.environ.get(VARIABLE) == "json" else "text"


def install(stream: TextIO, style: Literal["text", "json"], level: int = logging.INFO) -> None:
    """Have the whole process log this way; libraries that tell each request say less."""
    logging.basicConfig(handlers=[Handler(stream, style)], level=level, force=True)
    for name in ("httpx", "httpcore", "hypercorn.access"):
        logging.getLogger(name).setLevel(logging.WARNING)
