"""Contained: the integrator's code, run so that what it raises is an Exception and what it answers holds no more code.

A callback may raise anything: KeyboardInterrupt, SystemExit, GeneratorExit, asyncio's CancelledError (of an asyncio.run
within it), the panic of an extension. Let through, that would end the loop it runs in, or the session. It is contained
where it is raised, for one frame further on nobody can tell it from a cancellation of our own.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any, Final, TypeVar

import trio

from vfs.errors import leaves

__all__ = ["Contained", "by_asyncio", "by_trio", "collected", "in_thread"]

T = TypeVar("T")

TOLD_EVERY, TOLD_VALUES = 1.0, 16  # seconds, or values, after which one that goes on is given more time
_OF_TRIO: Final = (trio.Cancelled, KeyboardInterrupt, GeneratorExit)  # what trio itself throws into a task


class Contained(Exception):
    """The integrator's code raised `__cause__`, which is no Exception."""


@contextlib.contextmanager
def _containing(is_ours: Callable[[BaseException], bool]) -> Iterator[None]:
    """What the block raises is an Exception, but for what `is_ours`."""
    try:
        yield
    except Exception:
        raise
    except BaseException as e:
        if is_ours(e):
            raise
        raise Contained from e


def in_thread(call: Callable[[], T]) -> T:
    """What the call answers, in a thread, which nobody cancels: all that comes out of it is the call's own."""
    with _containing(lambda e: False):
        return call()


async def by_trio(answer: AsyncIterable[Any] | Awaitable[Any], lists: bool, extend: Callable[[], object]) -> Any:
    """What `answer` comes to in this task."""
    with _containing(lambda e: any(isinstance(leaf, _OF_TRIO) for leaf in leaves(e))):
        return await _awaited(answer, lists, extend)


async def by_asyncio(answer: AsyncIterable[Any] | Awaitable[Any], lists: bool, extend: Callable[[], object]) -> Any:
    """What `answer` comes to in an asyncio task of its own."""
    with _containing(lambda e: isinstance(e, asyncio.CancelledError) and _is_being_cancelled()):
        return await _awaited(answer, lists, extend)


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def collected(
    function: Callable[..., Any], arguments: tuple[object, ...], lists: bool, extend: Callable[[], object]
) -> Any:
    """The answer, drained here in the thread where it is lazy: its code is the integrator's and may block."""
    answer = function(*arguments)
    if isinstance(answer, AsyncIterable | Awaitable) or not _is_lazy(answer, lists):
        return answer
    values, told = [], time.monotonic()
    for value in answer:
        values.append(value)
        if time.monotonic() > told + TOLD_EVERY:
            told = time.monotonic()
            trio.from_thread.run_sync(extend)
    return values


async def _awaited(answer: AsyncIterable[Any] | Awaitable[Any], lists: bool, extend: Callable[[], object]) -> Any:
    found: Any = answer if isinstance(answer, AsyncIterable) else await answer
    if isinstance(found, AsyncIterable):
        values = []
        async for value in found:
            values.append(value)
            if len(values) % TOLD_VALUES == 1:
                extend()
        return values
    return list(found) if _is_lazy(found, lists) else found


def _is_lazy(answer: object, lists: bool) -> bool:
    """Whether its values come from code of the integrator's: a generator; a listing's query, cursor, `map` too."""
    return inspect.isgenerator(answer) or (
        lists
        and type(answer) not in (list, tuple, set, frozenset)
        and isinstance(answer, Iterable)
        and not isinstance(answer, str | bytes | Mapping)
    )
