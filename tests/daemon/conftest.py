"""A daemon of the test's own, by the real command, and a client of it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon.serving import Serving


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[Callable[..., Serving]]:
    """serving(**settings) runs `mount-session serve` and returns when it answers. It is stopped at the end, and must
    stop cleanly; nothing stays mounted however the test ends."""
    running: list[Serving] = []

    def start(directory: Path | None = None, **settings: object) -> Serving:
        running.append(Serving.start(directory or tmp_path, settings))
        return running[-1]

    try:
        yield start
        for one in running:
            if one.process.poll() is None:
                one.stop()
    finally:
        for one in running:
            one.clean_up()


@pytest.fixture(scope="module")
def open_directory() -> Iterator[Path]:
    """A directory that every user may pass through; pytest's own are closed to all but one."""
    directory = Path(tempfile.mkdtemp(prefix="mount-session."))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    one = Serving.start(tmp_path_factory.mktemp("daemon"), {})
    try:
        yield one
        one.stop()
    finally:
        one.clean_up()


@pytest.fixture
def daemon(shared_daemon: Serving) -> Iterator[Serving]:
    """A daemon without sessions, which the tests of a module share one after another."""
    yield shared_daemon
    with shared_daemon.client() as client:
        for status in client.list():
            client.remove(status.session, purge=True, force=True)
    assert shared_daemon.mounts() == []
