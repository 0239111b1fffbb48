"""`rm` leaves what a storage holds; `rm --purge` leaves nothing of that session, and everything of others."""

from __future__ import annotations

import os
from pathlib import Path

from tests.daemon.serving import Serving


def stored(directory: Path) -> set[str]:
    return {path.name for path in directory.rglob("*") if path.is_file() and ".mount-session" not in path.parts}


def test_rm_keeps_the_storage_and_purge_empties_it_of_this_session_alone(daemon: Serving, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    for name in ("a", "b"):
        daemon.run("new", name, "--storage", f"file://{store}")
        (daemon.root / name / f"{name}.txt").write_text(name)
    daemon.run("sync", "b")
    daemon.run("rm", "a")
    assert stored(store) == {"a.txt", "b.txt"} and not (daemon.state / "a").exists()
    daemon.run("new", "a", "--storage", f"file://{store}")
    daemon.run("rm", "a", "--purge")
    assert stored(store) == {"b.txt"}
    assert (daemon.root / "b/b.txt").read_text() == "b"


def test_what_cannot_be_purged_is_said_and_the_session_stays_on_the_list(daemon: Serving, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    daemon.run("new", "a", "--storage", f"file://{store}")
    (daemon.root / "a/file").write_text("1")
    daemon.run("unmount", "a")
    os.rename(store, tmp_path / "elsewhere")
    store.write_text("in the way")
    assert b"not purged" in daemon.run("rm", "a", "--purge", status=5).stderr
    assert daemon.run("ls", "-q").stdout == b"a\n"
    store.unlink()
    os.rename(tmp_path / "elsewhere", store)
    daemon.run("rm", "a", "--purge")
    assert stored(store) == set()
