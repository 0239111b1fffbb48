"""A session that is open in a thread of its own, for tests that call it step by step without being async themselves."""

from __future__ import annotations

import queue
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import trio

from vfs.session import Session

T = TypeVar("T")


class Opened:
    def __init__(self, session_id: str, state: Path, **options: Any) -> None:
        """Open it; what opening raises is raised here."""
        self._ready: queue.SimpleQueue[Session | BaseException] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, args=(session_id, state, options), daemon=True)
        self._thread.start()
        opened = self._ready.get()
        if isinstance(opened, BaseException):
            raise opened
        self.session = opened

    def _run(self, session_id: str, state: Path, options: dict[str, Any]) -> None:
        async def main() -> None:
            async with Session.open(session_id, state, **options) as session:
                self._token = trio.lowlevel.current_trio_token()
                self._end = trio.Event()
                self._ready.put(session)
                await self._end.wait()

        try:
            trio.run(main)
        except BaseException as e:
            self._ready.put(e)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """A synchronous call, made by the session's thread."""
        return trio.from_thread.run_sync(function, *arguments, trio_token=self._token)

    def run(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        return trio.from_thread.run(function, *arguments, trio_token=self._token)

    def close(self) -> None:
        self.call(self._end.set)
        self._thread.join()
        if not self._ready.empty():
            failure = self._ready.get()
            assert isinstance(failure, BaseException)
            raise failure
