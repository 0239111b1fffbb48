"""Sessions as Docker volumes, through a real engine; and the plugin's protocol where an engine would not go."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.container import Engine, private_engine
from tests.daemon.serving import PROJECT, Serving, until

pytestmark = pytest.mark.docker

Serve = Callable[..., Serving]
PLUGINS = Path("/run/docker/plugins")


def driver_name(suffix: str = "") -> str:
    """A name for the driver that no other run of these tests uses."""
    return f"mount-session-test-{os.getpid()}{suffix}"


def settings_of(driver: str) -> dict[str, Any]:
    return {"docker": str(PLUGINS / f"{driver}.sock"), "policy": {"uid": 1001, "gid": 1001}}


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """One of these tests' own: an engine never forgets a driver, and asks a dead one for 15 s each time."""
    with private_engine() as own:
        yield own


@pytest.fixture(scope="module")
def image(engine: Engine) -> str:
    return engine.image("busybox")


@pytest.fixture(scope="module")
def plugin(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    daemon = Serving.start(tmp_path_factory.mktemp("plugin"), settings_of(driver_name()))
    try:
        yield daemon
        daemon.stop()
    finally:
        daemon.clean_up()


class Volumes:
    """One engine, one daemon with the plugin; containers and volumes made here are gone at the end."""

    def __init__(self, engine: Engine, image: str, driver: str, daemon: Serving) -> None:
        self.engine, self.image, self.driver, self.daemon = engine, image, driver, daemon
        self.containers: list[str] = []
        self.names: list[str] = []

    def create(self, name: str, *options: str, check: bool = True) -> str:
        pairs = [part for option in options for part in ("-o", option)]
        done = self.engine.docker("volume", "create", "-d", self.driver, *pairs, name, check=check)
        if done.returncode == 0:
            self.names.append(name)
        return done.stderr

    def run(self, volume: str, script: str, *options: str) -> str:
        """A container that does the script, to its end; its output."""
        base = ("run", "--rm", "--network", "none", "--user", "1001:1001", "--read-only", "-v", f"{volume}:/workspace")
        done = self.engine.docker(
            *base, "--volume-driver", self.driver, "-w", "/workspace", *options, self.image, "/bin/sh", "-euc", script
        )
        return done.stdout

    def start(self, volume: str, script: str = "sleep 1000") -> str:
        base = ("run", "-d", "--network", "none", "--user", "1001:1001", "-v", f"{volume}:/workspace")
        done = self.engine.docker(
            *base, "--volume-driver", self.driver, "-w", "/workspace", self.image, "/bin/sh", "-euc", script
        )
        self.containers.append(done.stdout.strip())
        return self.containers[-1]

    def inspect(self, name: str) -> dict[str, Any]:
        (found,) = json.loads(self.engine.docker("volume", "inspect", name).stdout)
        assert isinstance(found, dict)
        return found

    def listed(self) -> list[str]:
        return self.engine.docker("volume", "ls", "-q", "-f", f"driver={self.driver}").stdout.split()

    def clean_up(self) -> None:
        for container in self.containers:
            self.engine.docker("rm", "-f", container, check=False)
        for name in self.names:
            self.engine.docker("volume", "rm", "-f", name, check=False)


@pytest.fixture
def volumes(plugin: Serving, engine: Engine, image: str) -> Iterator[Volumes]:
    """The plugin, which the tests share one after another; each finds it without volumes or sessions."""
    made = Volumes(engine, image, driver_name(), plugin)
    try:
        yield made
    finally:
        made.clean_up()
        with plugin.client() as client:
            for status in client.list():
                client.remove(status.session, purge=True, force=True)


def test_a_volumes_whole_life(volumes: Volumes) -> None:
    volumes.create("vol", "quota_bytes=1MB", "umask=077")
    assert volumes.listed() == ["vol"] and volumes.daemon.mounts() == []
    assert volumes.run("vol", "echo hello > file; id -u; stat -c %a file; df -k . | tail -1").split()[:2] == [
        "1001",
        "600",
    ]
    assert volumes.daemon.mounts() == [], "the last container's end is the mount's"
    status = volumes.inspect("vol")["Status"]
    assert status["receipt"] == {"session": "vol", "files": 1, "bytes": 6, "pending": 0} and status["containers"] == 0
    assert volumes.run("vol", "cat file") == "hello\n"
    volumes.engine.docker("volume", "rm", "vol")
    assert volumes.listed() == [] and not (volumes.daemon.state / "vol").exists()


def test_a_volume_is_made_by_docker_run_alone(volumes: Volumes) -> None:
    volumes.names.append("byrun")
    volumes.run("byrun", "echo 1 > a")
    assert volumes.listed() == ["byrun"] and volumes.run("byrun", "cat a") == "1\n"


def test_several_containers_share_one_mount_until_the_last_one_ends(volumes: Volumes) -> None:
    volumes.create("shared")
    first, second = volumes.start("shared"), volumes.start("shared")
    volumes.engine.docker("exec", first, "sh", "-c", "echo from-first > /workspace/f")
    assert volumes.engine.docker("exec", second, "cat", "/workspace/f").stdout == "from-first\n"
    assert volumes.inspect("shared")["Status"]["containers"] == 2
    volumes.engine.docker("rm", "-f", first)
    assert len(volumes.daemon.mounts()) == 1
    assert volumes.engine.docker("exec", second, "cat", "/workspace/f").stdout == "from-first\n"
    assert "in use" in volumes.engine.docker("volume", "rm", "shared", check=False).stderr
    volumes.daemon.run("unmount", "shared", status=5)
    volumes.engine.docker("rm", "-f", second)
    assert volumes.daemon.mounts() == []
    assert volumes.inspect("shared")["Status"]["receipt"]["files"] == 1


def test_a_container_does_not_start_when_the_mount_does_not_work(volumes: Volumes) -> None:
    volumes.create("broken")
    (volumes.daemon.root / "broken").write_text("in the way")
    done = volumes.engine.docker(
        *(
            "run",
            "--rm",
            "-v",
            "broken:/workspace",
            "--volume-driver",
            volumes.driver,
            volumes.image,
            "echo",
            "started",
        ),
        check=False,
    )
    assert done.returncode != 0 and "not a directory" in done.stderr and "started" not in done.stdout
    (volumes.daemon.root / "broken").unlink()
    assert volumes.run("broken", "echo started") == "started\n"


def test_the_death_of_the_worker_is_nothing_to_a_container(volumes: Volumes) -> None:
    volumes.create("steady")
    container = volumes.start("steady", "n=0; while true; do n=$((n+1)); echo $n >> log; done")
    log = volumes.daemon.root / "steady/log"
    until(lambda: log.exists() and log.stat().st_size > 100)
    for _ in range(3):
        os.kill(volumes.daemon.worker("steady"), signal.SIGKILL)
        size = log.stat().st_size
        until(lambda size=size: log.stat().st_size > size)  # type: ignore[misc]
    volumes.engine.docker("rm", "-f", container)
    found = volumes.run("steady", "cat log").split()
    assert found == [str(n + 1) for n in range(len(found))]


def test_a_session_of_the_operators_is_a_volume_that_docker_cannot_remove(volumes: Volumes) -> None:
    volumes.daemon.run("new", "own")
    volumes.run("own", "echo 1 > f")
    assert len(volumes.daemon.mounts()) == 1 and (volumes.daemon.root / "own/f").read_text() == "1\n"
    assert volumes.daemon.json("status", "own")["receipt"]["files"] == 1
    assert volumes.listed() == []
    volumes.engine.docker("volume", "rm", "own", check=False)
    assert (volumes.daemon.root / "own/f").read_text() == "1\n"


def test_the_compose_example_does_what_it_says(volumes: Volumes, tmp_path: Path) -> None:
    """By compose itself; only the image and the driver's name are this test's."""
    example = (PROJECT / "examples/compose.yaml").read_text()
    assert "image: busybox" in example and "driver: mount-session" in example
    file = tmp_path / "compose.yaml"
    file.write_text(
        example.replace("image: busybox", f"image: {volumes.image}").replace(
            "driver: mount-session", f"driver: {volumes.driver}"
        )
    )

    def compose(*arguments: str) -> str:
        is_plugin = volumes.engine.docker("compose", "version", check=False).returncode == 0
        command = ["docker", "compose"] if is_plugin else ["docker-compose"]
        return volumes.engine.run([*command, "-p", volumes.driver, "-f", str(file), *arguments])

    try:
        compose("up", "-d")
        for container in compose("ps", "-q").split():
            assert volumes.engine.docker("wait", container).stdout.strip() == "0"
        assert "made by the agent" in compose("logs", "reader")
        assert volumes.inspect("compose-session")["Status"]["receipt"]["files"] == 1
        assert volumes.inspect("compose-session")["Options"]["quota_bytes"] == "10GiB"
        assert volumes.daemon.mounts() == [], "both have stopped"
    finally:
        compose("down", "--volumes")
    assert volumes.listed() == []


@pytest.mark.parametrize("options", [["storage=nonsense://x"], ["qouta_bytes=1"], ["quota_bytes=lots"], ["uid=root"]])
def test_options_that_are_none_are_refused_by_name(options: list[str], volumes: Volumes) -> None:
    said = volumes.create("odd", *options, check=False)
    assert options[0].split("=")[0].split("_")[0] in said or "size" in said, said
    assert volumes.listed() == []


def test_the_protocol_where_an_engine_would_not_go(serving: Serve, tmp_path: Path) -> None:
    socket = tmp_path / "plugin.sock"
    daemon = serving(docker=str(socket))
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), base_url="http://plugin") as http:

        def call(name: str, **fields: object) -> tuple[int, dict[str, Any]]:
            response = http.post(f"/VolumeDriver.{name}", json=fields)
            return response.status_code, response.json()

        assert http.post("/Plugin.Activate", json={}).json()["Implements"] == ["VolumeDriver"]
        assert call("Capabilities")[1]["Capabilities"] == {"Scope": "local"}
        assert call("Mount", Name="nope", ID="1")[0] == 404
        assert call("Create", Name="../x")[0] == 400 and call("Create", Name="")[0] == 400
        assert call("Create", Name="v")[0] == 200 and call("Create", Name="v")[0] == 200
        assert call("Mount", Name="v")[0] == 400, "an ID is needed"
        for _ in range(2):
            status, told = call("Mount", Name="v", ID="same")
            assert (status, told["Mountpoint"]) == (200, str(daemon.root / "v"))
        assert call("Path", Name="v")[1]["Mountpoint"] == str(daemon.root / "v")
        assert call("Remove", Name="v")[0] == 409
        assert call("Unmount", Name="v", ID="another")[0] == 200 and len(daemon.mounts()) == 1
        assert call("Unmount", Name="v", ID="same")[0] == 200 and daemon.mounts() == []
        assert call("Unmount", Name="v", ID="same")[0] == 200
        assert call("Remove", Name="v")[0] == 200 and call("Get", Name="v")[0] == 404
        assert http.post("/VolumeDriver.Create", content=b"{").status_code == 400
        assert http.post("/VolumeDriver.Create", content=b"[" * 2_000_000).status_code == 413
        assert http.get("/VolumeDriver.Nothing").status_code == 404 and "Nothing" in daemon.log()
        assert http.get("/VolumeDriver.Create").status_code == 405


def test_users_are_remembered_over_a_restart_of_the_daemon(serving: Serve, engine: Engine, image: str) -> None:
    driver = driver_name("-restarted")
    volumes = Volumes(engine, image, driver, serving(**settings_of(driver)))
    try:
        volumes.create("kept")
        container = volumes.start("kept")
        volumes.daemon.kill9()
        daemon = serving(**settings_of(driver))
        until(lambda: daemon.mounts())
        assert volumes.inspect("kept")["Status"]["containers"] == 1
        volumes.engine.docker("rm", "-f", container)
        assert daemon.mounts() == []
    finally:
        volumes.clean_up()
