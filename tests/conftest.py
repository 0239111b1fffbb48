"""Fixtures for all tests, and the order in which tests run: what needs no mount first, containers last."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.container import Container, Engine, private_engine
from tests.mounted import Mounted

# A run in CI must not fail for a seed that nobody can repeat, nor because two cores are busy.
settings.register_profile(
    "default", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("default")


# The rules of files first: when one of them is broken, all that stands on it is, and it shows in seconds.
AREAS = ("vfs", "tests", "http", "storage", "examples", "daemon", "mount")
# What of these needs no mount can run beside mounts.
ASIDE = ("vfs", "http", "storage")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks tests by the fixtures they use, and puts what needs least first: no mount, then mounts, then containers."""

    def weight(item: pytest.Item) -> tuple[bool, bool, int]:
        fixtures = getattr(item, "fixturenames", ())
        if "mounted" in fixtures:
            item.add_marker(pytest.mark.mount)
        if "docker_engine" in fixtures:
            item.add_marker(pytest.mark.docker)
        area = item.path.parent.name
        rank = AREAS.index(area) if area in AREAS else len(AREAS)
        in_container, on_mount = (item.get_closest_marker(name) is not None for name in ("docker", "mount"))
        if area in ASIDE and not in_container and not on_mount:
            item.add_marker(pytest.mark.aside)
        return in_container, on_mount, rank

    items.sort(key=weight)


def unavailable(what: str) -> None:
    """Skips a test for what this machine cannot do; CI's machine can do everything, so there it is a failure."""
    if "CI" in os.environ:
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., Mounted]]:
    """Mounts sessions: mounted("name", *options) runs `mount-session up` and returns when its one line is out.

    Session and directories by default are new ones under tmp_path. What a test leaves mounted is stopped, and must
    stop cleanly; nothing stays mounted however the test ends.
    """
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        unavailable("/dev/fuse cannot be opened here")
    running: list[Mounted] = []

    def mount(session: str = "work", *options: str, path: Path | None = None, state: Path | None = None) -> Mounted:
        path = path or tmp_path / "mnt" / session
        path.mkdir(parents=True, exist_ok=True)
        running.append(Mounted.up(session, path, state or tmp_path / "state", options, tmp_path / f"{session}.log"))
        return running[-1]

    try:
        yield mount
        for one in running:
            if one.process.poll() is None:
                one.stop()
    finally:
        for one in running:
            one.clean_up()


@pytest.fixture(scope="session")
def docker_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A Docker engine that answers: the machine's, or one of our own for as long as the tests run."""
    engine = Engine(os.environ.get("DOCKER_HOST"))
    if engine.answers():
        yield engine
    elif os.geteuid() != 0:
        unavailable("no Docker engine answers, and only root can start one")
    else:
        with private_engine() as own:
            yield own


@pytest.fixture(scope="session")
def container_image(docker_engine: Engine) -> str:
    """An image with a shell and the common tools, made here: see scripts/container-image."""
    return docker_engine.image("busybox")


@pytest.fixture(scope="session")
def host_image(docker_engine: Engine) -> str:
    """An image in which this machine's own programs run (git, python3, gcc): see scripts/container-image."""
    return docker_engine.image("host")


@pytest.fixture
def container(docker_engine: Engine, container_image: str) -> Iterator[Callable[..., Container]]:
    """Starts containers as an agent's are: uid 1001, read-only root, no network, a directory on /workspace."""
    running: list[Container] = []

    def start(workspace: Path, script: str, image: str = container_image, user: str = "1001:1001") -> Container:
        running.append(docker_engine.start(image, workspace, script, user))
        return running[-1]

    try:
        yield start
    finally:
        for one in running:
            one.remove()
