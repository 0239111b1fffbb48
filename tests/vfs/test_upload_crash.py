"""A process that dies at any point of an upload, a move or a delete leaves nothing lost, doubled or in conflict."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.vfs.disk_shelf import DiskBatches, DiskShelf
from tests.vfs.shelf import content, routes
from vfs.session import Session

PROGRAM = """
import sys, trio
from pathlib import Path
from tests.vfs.disk_shelf import DiskBatches, DiskShelf
from tests.vfs.shelf import put, routes
from vfs.session import Session
from vfs.tree import KERNEL

async def main(kind, directory):
    shelf = kind(directory / "shelf")
    async with Session.open("s", directory / "state", routes=routes(shelf)) as session:
        await put(session, "kept", b"kept")
        await put(session, "edited", b"before")
        await put(session, "moved", b"moved")
        await put(session, "gone", b"gone")
        await session.sync()
        await put(session, "edited", b"after")
        session.rename(1, b"moved", 1, b"there", 0, KERNEL)
        session.unlink(1, b"gone", KERNEL)
        await put(session, "last", b"last")
        await session.sync()

kind = {"DiskShelf": DiskShelf, "DiskBatches": DiskBatches}[sys.argv[1]]
trio.run(main, kind, Path(sys.argv[2]))
"""

POINTS = [
    *[(DiskShelf, f"upload.{at}", n) for at in ("before-answer", "before-record", "after-record") for n in (1, 5, 6)],
    *[(DiskShelf, f"move.{at}", 1) for at in ("before-answer", "before-record")],
    (DiskShelf, "delete.before-record", 1),
    *[(DiskBatches, f"batch.{at}", n) for at in ("before-answer", "before-record") for n in (1, 2)],
]


@pytest.mark.parametrize(("kind", "point", "count"), POINTS)
def test_what_was_acknowledged_arrives_once(tmp_path: Path, kind: type[DiskShelf], point: str, count: int) -> None:
    environment = {**os.environ, "MOUNT_SESSION_FAILPOINT": f"{point}:{count}", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, kind.__name__, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    shelf = kind(tmp_path / "shelf")

    async def again() -> dict[str, bytes]:
        async with Session.open("s", tmp_path / "state", routes=routes(shelf)) as session:
            found = {
                path: await content(session, path) for path in map(os.fsdecode, session.namespace.root.entries or ())
            }
            assert (await session.sync()).pending == 0
            return found

    tree = trio.run(again)
    assert {path.removeprefix("/"): text for path, text in shelf.contents.items()} == tree
    ended = {"kept": b"kept", "edited": b"after", "there": b"moved", "last": b"last"}
    began = {"kept": b"kept", "edited": b"before", "moved": b"moved", "gone": b"gone"}
    assert all(text in (began.get(path), ended.get(path)) for path, text in tree.items())
    assert tree["kept"] == b"kept"
