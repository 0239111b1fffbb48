"""One session for all tests of a module that use `place`; what they share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mounted import Mounted


@pytest.fixture(scope="module")
def mount(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mounted]:
    """A mounted session, for the whole module."""
    home = tmp_path_factory.mktemp("operations")
    (home / "mnt").mkdir()
    mounted = Mounted.up("operations", home / "mnt", home / "state", (), home / "log")
    try:
        yield mounted
        mounted.stop()
    finally:
        mounted.clean_up()


@pytest.fixture
def place(mount: Mounted, request: pytest.FixtureRequest) -> Path:
    """A new directory in it."""
    path = mount.path / str(request.node.name)
    path.mkdir()
    return path
