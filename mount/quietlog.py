"""Logs for a service: one line an event, no secrets, no flood.

`install` sets the root logger up. As JSON a line has `time`, `level`, `logger`, `process`, `message`, and
`traceback` where there is one; as text the same in words, for people. A message that repeats (same place in the code,
same text) is written once in `WINDOW` seconds, and of one place in the code, whatever it says, `MOST` lines; what was
left out is counted, and told once the window is over, with the next line of any kind. What looks like a credential is
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
MOST: Final = 200
VARIABLE: Final = "MOUNT_SESSION_LOG"

_SECRETS: Final = re.compile(
    r"""(?xi)
      (?P<key> (?: secret(?:[_-]?access)?(?:[_-]?key)? | api[_-]?key | private[_-]?key | password | passwd | token
                   | cookie | authorization | x-amz-credential | signature )
               ["']? \s* [=:] \s* ["']? (?:bearer\s+|basic\s+)? )
      (?P<value> [^\s"',&;}]+ )
    | (?P<scheme> [a-z][a-z0-9+.-]*:// ) (?P<login> [^/\s@]+ ) @
    """
)


def masked(text: str) -> str:
    """`text` with what looks like a credential replaced: after a telling name, or in a URL before the @."""
    return _SECRETS.sub(lambda found: f"{found['key']}***" if found["key"] else f"{found['scheme']}***@", text)


class _Window:
    """What came of one kind since `since`: how many lines were `written`, how many left out, and the last of those."""

    __slots__ = ("left_out", "record", "since", "written")

    def __init__(self, since: float) -> None:
        self.since = since
        self.written = self.left_out = 0
        self.record: logging.LogRecord | None = None


_Key = tuple[str, int, str | None]


class Handler(logging.StreamHandler[TextIO]):
    """Writes to `stream`, each line once a window."""

    def __init__(self, stream: TextIO, style: Literal["text", "json"] = "text") -> None:
        super().__init__(stream)
        self._json = style == "json"
        self._seen: cachetools.LRUCache[_Key, _Window] = cachetools.LRUCache(KNOWN)
        self._untold: dict[_Key, _Window] = {}

    def emit(self, record: logging.LogRecord) -> None:
        try:
            message, now = record.getMessage(), time.monotonic()
            if self._untold:
                self._tell(now)
            place = (record.pathname, record.lineno)
            if self._leave_out((*place, message), 1, record, now) or self._leave_out((*place, None), MOST, record, now):
                return
            self.stream.write(self._line(record, message) + "\n")
            self.flush()
        except Exception:
            self.handleError(record)

    def _leave_out(self, key: _Key, most: int, record: logging.LogRecord, now: float) -> bool:
        window = self._seen.get(key)
        if window is None or now - window.since >= WINDOW:
            window = self._seen[key] = _Window(now)
        if window.written < most:
            window.written += 1
            return False
        window.left_out += 1
        window.record = record
        self._untold[key] = window
        return True

    def _tell(self, now: float, *, at_end: bool = False) -> None:
        """What was left out in windows that are over."""
        for key, window in list(self._untold.items()):
            if window.record is not None and (at_end or now - window.since >= WINDOW):
                del self._untold[key]
                what = "more times" if key[2] is not None else "lines like it left out"
                told = f"{window.record.getMessage()} (and {window.left_out} {what} in {now - window.since:.0f} s)"
                self.stream.write(self._line(window.record, told) + "\n")

    def close(self) -> None:
        if not self.stream.closed:
            self._tell(time.monotonic(), at_end=True)
            self.flush()
        super().close()

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
