"""Suspicion: which of the requests that come again kills the worker, so that it is refused and the session goes on.

A worker that took over after a death takes the requests that come again one at a time, and notes each in the file
`suspect` before it begins and after it ends. If it dies as well, the one that had begun is guilty; the third death that
is due to one request (the first is not noted: nothing was suspected then) is its last: the kernel is told EIO in its
place. A worker that SIGKILL ended may have met somebody who kills workers rather than a request that does, and a slow
request is in hand more often than others are: so of such deaths it takes five. The file is written with pwrite(2), so
the note survives the process. Notes name a request by its number in the connection, which stays the same each time it
is sent.
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


class Notes(msgspec.Struct):
    begun: tuple[str, int, int] | None = None
    """Handler, thread and inode of the request in hand; thread 0 where pyfuse3 does not tell it."""
    deaths: dict[int, int] = {}
    """By a request's number: how much they weigh."""


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
        self._notes = Notes(None, counted)
        self._write()
        return convicted

    def watch(self, operations: pyfuse3.Operations, count: int) -> None:
        """The next `count` requests one at a time, each noted: all that come again, for they come first."""
        self._operations, self._left = operations, count
        for name in _OPCODES:
            self._before[name] = getattr(operations, name)
            setattr(operations, name, self._noted(name, self._before[name]))

    def _noted(self, name: str, handler: Callable[..., Any]) -> Callable[..., Any]:
        async def alone(*arguments: Any) -> Any:
            async with self._alone:
                pids = [argument.pid for argument in arguments if isinstance(argument, pyfuse3.RequestContext)]
                # The kernel sends a link to the directory in which it shall be; pyfuse3 has that second.
                inode = arguments[1] if name == "link" else arguments[0] if isinstance(arguments[0], int) else 0
                self._notes.begun = (name, pids[0] if pids else 0, inode)
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


def _is(request: Request, begun: tuple[str, int, int]) -> bool:
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
