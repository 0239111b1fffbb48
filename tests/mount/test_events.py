"""Events of a mounted session name the process and the container that did it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.container import Container
from tests.daemon.serving import until
from tests.mounted import COMMAND, Mounted, run

Mount = Callable[..., Mounted]
Start = Callable[..., Container]


def events(session: Mounted, *arguments: str) -> list[dict[str, Any]]:
    told = run(COMMAND, "events", session.session, "--state", session.state, *arguments)
    return [json.loads(line) for line in told.splitlines()]


def test_an_event_names_the_container_and_the_program_that_did_it(mounted: Mount, container: Start) -> None:
    session = mounted("work", "--uid", "1001", "--gid", "1001")
    script = "echo from {0} > {0}; mkdir {0}-dir; mv {0} {0}-dir/; chmod 600 {0}-dir/*"
    one, other = (container(session.path, script.format(name)) for name in ("one", "other"))
    one.finish()
    other.finish()
    (session.path / "host").write_text("x")
    third = container(session.path, "echo appended >> one-dir/one")
    third.finish()
    until(lambda: any((event["kind"], event["path"]) == ("modified", "/one-dir/one") for event in events(session)))
    told = events(session)
    by = {(event["kind"], event["path"]): event for event in told}
    assert by["created", "/one"]["container"] == by["modified", "/one"]["container"] == one.id
    assert by["created", "/other"]["container"] == by["moved", "/other-dir/other"]["container"] == other.id
    assert by["modified", "/one-dir/one"]["container"] == third.id
    assert by["created", "/one"]["uid"] == 1001
    assert by["created", "/one"]["program"] == "sh" and by["created", "/one-dir"]["program"] in ("mkdir", "busybox")
    assert by["created", "/host"]["pid"] == os.getpid() and "container" not in by["created", "/host"]
    assert by["created", "/host"]["program"] == Path("/proc/self/comm").read_text().strip()


def test_events_go_on_over_the_death_of_everything(mounted: Mount) -> None:
    session = mounted("work")
    (session.path / "first").write_text("1")
    session.kill9()
    again = mounted("work")
    (again.path / "second").write_text("2")
    again.stop()
    told = events(again)
    assert [(event["kind"], event["path"]) for event in told] == [
        ("created", "/first"),
        ("modified", "/first"),
        ("created", "/second"),
        ("modified", "/second"),
    ]
    assert [event["seq"] for event in told] == [1, 2, 3, 4]


HOOKS = """
from pathlib import Path
OUT = Path({out!r})
files = {{}}

def on_write(scope, path, content, context):
    files[path] = content

def on_file_created(file, session_id):
    raise RuntimeError("this hook fails")

def on_file_modified(file, session_id):
    with OUT.open("a") as out:
        print("modified", file.path, file.size, session_id, file=out)

async def on_file_synced(file, session_id):
    with OUT.open("a") as out:
        print("synced", file.path, file=out)
"""


def test_hooks_beside_the_callbacks_are_called_and_one_that_fails_harms_nothing(
    mounted: Mount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (tmp_path / "hooked.py").write_text(HOOKS.format(out=str(out)))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    session = mounted("work", "--callbacks", "hooked")
    (session.path / "f").write_text("abc")
    session.stop()
    assert out.read_text() == "modified /f 3 work\nsynced /f\n"
    assert "this hook fails" in session.log.read_text()
