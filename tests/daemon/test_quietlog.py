"""A log line is one line, without secrets, and the same one is not written again and again."""

from __future__ import annotations

import io
import json
import logging
import time

import pytest

from mount import quietlog
from mount.quietlog import Handler, masked


def logger(handler: Handler) -> logging.Logger:
    made = logging.Logger("test")
    made.addHandler(handler)
    return made


def test_a_message_that_repeats_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stream = io.StringIO()
    log = logger(Handler(stream))
    for n in range(101):
        if n == 100:
            now += quietlog.WINDOW
        log.error("upload failed: %s", "reset")
    log.error("another")
    lines = stream.getvalue().splitlines()
    assert [line.split(": ", 1)[1] for line in lines] == [
        "upload failed: reset",
        "upload failed: reset (and 99 more times in the last 60 s)",
        "another",
    ]


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG", "wJalr"),
        ('{"password": "hush"}', "hush"),
        ("Authorization: Bearer abc.def", "abc.def"),
        ("GET http://h/k?X-Amz-Signature=0123abcd&x=1", "0123abcd"),
        ("postgresql://user:hush@db/x", "hush"),
        ("token=abc123;", "abc123"),
    ],
)
def test_secrets_are_masked(text: str, secret: str) -> None:
    assert secret not in masked(text).split('hush"')[0] and "***" in masked(text)


def test_a_json_line_is_one_line_with_its_traceback() -> None:
    stream = io.StringIO()
    log = logger(Handler(stream, "json"))
    try:
        raise ValueError("bad\nthing")
    except ValueError:
        log.exception("failed: %s", "line one\nline two")
    (line,) = stream.getvalue().splitlines()
    fields = json.loads(line)
    assert fields["message"] == "failed: line one\nline two" and "ValueError: bad" in fields["traceback"]
    assert fields["level"] == "error" and fields["time"].endswith("Z")


def test_a_text_line_cannot_be_forged_by_what_it_quotes() -> None:
    stream = io.StringIO()
    logger(Handler(stream)).warning("session %s", "x\n2030-01-01T00:00:00Z INFO forged")
    assert len(stream.getvalue().splitlines()) == 1
