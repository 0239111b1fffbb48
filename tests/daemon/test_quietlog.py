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
        "upload failed: reset (and 99 more times in 60 s)",
        "upload failed: reset",
        "another",
    ]


def test_a_flood_of_different_messages_from_one_place_is_cut_off_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stream = io.StringIO()
    handler = Handler(stream)
    log = logger(handler)
    for n in range(10_000):
        log.warning("%r is not written back", f"file{n}")
    log.info("something else is written all the same")
    assert len(stream.getvalue().splitlines()) == quietlog.MOST + 1
    now += quietlog.WINDOW
    log.info("later")
    told = [line.split(": ", 1)[1] for line in stream.getvalue().splitlines()[-2:]]
    assert told == [
        f"'file9999' is not written back (and {10_000 - quietlog.MOST} lines like it left out in 60 s)",
        "later",
    ]
    for _ in range(3):
        log.info("the end")
    handler.close()
    assert stream.getvalue().splitlines()[-1].endswith("the end (and 2 more times in 0 s)")


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG", "wJalr"),
        ('{"password": "hush"}', "hush"),
        ("Authorization: Bearer abc.def", "abc.def"),
        ("GET http://h/k?X-Amz-Signature=0123abcd&x=1", "0123abcd"),
        ("postgresql://user:hush@db/x", "hush"),
        ("token=abc123;", "abc123"),
        ("AWS_SESSION_TOKEN='FwoGZXIvYXdz'", "FwoG"),
        ("s3://bucket/p?region=x&secret_access_key=wJalr%2F&access_key_id=AKIA", "wJalr"),
        ("https://ghp_0123abcd@example.org/x", "ghp_0123"),
        ("X-Api-Key: 0123abcd", "0123abcd"),
        ("{'x-amz-security-token': 'FwoGZXIvYXdz'}", "FwoG"),
        ("Cookie: session=0123abcd", "0123abcd"),
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
