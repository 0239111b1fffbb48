"""What supervisor and worker tell each other goes through a socket as it is meant."""

from __future__ import annotations

import errno

import msgspec

from mount.channel import Call, last_words
from mount.config import Failure


def test_a_workers_last_words_arrive_whatever_names_are_in_them() -> None:
    call = msgspec.msgpack.decode(last_words(OSError(errno.ENOENT, "no such thing", b"/state/\xff")), type=Call)
    error = msgspec.convert(call.arguments["failure"], Failure).error()
    assert isinstance(error, FileNotFoundError)
    assert (error.strerror, error.filename) == ("no such thing", "/state/\\xff")
