"""Webhooks: events as POST requests to receivers of the operator's, in order, signed, until they are taken.

A receiver takes an event by answering 2xx. Anything else, or no answer in time, is tried again after a growing delay
with jitter, for ever; 410 Gone ends it until the daemon's next start. Each receiver has a queue of its own, so a
dead one holds up no other. The queue is bounded: what does not fit is dropped, oldest first, counted, and told to
the receiver in the next request (`Mount-Session-Missed`), which can then read the events from the API by their
sequence numbers.

The body is the event as `GET /v1/sessions/{session}/events` has it. The signature is HMAC-SHA256, hex, over the
timestamp, a dot and the body: `Mount-Session-Signature: t=1700000000,v1=...`. Redirects are not followed. Owned by
the daemon; `outbox` gives it the events, one at a time of each session, so the queue is short.
"""

from __future__ import annotations

import fnmatch
import hashlib
import hmac
import logging
import random
import time
from collections import deque
from typing import Any, Final

import httpx
import msgspec
import trio

from mount.settings import Webhook

__all__ = ["SIGNATURE", "Webhooks", "signature"]

log = logging.getLogger(__name__)

QUEUE: Final = 10_000  # events; about 5 MB when full
FIRST_DELAY: Final = 1.0
LONGEST_DELAY: Final = 300.0
SIGNATURE: Final = "Mount-Session-Signature"

Event = dict[str, Any]


def signature(secret: bytes, timestamp: int, body: bytes) -> str:
    """The value of the header; a receiver computes it anew from `t` and the body, and compares in constant time."""
    digest = hmac.new(secret, b"%d." % timestamp + body, hashlib.sha256).hexdigest()
    return f"t={timestamp},v1={digest}"


class Receiver:
    """One webhook and what it has not taken yet."""

    def __init__(self, webhook: Webhook, client: httpx.AsyncClient) -> None:
        self.webhook = webhook
        self.delivered = 0
        self.failures = 0
        self.dropped = 0
        self.gone = False
        self._client = client
        self._secret = webhook.secret()
        self._queue: deque[Event] = deque()
        self._missed = 0
        self._put = self._passed = 0
        self._more = trio.Event()
        self._went = trio.Event()

    @property
    def pending(self) -> int:
        return len(self._queue)

    def wants(self, event: Event) -> bool:
        kinds, sessions = self.webhook.events, self.webhook.sessions
        return (
            not self.gone
            and (not kinds or event.get("kind") in kinds)
            and any(fnmatch.fnmatchcase(event.get("session", ""), pattern) for pattern in sessions)
        )

    def put(self, event: Event) -> None:
        if len(self._queue) >= QUEUE:
            self._queue.popleft()
            self.dropped += 1
            self._missed += 1
            self._let_pass()
        self._queue.append(event)
        self._put += 1
        self._more.set()

    async def take(self, event: Event) -> None:
        """Returns when the receiver has taken the event, or takes no more at all."""
        self.put(event)
        number = self._put
        while self._passed < number and not self.gone:
            await self._went.wait()

    def _let_pass(self) -> None:
        self._passed += 1
        self._went.set()
        self._went = trio.Event()

    async def run(self) -> None:
        """Deliver for ever."""
        while not self.gone:
            if not self._queue:
                self._more = trio.Event()
                await self._more.wait()
            event = self._queue[0]
            missed = self._missed
            if await self._deliver(event, missed):
                self.delivered += 1
                self._missed -= missed
            if self._queue and self._queue[0] is event:
                self._queue.popleft()
                self._let_pass()
        self._went.set()

    async def _deliver(self, event: Event, missed: int) -> bool:
        """Try until it is taken. False if the receiver is gone, or the event was dropped meanwhile."""
        body, delay = msgspec.json.encode(event), FIRST_DELAY
        while True:
            problem = await self._post(body, missed)
            if problem is None:
                return True
            if self.gone:
                self._queue.clear()
                return False
            self.failures += 1
            log.warning("webhook %s: %s; again in about %.0f s", self.webhook.name, problem, delay)
            await trio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(delay * 2, LONGEST_DELAY)
            if self._queue[0] is not event:
                return False

    async def _post(self, body: bytes, missed: int) -> str | None:
        """None if the event was taken, else what was wrong."""
        headers = {"Content-Type": "application/json", "User-Agent": "mount-session"}
        if self._secret is not None:
            headers[SIGNATURE] = signature(self._secret, int(time.time()), body)
        if missed:
            headers["Mount-Session-Missed"] = str(missed)
        try:
            with trio.fail_after(self.webhook.timeout):
                async with self._client.stream("POST", self.webhook.url, content=body, headers=headers) as response:
                    status = response.status_code
        except trio.TooSlowError:
            return f"no answer within {self.webhook.timeout:g} s"
        except Exception as e:  # httpx lets out what the libraries below it raise
            return f"{type(e).__name__}: {e}"
        if 200 <= status < 300:
            return None
        if status == 410:
            self.gone = True
            log.error("webhook %s: the receiver says that it is gone (410); it gets no more", self.webhook.name)
        return f"status {status}"


class Webhooks:
    def __init__(self, webhooks: tuple[Webhook, ...]) -> None:
        self._client = httpx.AsyncClient(follow_redirects=False, timeout=None)  # each request has its own deadline
        self.receivers = [Receiver(webhook, self._client) for webhook in webhooks]

    def put(self, event: Event) -> None:
        """Queue the event for who wants it; never waits."""
        for receiver in self.receivers:
            if receiver.wants(event):
                receiver.put(event)

    async def run(self) -> None:
        try:
            async with trio.open_nursery() as nursery:
                for receiver in self.receivers:
                    nursery.start_soon(receiver.run)
                await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await self._client.aclose()
