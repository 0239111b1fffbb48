"""The outbox: which event of which session each webhook was told of last, so that a start goes on from there.

Every receiver follows every session that it wants through a feed of its own, one event at a time: a dead receiver
holds up no other, and costs no memory, for what it has not taken is in the session's event log. Its place is written
down every second. An event may therefore come twice after a crash, and is then known by its session and number; one
that was dropped from the log before it was taken is told of by an event `lost`.

A receiver that is new in the configuration is told of what comes; of a session that is new, of everything. Owned by
the service.
"""

from __future__ import annotations

import fnmatch
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from mount import durable
from mount.feed import Feed
from mount.webhooks import Receiver

if TYPE_CHECKING:
    from mount.daemon import Daemon
    from mount.hosted import Hosted

__all__ = ["Outbox"]

log = logging.getLogger(__name__)

EVERY: Final = 1.0  # seconds between looks for new sessions, and between writes of the places

Places = dict[str, dict[str, int]]  # webhook's URL -> session -> number


class Outbox:
    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._path = daemon.settings.own / "registry" / "webhooks.json"
        self._places = _load(self._path)
        self._written = msgspec.json.encode(self._places)
        self._followed: set[tuple[Receiver, Hosted]] = set()

    async def run(self) -> None:
        receivers = self._daemon.webhooks.receivers
        if not receivers:
            return
        new = {receiver.webhook.url for receiver in receivers} - self._places.keys()
        self._places = {r.webhook.url: self._places.get(r.webhook.url, {}) for r in receivers}
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    for receiver in receivers:
                        self._follow_all(nursery, receiver, from_now=receiver.webhook.url in new)
                    new.clear()
                    await self._save()
                    await trio.sleep(EVERY)
        finally:
            with trio.CancelScope(shield=True):
                await self._save()

    def _follow_all(self, nursery: trio.Nursery, receiver: Receiver, *, from_now: bool) -> None:
        """A task for each session that has none yet."""
        hosted_now = self._daemon.hosted
        places = self._places[receiver.webhook.url]
        for session in places.keys() - hosted_now.keys():
            del places[session]
        for hosted in hosted_now.values():
            wanted = any(fnmatch.fnmatchcase(hosted.session, pattern) for pattern in receiver.webhook.sessions)
            if wanted and not receiver.gone and (receiver, hosted) not in self._followed:
                self._followed.add((receiver, hosted))
                since = None if from_now else places.get(hosted.session, 0)
                nursery.start_soon(self._follow, receiver, hosted, since)

    async def _follow(self, receiver: Receiver, hosted: Hosted, since: int | None) -> None:
        """Until the receiver or the session is gone."""
        feed = Feed(hosted, self._daemon.settings.state_path, since)
        places = self._places[receiver.webhook.url]
        if since is None:
            await feed.page(0.0)
            places[hosted.session] = feed.since or 0
        while not receiver.gone and self._daemon.hosted.get(hosted.session) is hosted:
            for line in await feed.page():
                event = msgspec.json.decode(line.json)
                if receiver.wants(event):
                    await receiver.take(event)
                if receiver.gone:
                    break
                places[hosted.session] = line.seq
            if feed.since is not None and not receiver.gone:
                places[hosted.session] = feed.since
        self._followed.discard((receiver, hosted))

    async def _save(self) -> None:
        content = msgspec.json.encode(self._places)
        if content == self._written:
            return
        try:
            await trio.to_thread.run_sync(durable.write, self._path, content)
        except OSError as e:
            log.error("%s: %s; it is tried again", self._path, e)
        else:
            self._written = content


def _load(path: Path) -> Places:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Places)
    except FileNotFoundError:
        return {}
    except msgspec.DecodeError as e:
        log.error("%s: %s; webhooks are told of what comes from now on", path, e)
        return {}
