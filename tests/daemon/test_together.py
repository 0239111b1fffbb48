"""Requests that meet in the daemon: it runs in this process, and nothing is mounted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
import trio.testing

from mount.audit import Audit
from mount.daemon import Daemon
from mount.listener import Peer
from mount.messages import NewSession, SessionHealth
from mount.mounted import Mounted
from mount.settings import Settings, Workers
from mount.supervisor import Supervisor
from mount.webhooks import Webhooks

US = Peer(pid=1, uid=0, gid=0)


@asynccontextmanager
async def running(directory: Path, **fields: Any) -> AsyncIterator[Daemon]:
    settings = Settings(root=str(directory / "root"), state=str(directory / "state"), **fields)
    (settings.own / "registry").mkdir(parents=True)
    async with trio.open_nursery() as nursery:
        yield Daemon(settings, Supervisor(nursery), nursery, Audit(settings.own / "registry"), Webhooks(()))
        nursery.cancel_scope.cancel()


async def test_sessions_made_at_the_same_time_have_users_of_their_own(tmp_path: Path) -> None:
    async with running(tmp_path, workers=Workers(uids=(70_000, 8))) as daemon:
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(daemon.new, NewSession(session=f"s{number}", mount=False), US)
        assert {found.uid for found in daemon.registry} == set(range(70_000, 70_008))


async def test_what_waited_for_a_session_that_was_removed_finds_none(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        await daemon.new(NewSession(session="work", mount=False), US)
        refused = []

        async def refuse(change: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(FileNotFoundError):
                await change()
            refused.append(change)

        changes: list[Callable[[], Awaitable[object]]] = [
            lambda: daemon.mount("work", US),
            lambda: daemon.unmount("work", US),
            lambda: daemon.remove("work", US, purge=True),
            lambda: daemon.set_policy("work", {}, US),
            lambda: daemon.hold("work", "container", US),
            lambda: daemon.release("work", "container", US),
        ]
        async with trio.open_nursery() as nursery, daemon.hosted["work"].lock:
            nursery.start_soon(partial(daemon.remove, "work", US, purge=True))
            await trio.testing.wait_all_tasks_blocked()
            for change in changes:
                nursery.start_soon(refuse, change)
            await trio.testing.wait_all_tasks_blocked()
        assert len(refused) == len(changes)
        assert not (tmp_path / "root" / "work").exists()


async def test_what_could_not_be_unmounted_is_mounted_again_by_mount(tmp_path: Path) -> None:
    async with running(tmp_path) as daemon:
        await daemon.new(NewSession(session="work", mount=False), US)
        hosted = daemon.hosted["work"]
        told = {"phase": "idle", "worker": None, "restarts": 0, "last_death": None}
        hosted.mounted = cast(Mounted, SimpleNamespace(status=lambda: told, worker=None))
        hosted.enter("failed", "no worker could be started")
        status = await daemon.mount("work", US)
        assert (status.state, status.error) == ("mounted", None)


async def test_nothing_waits_for_the_sync_after_the_last_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as daemon:
        await daemon.new(NewSession(session="work", mount=False), US)
        hosted, synced = daemon.hosted["work"], trio.Event()
        hosted.mounted = cast(Mounted, SimpleNamespace())

        async def ask(what: str, seconds: float) -> dict[str, object]:
            await synced.wait()
            return {"session": "work", "files": 1, "bytes": 2, "pending": 0}

        async def probe(deadline: float) -> SessionHealth:
            return SessionHealth(session="work", healthy=True, seconds=0.0)

        monkeypatch.setattr(hosted, "ask", ask)
        monkeypatch.setattr(hosted, "probe", probe)
        await daemon.hold("work", "first", US)
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(daemon.release, "work", "first", US)
                await trio.testing.wait_all_tasks_blocked()
                await daemon.hold("work", "second", US)
                assert hosted.definition.receipt is None
                synced.set()
        assert hosted.definition.holders == ("second",)
        assert hosted.definition.receipt is not None
