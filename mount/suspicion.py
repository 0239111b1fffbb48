"""Suspicion: which of the requests that come again kills the worker, so that it is refused and the session goes on.

A worker that took over after a death takes the requests that come again one at a time, and notes each in the file
`suspect` before it begins and after it ends. If it dies as well, the one that had begun is guilty; the third death that
is due to one request (the first is not noted: nothing was suspected then) is its last: the kernel is told EIO in its
place. The file is written with pwrite(2), so the note survives the process. Notes name a request by its number in the
connection, which stays the same each time it is sent.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

import msgspec
import pyfuse3
import trio

from mount.handshake import OUT_HEADER
from mount.resend import UNIQUE_RESEND, Request
from mount.reserved import open_reserved

log = logging.getLogger(__name__)

NAME: Final = "suspect"
SECOND_NOTED: Final = 2  # with the death that began the suspicion: three
_SIZE: Final = 4096
_HANDLERS: Final = (
    *("lookup", "getattr", "setattr", "readlink", "mknod", "mkdir", "unlink", "rmdir", "symlink", "rename", "link"),
    *("open", "read", "write", "release", "fsync", "opendir", "readdir", "fsyncdir", "statfs", "setxattr", "getxattr"),
    *("listxattr", "removexattr", "access", "create"),
)


class Notes(msgspec.Struct):
    begun: tuple[int, int] | None = None
    """Thread and inode of the request in hand; thread 0 where pyfuse3 does not tell it."""
    deaths: dict[int, int] = {}
    """By a request's number."""


class Suspicion:
    def __init__(self, directory: Path, adopted: bool) -> None:
        """`adopted`: requests of this mount may have killed a worker before."""
        self._fd = open_reserved(directory / NAME, _SIZE, cleared=not adopted)
        stored = os.pread(self._fd, _SIZE, 0).rstrip(b"\0")
        self._notes = msgspec.json.decode(stored, type=Notes) if stored else Notes()
        self._alone = trio.Lock()
        self._before: dict[str, Callable[..., Any]] = {}

    def _write(self) -> None:
        os.pwrite(self._fd, msgspec.json.encode(self._notes).ljust(_SIZE, b"\0"), 0)

    def convict(self, unanswered: Iterable[Request]) -> list[Request]:
        """Those of the unanswered requests that have killed too many workers; the others' deaths are counted."""
        begun, deaths = self._notes.begun, self._notes.deaths
        convicted = []
        counted: dict[int, int] = {}
        for request in unanswered:
            count = deaths.get(request.unique, 0) + (begun is not None and _is(request, begun))
            if count >= SECOND_NOTED:
                convicted.append(request)
            elif count:
                counted[request.unique] = count
        self._notes = Notes(None, counted)
        self._write()
        return convicted

    def watch(self, operations: pyfuse3.Operations, count: int) -> None:
        """The next `count` requests one at a time, each noted: all that come again, for they come first."""
        self._operations, self._left = operations, count
        for name in _HANDLERS:
            self._before[name] = getattr(operations, name)
            setattr(operations, name, self._noted(name, self._before[name]))

    def _noted(self, name: str, handler: Callable[..., Any]) -> Callable[..., Any]:
        async def alone(*arguments: Any) -> Any:
            async with self._alone:
                pids = [argument.pid for argument in arguments if isinstance(argument, pyfuse3.RequestContext)]
                # The kernel sends a link to the directory in which it shall be; pyfuse3 has that second.
                inode = arguments[1] if name == "link" else arguments[0] if isinstance(arguments[0], int) else 0
                self._notes.begun = (pids[0] if pids else 0, inode)
                self._write()
                try:
                    return await handler(*arguments)
                finally:
                    self._notes.begun = None
                    self._write()
                    self._left -= 1
                    if self._left == 0:
                        self._lift()

        return alone

    def _lift(self) -> None:
        for name, before in self._before.items():
            setattr(self._operations, name, before)
        self._notes = Notes()
        self._write()

    def close(self) -> None:
        os.close(self._fd)


def _is(request: Request, begun: tuple[int, int]) -> bool:
    pid, inode = begun
    return pid in (0, request.pid) and inode in (0, request.nodeid)


def refuse(fd: int, request: Request, session: str) -> None:
    """Answer in the place of the workers that it killed. It must have been read, and not been asked for again yet."""
    log.error(
        "%s: a request (FUSE opcode %d) of thread %d for inode %d has killed three workers; it is answered EIO",
        session,
        request.opcode,
        request.pid,
        request.nodeid,
    )
    os.write(fd, OUT_HEADER.pack(OUT_HEADER.size, -errno.EIO, request.unique | UNIQUE_RESEND))
