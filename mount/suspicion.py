"""Suspicion: which of the requests that come again kills the worker, so that it is refused and the session goes on.

A worker that took over after a death notes each request in the file `suspect` before it begins and after it ends, until
all that come again were answered. If it dies as well, the one that had begun is guilty; the third death that is due to
one request (the first is not noted: nothing was suspected then) is its last: the kernel is told EIO in its place. A
worker that SIGKILL ended may have met somebody who kills workers rather than a request that does, and a slow request is
in hand more often than others are: so of such deaths it takes five. Requests may wait for a storage beside each other:
a death over several says nothing of any. Only then, or once one is guilty of a death, requests are taken one at a time,
until those that come again were answered. The file is written with pwrite(2), so the note survives the
process. Notes name a request by its number in the connection, which stays the same each time it is sent.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Final

import msgspec
import pyfuse3
import trio

from mount.handshake import OUT_HEADER
from mount.repeated import PATIENCE
from mount.resend import UNIQUE_RESEND, Request
from mount.reserved import open_reserved

log = logging.getLogger(__name__)

NAME: Final = "suspect"
ENOUGH: Final = 4  # weight of the deaths that are noted; the first is not
CRASH: Final = 2
KILL: Final = 1
_SIZE: Final = 4096
_OPCODES: Final = {  # include/uapi/linux/fuse.h
    "lookup": (1,),
    "getattr": (3,),
    "setattr": (4,),
    "readlink": (5,),
    "symlink": (6,),
    "mknod": (8,),
    "mkdir": (9,),
    "unlink": (10,),
    "rmdir": (11,),
    "rename": (12, 45),
    "link": (13,),
    "open": (14,),
    "read": (15,),
    "write": (16,),
    "statfs": (17,),
    "release": (18,),
    "fsync": (20,),
    "setxattr": (21,),
    "getxattr": (22,),
    "listxattr": (23,),
    "removexattr": (24,),
    "opendir": (27,),
    "readdir": (28, 44),
    "fsyncdir": (30,),
    "access": (34,),
    "create": (35,),
}


_Known = tuple[str, int, int]
"""A request as its handler knows it: handler, thread and inode; thread 0 where pyfuse3 does not tell it."""


class Notes(msgspec.Struct):
    begun: _Known | None = None
    """The request in hand, if it is the only one."""
    apart: bool = False
    """Does the next worker take them one at a time? Several were in hand, or one is guilty of a death."""
    deaths: dict[int, int] = {}
    """By a request's number: how much they weigh."""


class Suspicion:
    def __init__(self, directory: Path, adopted: bool) -> None:
        """`adopted`: requests of this mount may have killed a worker before."""
        self._fd = open_reserved(directory / NAME, _SIZE, cleared=not adopted)
        stored = os.pread(self._fd, _SIZE, 0).rstrip(b"\0")
        self._notes = msgspec.json.decode(stored, type=Notes) if stored else Notes()
        self._apart = False
        self._turn: AbstractAsyncContextManager[None] = contextlib.nullcontext()
        self._expected: list[Request] = []
        self._left = 0
        self._in_hand: list[_Known] = []
        self._unanswered = 0  # of those that came again: in hand, or waiting for their turn
        self._last = 0.0
        self._before: dict[str, Callable[..., Any] | None] = {}
        self._noting: dict[str, Callable[..., Any]] = {}
        self._lifted = trio.Event()

    def _write(self) -> None:
        os.pwrite(self._fd, msgspec.json.encode(self._notes).ljust(_SIZE, b"\0"), 0)

    def convict(self, unanswered: Iterable[Request], *, crashed: bool) -> list[Request]:
        """Those of the unanswered requests that have killed too many workers; the others' deaths are counted.

        `crashed`: the last worker died by its own doing, for all that is known.
        """
        begun, deaths = self._notes.begun, self._notes.deaths
        convicted = []
        counted: dict[int, int] = {}
        for request in unanswered:
            guilty = begun is not None and _is(request, begun)
            weight = deaths.get(request.unique, 0) + guilty * (CRASH if crashed else KILL)
            if weight >= ENOUGH:
                convicted.append(request)
            elif weight:
                counted[request.unique] = weight
        self._apart = self._notes.apart or bool(counted)
        self._notes = Notes(None, self._apart, counted)
        self._write()
        return convicted

    def watch(self, operations: pyfuse3.Operations, requests: Iterable[Request]) -> None:
        """Note what is begun until each of these, which come again, was answered."""
        self._operations = operations
        known = {opcode for opcodes in _OPCODES.values() for opcode in opcodes}
        self._expected = [request for request in requests if request.opcode in known]
        # They come first. One may be asked of two handlers, and one that is new comes among them.
        self._left = 2 * len(self._expected) + 1
        self._last = trio.current_time()
        if self._apart:
            self._turn = trio.Lock()
        for name in _OPCODES:
            self._before[name] = operations.__dict__.get(name)
            self._noting[name] = noting = self._noted(name, getattr(operations, name))
            setattr(operations, name, noting)

    def _noted(self, name: str, handler: Callable[..., Any]) -> Callable[..., Any]:
        async def noting(*arguments: Any) -> Any:
            pids = [argument.pid for argument in arguments if isinstance(argument, pyfuse3.RequestContext)]
            # The kernel sends a link to the directory in which it shall be; pyfuse3 has that second.
            inode = arguments[1] if name == "link" else arguments[0] if isinstance(arguments[0], int) else 0
            known = name, pids[0] if pids else 0, inode
            comes_again = self._comes_again(known)
            self._unanswered += comes_again
            try:
                async with self._turn:
                    answer = await self._carried_out(known, handler, arguments)
            except Exception:
                self._answered(comes_again)
                raise
            self._answered(comes_again)  # one that is cancelled is not: it comes again, to the next worker
            return answer

        return noting

    def _comes_again(self, known: _Known) -> bool:
        again = next((request for request in self._expected if _is(request, known)), None)
        if again is not None:
            self._expected.remove(again)
        self._left -= 1
        if self._left == 0:
            self._expected.clear()  # what has not come by now never will: its program was killed meanwhile
        return again is not None

    async def _carried_out(self, known: _Known, handler: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        self._in_hand.append(known)
        self._note()
        try:
            return await handler(*arguments)
        finally:
            self._in_hand.remove(known)
            self._note()

    def _answered(self, came_again: bool) -> None:
        self._unanswered -= came_again
        self._last = trio.current_time()
        if not (self._expected or self._unanswered or self._lifted.is_set()):
            self._lift()

    def _note(self) -> None:
        if not self._lifted.is_set():
            self._notes.begun = self._in_hand[0] if len(self._in_hand) == 1 else None
            self._notes.apart = self._apart or len(self._in_hand) > 1
            self._write()

    async def settle(self) -> None:
        """Until each was answered, or nothing comes any more for so long that none of them will."""
        while self._unanswered or trio.current_time() < self._last + PATIENCE:
            with trio.move_on_after(PATIENCE):
                await self._lifted.wait()
                return
        self._lift()

    def _lift(self) -> None:
        for name, noting in self._noting.items():
            if self._operations.__dict__.get(name) is not noting:
                continue
            if (before := self._before[name]) is None:
                delattr(self._operations, name)
            else:
                setattr(self._operations, name, before)
        self._notes = Notes()
        self._write()
        self._lifted.set()

    def close(self) -> None:
        os.close(self._fd)


def _is(request: Request, begun: _Known) -> bool:
    name, pid, inode = begun
    return request.opcode in _OPCODES[name] and pid in (0, request.pid) and inode in (0, request.nodeid)


def refuse(fd: int, request: Request, session: str) -> None:
    """Answer in the place of the workers that it killed. It must have been read, and not been asked for again yet."""
    log.error(
        "%s: a request (FUSE opcode %d) of thread %d for inode %d has killed worker after worker; it is answered EIO",
        session,
        request.opcode,
        request.pid,
        request.nodeid,
    )
    os.write(fd, OUT_HEADER.pack(OUT_HEADER.size, -errno.EIO, request.unique | UNIQUE_RESEND))
