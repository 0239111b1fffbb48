"""`make demo` as a newcomer runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.container import Engine
from tests.mounted import run

ROOT = Path(__file__).parent.parent


@pytest.mark.mount
def test_the_demo_shows_a_session_from_a_shell_and_a_container_and_ends_with_its_receipt(
    docker_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if docker_engine.host:
        monkeypatch.setenv("DOCKER_HOST", docker_engine.host)
    output = run(ROOT / "scripts" / "demo")
    assert "hello from a session" in output
    assert "uid=1001" in output
    assert "from-container.txt" in output
    receipt = json.loads(output.splitlines()[-1])
    assert receipt["session"] == "demo"
    assert receipt["pending"] == 0
    assert receipt["files"] > 3
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "/workspace " in line]
