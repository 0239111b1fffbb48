"""What a container writes is rows of the user's database, while it is running."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from examples.database import DatabaseFiles
from mount.embed import mounted
from tests.container import Container
from tests.examples.test_database_session import ALICE, BOB, rows
from vfs.policy import Policy

Start = Callable[..., Container]
AGENT = Policy(uid=1001, gid=1001)


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> float:
    """Seconds until the condition held."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() < start + seconds
        time.sleep(0.02)
    return time.monotonic() - start


def test_a_containers_writes_are_rows_within_the_debounce(
    database: DatabaseFiles, container: Start, tmp_path: Path
) -> None:
    directory = tmp_path / "mnt"
    directory.mkdir()
    with mounted("s", directory, state=tmp_path / "state", callbacks=database, scope=ALICE, policy=AGENT) as session:
        agent = container(session.path, "echo ready; exec sleep 600")
        agent.run("mkdir src; echo one > src/a; dd if=/dev/zero of=big bs=1M count=5 2> /dev/null")
        wait_until(lambda: rows(database) == {("alice", "/src/a"): b"one\n", ("alice", "/big"): bytes(5 << 20)})
        agent.run("echo two >> src/a; mv src lib; rm big")
        wait_until(lambda: rows(database) == {("alice", "/lib/a"): b"one\ntwo\n"})
        receipt = session.sync()
        assert receipt.pending == 0
    assert session.receipt is not None and session.receipt.pending == 0


def test_containers_of_two_users_keep_the_same_paths_apart(
    database: DatabaseFiles, container: Start, tmp_path: Path
) -> None:
    for user in (ALICE, BOB):
        directory = tmp_path / user["user"]
        directory.mkdir()
        name = user["user"]
        with mounted(
            name, directory, state=tmp_path / "state", callbacks=database, scope=user, policy=AGENT
        ) as session:
            container(session.path, f"echo {name} > notes; test $(ls | wc -l) = 1").finish()
    assert rows(database) == {("alice", "/notes"): b"alice\n", ("bob", "/notes"): b"bob\n"}
