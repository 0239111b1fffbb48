"""An asyncio loop in a thread of its own, for callbacks that are written for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import threading
from collections.abc import AsyncIterable, Awaitable, Callable
from typing import Any

import trio

from vfs.contained import by_asyncio

__all__ = ["LoopThread"]

log = logging.getLogger(__name__)

STOP_SECONDS = 5.0  # what tasks of our own asyncio loop get to end after they were cancelled


class LoopThread:
    """Started when first needed."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._started: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    async def run(
        self,
        answer: AsyncIterable[Any] | Awaitable[Any],
        lists: bool,
        extend: Callable[[], object],
        loop: asyncio.AbstractEventLoop | None,
    ) -> Any:
        """What `answer` comes to in `loop`, or in ours. Cancelling cancels it there, and does not wait for that."""
        done, token = trio.Event(), trio.lowlevel.current_trio_token()
        work = by_asyncio(answer, lists, lambda: token.run_sync_soon(extend))
        try:
            future = asyncio.run_coroutine_threadsafe(work, loop or self._running())
        except RuntimeError:  # that loop is closed
            work.close()
            if inspect.iscoroutine(answer):
                answer.close()
            raise

        def finished(_: object) -> None:
            with contextlib.suppress(trio.RunFinishedError):  # nobody is left to hear of it
                token.run_sync_soon(done.set)

        future.add_done_callback(finished)
        try:
            await done.wait()
        except trio.Cancelled:
            future.cancel()
            raise
        return future.result()

    def _running(self) -> asyncio.AbstractEventLoop:
        if self._started is None:
            ready = threading.Event()
            self._thread = threading.Thread(target=self._serve, args=(ready,), name=self._name, daemon=True)
            self._thread.start()
            ready.wait()  # well under a millisecond, once; no other task may start a second thread meanwhile
            if self._started is None:
                raise RuntimeError("the asyncio loop did not start")
        return self._started

    def _serve(self, ready: threading.Event) -> None:
        async def main() -> None:
            self._started, self._stop = asyncio.get_running_loop(), asyncio.Event()
            ready.set()
            await self._stop.wait()

        try:
            asyncio.run(main())
        finally:
            ready.set()

    def end(self) -> threading.Thread | None:
        """The thread, if there is one, which is told to end; the next call starts another."""
        loop, stop, thread = self._started, self._stop, self._thread
        self._started = self._stop = self._thread = None
        if loop is not None and stop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended by itself
                loop.call_soon_threadsafe(stop.set)
        return thread

    async def stop(self) -> None:
        thread = self.end()
        if thread is None:
            return
        await trio.to_thread.run_sync(thread.join, STOP_SECONDS)
        if thread.is_alive():
            log.warning("%s: did not end within %g s of being cancelled; left behind", self._name, STOP_SECONDS)
