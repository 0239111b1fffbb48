"""The FUSE handshake: INIT is answered once for a mount, and replayed to every worker that serves it.

The kernel sends FUSE_INIT once, and libfuse insists on seeing it. So the supervisor answers it (`answer`) and keeps an
`Agreement`; each worker gets that agreement as an INIT request of its own through a socket (`mount.device`). The
replayed INIT offers exactly what the kernel was told, no more, so libfuse cannot come to another conclusion.

Layouts and numbers: include/uapi/linux/fuse.h. Neither pyfuse3 nor libfuse is needed here; the supervisor imports this.
"""

from __future__ import annotations

import errno
import os
import select
import struct
from typing import Final, NamedTuple

FUSE_INIT: Final = 26
MAJOR: Final = 7
# What libfuse 3.14 to 3.16 speak. A newer kernel then leaves out what came later; an older one says less, and counts.
MINOR: Final = 38
MAX_WRITE: Final = 1 << 20
MAX_PAGES: Final = 256
# Asynchronous requests (read-ahead, direct I/O) that may be with us at once; the kernel's own default, 12, is three
# readers' read-ahead. Ordinary users are held to the kernel's max_user_bgreq.
MAX_BACKGROUND: Final = 64
CONGESTION: Final = 48
HEADER: Final = struct.Struct("=IIQQIIIHH")  # fuse_in_header: len opcode unique nodeid uid gid pid extlen padding
INIT_IN: Final = struct.Struct("=IIIII44x")  # major minor max_readahead flags flags2
INIT_OUT: Final = struct.Struct("=IIIIHHIIHHIIH22x")
OUT_HEADER: Final = struct.Struct("=IiQ")  # len error unique
READ_BUFFER: Final = MAX_WRITE + 4096

ASYNC_READ = 1 << 0
ATOMIC_O_TRUNC = 1 << 3
BIG_WRITES = 1 << 5
DO_READDIRPLUS = 1 << 13
ASYNC_DIO = 1 << 15
PARALLEL_DIROPS = 1 << 18
MAX_PAGES_FLAG = 1 << 22
CACHE_SYMLINKS = 1 << 23
EXPLICIT_INVAL_DATA = 1 << 25
INIT_EXT = 1 << 30
HAS_RESEND = 1 << 39

# What we ask for, and, as important, what we do not:
# - no POSIX_LOCKS, no FLOCK_LOCKS: pyfuse3 has no handlers; the kernel's own locks hold among all containers on one
#   mount
# - no WRITEBACK_CACHE: an acknowledged write must be in a backing file (rule 1)
# - no HANDLE_KILLPRIV: the kernel itself then clears set-id bits by SETATTR at write, truncate and chown; pyfuse3 does
#   not tell a handler who writes, so we could not
# - no AUTO_INVAL_DATA but EXPLICIT_INVAL_DATA: pages stay cached until we name them (rule 3), also when attributes
#   come back with an mtime that the kernel did not expect
# - no READDIRPLUS_AUTO: pyfuse3 has no plain readdir, so each listing must be a READDIRPLUS
# - no DONT_MASK: the kernel applies the umask
# - no NO_OPEN, NO_OPENDIR: open answers O_TRUNC, and whether pages are kept; opendir pins a listing
# - no ABORT_ERROR: an aborted connection then reads as ENODEV, which libfuse takes as the end and not as a failure
# - no ALLOW_IDMAP: most requests would then come without a uid
WANTED: Final = (
    ASYNC_READ
    | ATOMIC_O_TRUNC
    | BIG_WRITES
    | DO_READDIRPLUS
    | ASYNC_DIO
    | PARALLEL_DIROPS
    | MAX_PAGES_FLAG
    | CACHE_SYMLINKS
    | EXPLICIT_INVAL_DATA
    | INIT_EXT
    | HAS_RESEND
)
REQUIRED: Final = DO_READDIRPLUS | BIG_WRITES


class Agreement(NamedTuple):
    """What the kernel was told: protocol minor, read-ahead in bytes, flags (flags2 in the upper half)."""

    minor: int
    max_readahead: int
    flags: int

    @property
    def can_resend(self) -> bool:
        """Does the kernel send unanswered requests again when asked (Linux 6.9 or newer)?"""
        return bool(self.flags & HAS_RESEND)

    def request(self) -> bytes:
        """The INIT request from which libfuse will conclude this very agreement."""
        body = INIT_IN.pack(MAJOR, self.minor, self.max_readahead, self.flags & 0xFFFFFFFF, self.flags >> 32)
        return HEADER.pack(HEADER.size + len(body), FUSE_INIT, 1, 0, 0, 0, 0, 0, 0) + body

    def check(self, reply: bytes) -> None:
        """Raise unless libfuse's answer to `request` says nothing that the kernel was not told."""
        _, error, _ = OUT_HEADER.unpack_from(reply)
        if error:
            raise OSError(-error, f"libfuse refused the replayed INIT: {os.strerror(-error)}")
        _, _, readahead, low, _, _, max_write, *_, high, _, _ = INIT_OUT.unpack_from(reply, OUT_HEADER.size)
        flags = low | high << 32
        if flags & ~self.flags or max_write != MAX_WRITE or readahead > self.max_readahead:
            raise OSError(
                errno.EPROTO,
                f"libfuse concluded flags {flags:#x}, max_write {max_write}, read-ahead {readahead}; "
                f"the kernel was told {self.flags:#x}, {MAX_WRITE}, {self.max_readahead}",
            )


def answer(fd: int, *, timeout: float = 10.0, wanted: int = WANTED) -> Agreement:
    """Read FUSE_INIT from a freshly mounted descriptor, answer it, and return what was agreed."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(timeout * 1000):
        raise TimeoutError(errno.ETIMEDOUT, "the kernel sent no FUSE_INIT")
    request = os.read(fd, READ_BUFFER)
    _, opcode, unique, *_ = HEADER.unpack_from(request)
    if opcode != FUSE_INIT:
        raise OSError(errno.EPROTO, f"expected FUSE_INIT, the kernel sent opcode {opcode}")
    agreed, reply = negotiate(request[HEADER.size :], wanted)
    os.write(fd, OUT_HEADER.pack(OUT_HEADER.size + len(reply), 0, unique) + reply)
    return agreed


def negotiate(offer: bytes, wanted: int = WANTED) -> tuple[Agreement, bytes]:
    """The kernel's fuse_init_in -> what is agreed, and the fuse_init_out that says so."""
    offer = offer.ljust(INIT_IN.size, b"\0")  # shorter before 7.36
    major, minor, readahead, low, high = INIT_IN.unpack_from(offer)
    offered = low | (high << 32 if low & INIT_EXT else 0)
    if major != MAJOR or REQUIRED & ~offered or minor < 23:
        raise OSError(errno.EPROTO, f"the kernel's FUSE {major}.{minor} is too old; Linux 4.20 or newer is needed")
    agreed = Agreement(min(minor, MINOR), readahead, offered & wanted)
    reply = INIT_OUT.pack(
        MAJOR,
        agreed.minor,
        agreed.max_readahead,
        agreed.flags & 0xFFFFFFFF,
        MAX_BACKGROUND,
        CONGESTION,
        MAX_WRITE,
        1,  # time granularity in ns
        MAX_PAGES,
        0,
        agreed.flags >> 32,
        0,
        0,
    )
    return agreed, reply
