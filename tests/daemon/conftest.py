"""A daemon of the test's own, by the real command, and a client of it."""

from __future__ import annotations

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
