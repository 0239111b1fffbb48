"""A call: one callback of the integrator, carried out from trio, with a time-out, and its failure as an OSError.

Sync callbacks run in threads. Async ones run under the library that they are written for: trio's are awaited in
place; asyncio's run in an asyncio loop, the integrator's own or one in a thread that is started at the first such
call. Which library, in this order: what the caller of `Caller` says; an attribute `async_library` ("trio" or
"asyncio") of the function or of the object that has it; trio if the function's module imports trio; else asyncio.

Invariants: a call ends by its time-out whatever the callback does, one that yields values when none has come for that
long (a listing: or in `LONGEST` time-outs); a callback that hangs in a thread keeps that thread but not a slot, so
others go on (until `HUNG_THREADS` of them hang); an unexpected exception is logged with its traceback once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import inspect
import logging
import os
import threading
import time
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from types import ModuleType
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import cachetools
import trio

from vfs.contained import Contained, by_trio, collected, in_thread
from vfs.errors import brief, errno_of, readable, said, single
from vfs.loopthread import STOP_SECONDS, LoopThread

__all__ = ["Answer", "AsyncLibrary", "Caller", "is_async"]

log = logging.getLogger(__name__)

AsyncLibrary: TypeAlias = Literal["trio", "asyncio"] | asyncio.AbstractEventLoop

HUNG_THREADS = 64
LONGEST = 20  # time-outs after which also a listing that goes on ends
EACH_END = 0.1  # seconds after which no other of many calls is begun

_END: Final = object()

_ERRNO: tuple[tuple[type[OSError], int], ...] = (  # of an OSError that was raised without a usable one
    (FileNotFoundError, errno.ENOENT),
    (FileExistsError, errno.EEXIST),
    (PermissionError, errno.EACCES),
    (TimeoutError, errno.ETIMEDOUT),
    (IsADirectoryError, errno.EISDIR),
    (NotADirectoryError, errno.ENOTDIR),
)


class Answer(NamedTuple):
    """Of one call of many; `seconds` that it took."""

    value: Any
    seconds: float


class Caller:
    """Carries out the callbacks of one object. `name` is what log lines call that object; `threads` bounds how many
    sync callbacks run at a time; `async_library` overrides the choice described above."""

    def __init__(
        self,
        name: str,
        functions: Mapping[str, Callable[..., Any]],
        target: object = None,
        *,
        threads: int = 16,
        async_library: AsyncLibrary | None = None,
    ) -> None:
        self.name = name
        self._functions = dict(functions)
        self._library = {
            callback: async_library or _library(function, target) for callback, function in self._functions.items()
        }
        self.callbacks = frozenset(self._functions)
        self._slots = trio.Semaphore(threads)
        self._threads = trio.CapacityLimiter(threads + HUNG_THREADS)
        self._loop = LoopThread(f"asyncio callbacks of {name}")
        # A session does not end it: the next one may use the same callbacks, whose connections live in that loop.
        weakref.finalize(self, self._loop.end).atexit = False
        self._logged: cachetools.LRUCache[tuple[str, str, str], int] = cachetools.LRUCache(1000)

    async def call(self, callback: str, subject: str, seconds: float, *arguments: object) -> Any:
        """What the callback answers; a stream of values comes as a list. `subject` is the path, for messages.

        Raises an OSError with the callback's errno, ETIMEDOUT after `seconds`, EIO for all else.
        """
        with self._bounded(callback, subject, seconds) as life:
            return await self._answer(callback, arguments, life)

    async def values(self, callback: str, subject: str, seconds: float, *arguments: object) -> AsyncGenerator[Any]:
        """What the callback yields, as it comes, each value within `seconds`. Raises as `call` does."""
        with self._bounded(callback, subject, seconds) as life:
            values = await self._values(callback, arguments, life)
        try:
            while True:
                with self._bounded(callback, subject, seconds) as life:
                    value = await values.next(life)
                if value is _END:
                    return
                yield value
        finally:
            with trio.move_on_after(STOP_SECONDS, shield=True) as scope, contextlib.suppress(Exception):
                await values.close(_Life(scope, STOP_SECONDS))

    @contextlib.contextmanager
    def _bounded(self, callback: str, subject: str, seconds: float) -> Iterator[_Life]:
        """What a block with a callback in it raises, as an OSError; it ends when the life ends."""
        try:
            with trio.move_on_after(seconds) as scope:
                yield _Life(scope, seconds)
        except Exception as e:  # also what is left of a group whose other part was the time-out
            raise self._os_error(e, callback, subject) from e
        if scope.cancelled_caught:
            log.warning("%s: %s(%r) did not answer within %g s", self.name, callback, subject, seconds)
            raise OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), subject)

    def is_sync(self, callback: str) -> bool:
        return callback in self._functions and not is_async(self._functions[callback])

    async def call_each(self, callback: str, seconds: float, calls: Sequence[tuple[object, ...]]) -> list[Answer]:
        """What a sync callback answers to the first of these calls, made one after the other in one thread: up to one
        that fails, whose caller is told why when it makes that call alone."""
        function, answers, over = self._functions[callback], list[Answer](), threading.Event()

        def each() -> None:
            began = ended = time.perf_counter()
            for arguments in calls:
                answer = function(*arguments)
                if inspect.iscoroutine(answer):
                    answer.close()  # not as sync as it looked
                if over.is_set() or isinstance(answer, AsyncIterable | Awaitable):
                    return
                before, ended = ended, time.perf_counter()
                answers.append(Answer(answer, ended - before))
                if ended > began + EACH_END:
                    return

        try:
            with trio.move_on_after(seconds), contextlib.suppress(Exception):
                await self._in_thread(each)
        finally:
            over.set()
        return answers

    def bad_answer(self, callback: str, subject: str, expected: str, got: object) -> OSError:
        """The error for an answer of the wrong type; its log line."""
        kind = type(got).__name__
        log.error("%s: %s(%r) answered %s; expected %s", self.name, callback, subject, kind, expected)
        return OSError(errno.EIO, f"{callback} answered {kind}, not {expected}", subject)

    async def aclose(self) -> None:
        await self._loop.stop()

    async def _answer(self, callback: str, arguments: tuple[object, ...], life: _Life) -> Any:
        function, lists = self._functions[callback], callback == "on_list"
        if is_async(function):
            answer: Any = function(*arguments)
        else:
            answer = await self._in_thread(functools.partial(collected, function, arguments, lists, life.extend))
        if not isinstance(answer, AsyncIterable | Awaitable):
            return answer
        return await self._awaited_by(self._library[callback], lists, answer, life)

    async def _awaited_by(
        self, library: AsyncLibrary, lists: bool, answer: AsyncIterable[Any] | Awaitable[Any], life: _Life
    ) -> Any:
        if library == "trio":
            return await by_trio(answer, lists, life.extend)
        return await self._loop.run(answer, lists, life.extend, None if library == "asyncio" else library)

    async def _values(self, callback: str, arguments: tuple[object, ...], life: _Life) -> _Values:
        function, library = self._functions[callback], self._library[callback]
        awaited = functools.partial(self._awaited_by, library, False)
        call = functools.partial(function, *arguments)
        answer = call() if is_async(function) else await self._in_thread(call)
        if isinstance(answer, Awaitable):
            answer = await awaited(answer, life)
        return _Values(answer, awaited, self._in_thread)

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        async with self._slots:
            return await trio.to_thread.run_sync(in_thread, call, limiter=self._threads, abandon_on_cancel=True)

    def _os_error(self, e: BaseException, callback: str, subject: str) -> OSError:
        e = single(e.__cause__ if isinstance(e, Contained) and e.__cause__ else e)
        if isinstance(e, OSError):
            if errno_of(e) is not None:
                e.strerror = e.strerror and brief(readable(e.strerror))
                return e
            for kind, number in _ERRNO:
                if isinstance(e, kind):
                    return OSError(number, brief(readable(e)) or os.strerror(number), subject)
        if isinstance(e, trio.TooSlowError):
            return OSError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), subject)
        key = (callback, subject, brief(said(e)))
        again = self._logged.get(key, 0)
        self._logged[key] = again + 1
        if again:
            log.error("%s: %s(%r) failed as before (%d times): %s", self.name, callback, subject, again + 1, key[2])
        else:
            log.error("%s: %s(%r) failed: %s", self.name, callback, subject, key[2], exc_info=e)
        return OSError(errno.EIO, f"{callback} failed: {type(e).__name__}", subject)


class _Life:
    """The time that a call has left. A value that it yields gives it `seconds` more."""

    def __init__(self, scope: trio.CancelScope, seconds: float) -> None:
        self._scope = scope
        self._seconds = seconds
        self._last = trio.current_time() + LONGEST * seconds

    def extend(self) -> None:
        self._scope.deadline = min(self._last, trio.current_time() + self._seconds)


class _Values:
    """What a callback yields, one by one; where it is sync, in threads, as its code may block."""

    def __init__(
        self,
        answer: AsyncIterable[Any] | Iterable[Any],
        awaited: Callable[[Awaitable[Any], _Life], Awaitable[Any]],
        in_thread: Callable[[Callable[[], Any]], Awaitable[Any]],
    ) -> None:
        self._values = aiter(answer) if isinstance(answer, AsyncIterable) else iter(answer)
        self._awaited = awaited
        self._in_thread = in_thread

    async def next(self, life: _Life) -> Any:
        """_END: there are no more."""
        if isinstance(self._values, AsyncIterator):
            return await self._awaited(anext(self._values, _END), life)
        return await self._in_thread(functools.partial(next, self._values, _END))

    async def close(self, life: _Life) -> None:
        if isinstance(self._values, AsyncGenerator):
            await self._awaited(self._values.aclose(), life)
        elif isinstance(self._values, Generator):
            await self._in_thread(self._values.close)


def is_async(function: Callable[..., Any]) -> bool:
    """Whether its call answers something to await, or to iterate over asynchronously, and does no more itself."""
    while isinstance(function, functools.partial):
        function = function.func
    candidates = (function, getattr(function, "__call__", None))  # noqa: B004 - an instance's `async def __call__`
    return any(inspect.iscoroutinefunction(f) or inspect.isasyncgenfunction(f) for f in candidates)


def _library(function: Callable[..., Any], target: object) -> AsyncLibrary:
    while isinstance(function, functools.partial):
        function = function.func
    declared = getattr(function, "async_library", None) or getattr(target, "async_library", None)
    if declared in ("trio", "asyncio") or isinstance(declared, asyncio.AbstractEventLoop):
        return declared
    if declared is not None:
        raise TypeError(f"async_library is 'trio', 'asyncio' or an asyncio event loop, not {type(declared).__name__}")
    plain: object = inspect.unwrap(function)
    plain = getattr(plain, "__func__", plain)
    if not inspect.isfunction(plain):
        plain = type(plain).__call__
    names: dict[str, object] = getattr(plain, "__globals__", {})
    imports_trio = any(isinstance(value, ModuleType) and value.__name__ == "trio" for value in names.values())
    return "trio" if imports_trio else "asyncio"
