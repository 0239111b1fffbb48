"""What the configuration says for all sessions, what one session has instead, and what may be asked for twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.daemon.serving import Serving


def test_the_configured_storage_is_for_sessions_that_name_none(serving: Callable[..., Serving], tmp_path: Path) -> None:
    common, own = tmp_path / "common", tmp_path / "own"
    daemon = serving(storage=f"file://{common}")
    daemon.run("new", "a")
    daemon.run("new", "b", "--storage", f"file://{own}")
    for name in ("a", "b"):
        (daemon.root / name / "file").write_text(name)
        assert daemon.json("sync", name)["pending"] == 0
    assert [path.read_text() for path in common.rglob("file")] == ["a"]
    assert [path.read_text() for path in own.rglob("file")] == ["b"]


def test_a_session_is_one_however_often_it_is_asked_for(daemon: Serving) -> None:
    daemon.run("new", "user-1")
    (daemon.root / "user-1/file").write_text("kept")
    daemon.run("new", "user-1", status=5)
    assert daemon.json("mount", "user-1")["state"] == "mounted"
    assert daemon.json("mount", "user-1")["state"] == "mounted"
    assert len(daemon.mounts()) == 1
    assert (daemon.root / "user-1/file").read_text() == "kept"
    for _ in range(2):
        daemon.run("unmount", "user-1")
    assert daemon.mounts() == []
    assert daemon.run("ls", "-q").stdout == b"user-1\n"
