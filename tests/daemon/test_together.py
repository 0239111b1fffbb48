"""Requests that meet in the daemon: it runs in this process, and nothing is mounted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from mount.audit import Audit
from mount.daemon import Daemon
from mount.listener import Peer
from mount.messages import NewSession
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
