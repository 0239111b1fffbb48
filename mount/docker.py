"""The Docker volume plugin: sessions as volumes, over the engine's plugin protocol (v1.1) on a Unix socket.

docker volume create -d mount-session -o storage=s3://bucket/prefix my-session docker run -v my-session:/workspace
--volume-driver mount-session ...

A volume is a session of the volume's name. Making one mounts nothing; the first container mounts it, and does not
start before a real write and read have gone through; the last one that stops is a sync, with the receipt in `docker
volume inspect`. A session that `mount-session new` made can be used as a volume too; it stays mounted, and Docker
cannot remove it.

The engine gives each use of a volume an id of its own; they are remembered with the session, over restarts of the
daemon. The engine waits two minutes for an answer: a sync that takes longer goes on, and the container's stop says
so. Protocol: https://docs.docker.com/engine/extend/plugins_volume/
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from mount.api import body_of, missing, peer_of, problem_of
from mount.daemon import Daemon
from mount.listener import Peer
from mount.messages import NewSession, Problem, SessionStatus
from vfs.fileref import validate_session_id

__all__ = ["application"]

log = logging.getLogger(__name__)

PATIENCE: Final = 100.0  # seconds; the engine's own are 120
MEDIA_TYPE: Final = "application/vnd.docker.plugins.v1.1+json"
_LISTS: Final = ("hidden", "local_only")
_SEPARATE: Final = ("storage", "callbacks", "scope", "env_file")

Answer = dict[str, Any]


class Asked(msgspec.Struct, rename="pascal"):
    """What the engine sends; `ID` is the use's, `Opts` are those of `docker volume create -o`."""

    name: str = ""
    opts: dict[str, str] | None = None
    id: str = msgspec.field(default="", name="ID")


class Plugin:
    def __init__(self, daemon: Daemon, nursery: trio.Nursery) -> None:
        self._daemon = daemon
        self._nursery = nursery

    async def activate(self, asked: Asked, peer: Peer) -> Answer:
        return {"Implements": ["VolumeDriver"]}

    async def capabilities(self, asked: Asked, peer: Peer) -> Answer:
        """`local`: a volume is this host's."""
        return {"Capabilities": {"Scope": "local"}}

    async def create(self, asked: Asked, peer: Peer) -> Answer:
        """The engine may ask twice; the same volume again is no error."""
        if asked.name not in self._daemon.hosted:
            wanted = await trio.to_thread.run_sync(session_of, asked.name, asked.opts or {})
            await self._daemon.new(wanted, peer, volume=True)
        return {}

    async def remove(self, asked: Asked, peer: Peer) -> Answer:
        """The volume goes, and with it what is only here; what a storage holds stays."""
        hosted = self._daemon.get(asked.name)
        if not hosted.definition.volume:
            raise PermissionError(1, "Docker did not make this session; use `mount-session rm`", asked.name)
        await self._daemon.remove(asked.name, peer, purge=hosted.is_local)
        return {}

    async def mount(self, asked: Asked, peer: Peer) -> Answer:
        """Real I/O works when this returns, or the container does not start."""
        hosted = await self._daemon.hold(asked.name, _use(asked), peer)
        return {"Mountpoint": str(hosted.mountpoint)}

    async def unmount(self, asked: Asked, peer: Peer) -> Answer:
        """Goes on when the engine no longer waits for it."""
        done, failure = trio.Event(), list[Exception]()

        async def release() -> None:
            try:
                await self._daemon.release(asked.name, _use(asked), peer)
            except Exception as e:
                log.error("volume %s: not released cleanly: %s", asked.name, e)
                failure.append(e)
            done.set()

        self._nursery.start_soon(release)
        with trio.move_on_after(PATIENCE):
            await done.wait()
        if failure:
            raise failure[0]
        if not done.is_set():
            raise TimeoutError(110, "still being synced; it goes on, see `docker volume inspect`", asked.name)
        return {}

    async def path(self, asked: Asked, peer: Peer) -> Answer:
        hosted = self._daemon.get(asked.name)
        return {"Mountpoint": str(hosted.mountpoint) if hosted.mounted else ""}

    async def get(self, asked: Asked, peer: Peer) -> Answer:
        status = await self._daemon.get(asked.name).status()
        return {"Volume": {**_volume(status), "Status": _told(status)}}

    async def list(self, asked: Asked, peer: Peer) -> Answer:
        """Those that Docker made."""
        volumes = [hosted for hosted in self._daemon.hosted.values() if hosted.definition.volume]
        return {
            "Volumes": [
                {"Name": hosted.session, "Mountpoint": str(hosted.mountpoint) if hosted.mounted else ""}
                for hosted in volumes
            ]
        }


def _use(asked: Asked) -> str:
    if not 0 < len(asked.id) <= 256:
        raise ValueError("an ID of 1 to 256 characters is needed")
    return asked.id


def _volume(status: SessionStatus) -> Answer:
    mounted = status.state == "mounted"
    return {"Name": status.session, "Mountpoint": status.mountpoint if mounted else ""}


def _told(status: SessionStatus) -> Answer:
    """The `Status` of `docker volume inspect`."""
    told = {
        "state": status.state,
        "error": status.error,
        "storage": status.storage,
        "files": status.files,
        "bytes": status.bytes,
        "pending": status.pending,
        "containers": len(status.holders),
        "receipt": msgspec.to_builtins(status.receipt) if status.receipt else None,
    }
    return {name: value for name, value in told.items() if value is not None}


def session_of(name: str, options: dict[str, str]) -> NewSession:
    """The session that `docker volume create` asks for: a storage or callbacks, and any field of the policy."""
    validate_session_id(name)
    policy: dict[str, Any] = {}
    for option, value in options.items():
        if option in _SEPARATE:
            continue
        if option in _LISTS:
            policy[option] = value.split(",")
        elif option == "umask":
            policy[option] = value
        else:
            policy[option] = {"true": True, "false": False}.get(value, int(value) if value.isdecimal() else value)
    scope = options.get("scope")
    return NewSession(
        session=name,
        storage=options.get("storage"),
        callbacks=options.get("callbacks"),
        scope=None if scope is None else msgspec.json.decode(scope),
        policy=policy,
        environment=_environment(options.get("env_file")),
        mount=False,
    )


def _environment(file: str | None) -> dict[str, str] | None:
    """NAME=VALUE lines of a file on the engine's host; `docker volume inspect` shows its name and not what is in
    it."""
    if file is None:
        return None
    lines = [line for line in Path(file).read_text().splitlines() if line.strip() and not line.startswith("#")]
    if odd := [line for line in lines if "=" not in line]:
        raise ValueError(f"{file}: {len(odd)} lines are not NAME=VALUE")
    return dict(line.split("=", 1) for line in lines)


def application(daemon: Daemon, nursery: trio.Nursery) -> Starlette:
    plugin = Plugin(daemon, nursery)

    def route(path: str, handler: Callable[[Asked, Peer], Awaitable[Answer]]) -> Route:
        async def endpoint(request: Request) -> Response:
            try:
                answer = await handler(await body_of(request, Asked), peer_of(request))
            except Exception as e:
                problem = problem_of(e, path)
                message = msgspec.json.decode(problem.body, type=Problem).message
                log.warning("%s: %d %s", path, problem.status_code, message)
                return _answer({"Err": message}, problem.status_code)
            return _answer({**answer, "Err": ""})

        return Route(path, endpoint, methods=["POST"])

    driver = {
        "Create": plugin.create,
        "Remove": plugin.remove,
        "Mount": plugin.mount,
        "Unmount": plugin.unmount,
        "Path": plugin.path,
        "Get": plugin.get,
        "List": plugin.list,
        "Capabilities": plugin.capabilities,
    }
    routes = [route(f"/VolumeDriver.{name}", handler) for name, handler in driver.items()]
    routes.append(route("/Plugin.Activate", plugin.activate))
    return Starlette(routes=routes, exception_handlers={404: missing, 405: missing})


def _answer(answer: Answer, status: int = 200) -> Response:
    return Response(msgspec.json.encode(answer), status, media_type=MEDIA_TYPE)
