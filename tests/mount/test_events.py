"""Events of a mounted session name the process and the container that did it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
