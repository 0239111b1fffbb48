"""A session mounted from a Python program: synchronous, asyncio or trio.

    with mounted("my-session", "/mnt/work", callbacks=MyCallbacks(), scope=user) as session:
        subprocess.run(["make"], cwd=session.path)
    print(session.receipt)

`async with` does the same under asyncio and trio. The supervisor runs in a thread of this process and the worker in a
process of its own, as for `mount-session up`; so a mount survives this program, and the next `mounted` of the session
takes
it over. Live objects are reached from the worker over a socket in a private directory: their callbacks run in this
process, async ones in the loop that entered the block, and `scope` never leaves it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import queue
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

import msgspec
import sniffio
import trio

from mount.config import MountConfig, Receipt
from mount.hooked import Hooked
from mount.mountpoint import resolve
from mount.routing import RouteConfig, checked
from mount.settings import default_state
from mount.supervisor import Supervisor
from vfs.callbacks import discover, made
from vfs.errors import single
from vfs.hooks import HOOKS, Hooks
from vfs.http.server import serving
from vfs.policy import UNLIMITED, Policy
from vfs.refresh import Refreshed

__all__ = ["EmbeddedMount", "RouteConfig", "mounted"]

T = TypeVar("T")
Loop: TypeAlias = asyncio.AbstractEventLoop | trio.lowlevel.TrioToken


def mounted(
    session: str,
    mountpoint: str | os.PathLike[str],
    *,
    state: str | os.PathLike[str] | None = None,
    storage: str = "local",
    callbacks: object = None,
    scope: Any = None,
    routes: Iterable[RouteConfig] = (),
    policy: Policy = UNLIMITED,
) -> EmbeddedMount:
    """The session on the directory `mountpoint` while the block of `with` or `async with` lasts.

    `state`: the directory that keeps sessions (as --state). `storage`: as --storage. `callbacks`: any object with
    callbacks (docs/callbacks.md) and perhaps hooks (docs/events.md), or what --callbacks takes; `scope` is the first
    argument of callbacks. `routes`: directories that are kept elsewhere. Entering raises what `mount-session up` would
    refuse, as OSError or ValueError.
    """
    config = MountConfig(
        session=session,
        mountpoint=os.fsencode(resolve(mountpoint)),
        state=os.fsencode(Path(state or default_state()).absolute()),
        storage=storage,
        callbacks=callbacks if isinstance(callbacks, str) else None,
        scope=scope if isinstance(callbacks, str) else None,
        routes=checked(routes, session),
        policy=policy,
    )
    return EmbeddedMount(config, None if isinstance(callbacks, str) else made(callbacks), scope)


class EmbeddedMount:
    """`path` is the mountpoint; `receipt` is None until the block has ended."""

    def __init__(self, config: MountConfig, target: object, scope: Any) -> None:
        self.path = config.mountpoint_path
        self.receipt: Receipt | None = None
        self._config = config
        self._target = target
        self._scope = scope
        self._supervising: _Supervising | None = None
        self._needed_by_callbacks: int | None = None  # the thread whose loop runs async callbacks
        self._stack = contextlib.ExitStack()

    def sync(self) -> Receipt:
        """All that was done before is persisted, or OSError says why it is not. Blocks; `synced` does not."""
        return msgspec.convert(self._ask("sync"), Receipt)

    def refresh(self) -> Refreshed:
        """What others changed in the persistences appears now: how many files. Blocks, as `sync`."""
        return msgspec.convert(self._ask("refresh"), Refreshed)

    def add_route(self, route: RouteConfig) -> Refreshed:
        """One directory is kept elsewhere from now on; how many files appeared. Blocks, as `sync`."""
        return msgspec.convert(self._ask("route", route=msgspec.to_builtins(route)), Refreshed)

    def _ask(self, what: str, **arguments: Any) -> Any:
        if self._supervising is None:
            raise ValueError(f"session {self._config.session!r} is not mounted: use it inside its `with`")
        if threading.get_ident() == self._needed_by_callbacks:
            raise RuntimeError("this blocks the loop that the async callbacks run in: use `synced`, or a thread")
        return self._supervising.ask(what, **arguments)

    async def synced(self) -> Receipt:
        """As `sync`, under asyncio or trio."""
        return await _in_thread(self.sync)

    def __enter__(self) -> Self:
        return self._enter(None)

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._leave()

    async def __aenter__(self) -> Self:
        if self._target is not None and any(map(inspect.iscoroutinefunction, discover(self._target).values())):
            self._needed_by_callbacks = threading.get_ident()
        try:
            return await _in_thread(partial(self._enter, _current_loop()))
        except asyncio.CancelledError:
            await _in_thread(self._leave)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None
    ) -> None:
        await _in_thread(self._leave)

    def _enter(self, loop: Loop | None) -> Self:
        with contextlib.ExitStack() as stack:
            config = self._config
            if self._target is not None:
                url = stack.enter_context(_served(self._target, self._scope, loop))
                config = msgspec.structs.replace(config, callbacks=url)
            self._supervising = stack.enter_context(_Supervising(config, _hooks(self._target, loop)))
            self._stack = stack.pop_all()
        return self

    def _leave(self) -> None:
        try:
            self._stack.close()
        finally:
            if self._supervising is not None:
                self.receipt = self._supervising.receipt
                self._supervising = None


class _Supervising:
    """A supervisor with one mount, in a thread of its own."""

    def __init__(self, config: MountConfig, hooks: Hooks) -> None:
        self.receipt: Receipt | None = None
        self._config = config
        self._hooks = hooks
        self._ready: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"supervisor of {config.session}")

    def __enter__(self) -> Self:
        self._thread.start()
        try:
            failure = self._ready.get()
        except BaseException:  # Ctrl-C: what is being mounted, or is by now, goes
            self._begun.wait()
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._entering.cancel)
                self._token.run_sync_soon(self._leave.set)
            self._thread.join()
            raise
        if failure is not None:
            self._thread.join()
            raise failure
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._token.run_sync_soon(self._leave.set)
        self._thread.join()
        failure = self._ready.get()
        if failure is not None:
            raise failure

    def ask(self, what: str, **arguments: Any) -> Any:
        return trio.from_thread.run(partial(self._mounted.ask, what, **arguments), trio_token=self._token)

    def _run(self) -> None:
        try:
            trio.run(self._supervise)
        except BaseException as e:
            self._ready.put(single(e))
        else:
            self._ready.put(None)

    async def _supervise(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._leave = trio.Event()
        self._entering = trio.CancelScope()
        self._begun.set()
        async with Supervisor.run() as supervisor:
            with self._entering:
                self._mounted = await supervisor.mount(self._config)
            if self._leave.is_set():
                return
            async with trio.open_nursery() as nursery:
                hooked = Hooked(self._hooks, self._mounted)
                if self._hooks:
                    await nursery.start(hooked.run)
                self._ready.put(None)
                await self._leave.wait()
                session = self._config.session
                if session in supervisor.mounts and self._hooks:
                    await hooked.finish()
                nursery.cancel_scope.cancel()
            if session in supervisor.mounts:
                await supervisor.unmount(session)
            self.receipt = supervisor.receipts.get(session)


@contextlib.contextmanager
def _served(target: object, scope: Any, loop: Loop | None) -> Iterator[str]:
    """The callbacks of a live object, on a socket that only this user can reach; the URL for the worker."""
    options: dict[str, Any] = {"async_library": loop} if isinstance(loop, asyncio.AbstractEventLoop) else {}
    if isinstance(loop, trio.lowlevel.TrioToken):
        target = {name: _in_trio(function, loop) for name, function in discover(target).items()}
    with tempfile.TemporaryDirectory(prefix="mount-session-") as directory:
        socket = f"unix:{directory}/callbacks.sock"
        with serving(target, bind=socket, scope_of=lambda _: scope, **options) as url:
            yield url


def _hooks(target: object, loop: Loop | None) -> Hooks:
    """The hooks of a live object; async ones run where its async callbacks do."""
    if not isinstance(loop, trio.lowlevel.TrioToken):
        return Hooks(target, loop)
    found = {name: getattr(target, name, None) for name in HOOKS.values()}
    return Hooks({name: _in_trio(function, loop) for name, function in found.items() if callable(function)})


def _in_trio(function: Callable[..., Any], token: trio.lowlevel.TrioToken) -> Callable[..., Any]:
    """An async callback as a synchronous one that is carried out in the trio run of `token`."""
    if not inspect.iscoroutinefunction(function):
        return function
    return partial(trio.from_thread.run, function, trio_token=token)


def _current_loop() -> Loop:
    if sniffio.current_async_library() == "trio":
        return trio.lowlevel.current_trio_token()
    return asyncio.get_running_loop()


async def _in_thread(function: Callable[[], T]) -> T:
    """Carried out in a thread, and not given up: a mount that is half there is no use to anyone. Under asyncio a
    cancellation is raised when it is done."""
    if sniffio.current_async_library() == "trio":
        with trio.CancelScope(shield=True):
            return await trio.to_thread.run_sync(function)
    running = asyncio.ensure_future(asyncio.to_thread(function))
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError as e:
            cancelled = e
    if cancelled is not None:
        raise cancelled from running.exception()
    return running.result()
