"""Resend: what a dead worker had taken from the kernel and not answered is had again, and known by name.

FUSE_NOTIFY_RESEND (Linux 6.9) puts every unanswered request back at the head of the kernel's queue, its `unique` marked
by the top bit. A successor asks for it before libfuse gets the descriptor, reads the marked requests itself to see what
they are, and asks once more, so that libfuse reads them again. FORGETs come in between; they have no answer and would
be lost, so they are collected.

Layouts and numbers: include/uapi/linux/fuse.h.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from mount.handshake import HEADER, OUT_HEADER, READ_BUFFER
from vfs import failpoints
from vfs.replay import Resent

FUSE_NOTIFY_INVAL_INODE: Final = 2
FUSE_NOTIFY_RESEND: Final = 7
_INVAL_INODE: Final = struct.Struct("=Qqq")  # inode, offset (negative: attributes only), length
UNIQUE_RESEND: Final = 1 << 63
RENAME_EXCHANGE: Final = 2
_ENDED: Final = (errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN)

FORGET, SETATTR, SYMLINK, MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN = 2, 4, 6, 8, 9, 10, 11, 12, 13, 14
SETXATTR, REMOVEXATTR, CREATE, INTERRUPT, BATCH_FORGET, RENAME2 = 21, 24, 35, 36, 42, 45


class Request(NamedTuple):
    """One request as the kernel sends it; `unique` is its number in this connection, without the mark."""

    unique: int
    opcode: int
    nodeid: int
    pid: int
    body: bytes


class Unanswered(NamedTuple):
    requests: list[Request]  # which a worker before had taken
    forgotten: list[tuple[int, int]]  # (inode, count)


def ask(fd: int) -> bool:
    """Have the kernel send again what was not answered; False where the connection is at its end."""
    try:
        os.write(fd, OUT_HEADER.pack(OUT_HEADER.size, FUSE_NOTIFY_RESEND, 0))
    except OSError as error:
        if error.errno in (errno.ENOENT, *_ENDED):
            return False
        raise
    return True


def recall(fd: int, refuse: Callable[[list[Request]], list[Request]]) -> Unanswered:
    """All that is unanswered on this connection; it is in the kernel's queue again, and nothing else is lost.

    `refuse` is given the requests and answers those among them that it returns; they do not come again.
    """
    found = Unanswered([], [])
    if not ask(fd):
        return found
    # The flag is the open file's, so every process sees it; but only one reads, and that is we.
    os.set_blocking(fd, False)
    try:
        while _take(fd, found):
            pass
    finally:
        os.set_blocking(fd, True)
    for request in refuse(found.requests):
        found.requests.remove(request)
    failpoints.reach("takeover.recalled")
    ask(fd)
    return found


def is_held(fd: int, inode: int) -> bool:
    """Does the kernel know the inode? One that has lost its last name, and that it does not know, it cannot ask for
    again. The question makes it drop the inode's attributes, which it then asks for anew."""
    size = OUT_HEADER.size + _INVAL_INODE.size
    try:
        os.write(fd, OUT_HEADER.pack(size, FUSE_NOTIFY_INVAL_INODE, 0) + _INVAL_INODE.pack(inode, -1, 0))
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno not in _ENDED:
            raise
    return True


def is_asked(fd: int) -> bool:
    """Does anyone wait for an answer? For a session that sleeps, so nothing has been taken and not been answered.

    FORGETs, which the kernel sends for many sessions at once where memory is short, are read and let go: which inodes
    it holds, the next worker asks. Any other request that is read here, it has sent again.
    """
    os.set_blocking(fd, False)
    try:
        while True:
            raw = os.read(fd, READ_BUFFER)
            if HEADER.unpack_from(raw)[1] not in (FORGET, BATCH_FORGET):
                return True
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (*_ENDED, errno.EINTR, errno.ENOENT):  # a worker finds out what is the matter
            return True
        raise
    finally:
        os.set_blocking(fd, True)


def _take(fd: int, found: Unanswered) -> bool:
    """Read one request; False when the next is none that was sent before."""
    try:
        raw = os.read(fd, READ_BUFFER)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return False
        if error.errno in (errno.EINTR, errno.ENOENT):  # ENOENT: it was interrupted meanwhile; there may be another
            return True
        if error.errno in _ENDED:
            return False
        raise
    _, opcode, unique, nodeid, _, _, pid, _, _ = HEADER.unpack_from(raw)
    body = raw[HEADER.size :]
    if opcode == FORGET:
        found.forgotten.append((nodeid, struct.unpack_from("=Q", body)[0]))
    elif opcode == BATCH_FORGET:
        (count,) = struct.unpack_from("=I", body)
        found.forgotten.extend(struct.iter_unpack("=QQ", body[8 : 8 + 16 * count]))
    elif opcode != INTERRUPT:  # what it interrupts goes on: none of our handlers stops half-way
        if not unique & UNIQUE_RESEND:
            return False  # it comes again with them
        found.requests.append(Request(unique & ~UNIQUE_RESEND, opcode, nodeid, pid, body))
    return True


def describe(request: Request) -> Resent | None:
    """The request as `vfs.replay` knows it; None for one that may be done twice."""
    pid, inode, body = request.pid, request.nodeid, request.body

    def names(skip: int) -> list[bytes]:
        return body[skip:].split(b"\0")

    match request.opcode:
        case n if n == CREATE:
            return Resent(pid, "create", inode, names(16)[0])
        case n if n == MKDIR:
            return Resent(pid, "mkdir", inode, names(8)[0])
        case n if n == MKNOD:
            return Resent(pid, "mknod", inode, names(16)[0])
        case n if n == SYMLINK:
            return Resent(pid, "symlink", inode, names(0)[0])
        case n if n == LINK:
            (old,) = struct.unpack_from("=Q", body)
            return Resent(pid, "link", old, to_inode=inode, to_name=names(8)[0])
        case n if n == UNLINK:
            return Resent(pid, "unlink", inode, names(0)[0])
        case n if n == RMDIR:
            return Resent(pid, "rmdir", inode, names(0)[0])
        case n if n == RENAME:
            (target,) = struct.unpack_from("=Q", body)
            old_name, new_name, *_ = names(8)
            return Resent(pid, "rename", inode, old_name, target, new_name)
        case n if n == RENAME2:
            target, flags = struct.unpack_from("=QI", body)
            old_name, new_name, *_ = names(16)
            return Resent(pid, "rename", inode, old_name, target, new_name, bool(flags & RENAME_EXCHANGE))
        case n if n == SETATTR:
            return Resent(pid, "setattr", inode)
        case n if n == OPEN and struct.unpack_from("=I", body)[0] & os.O_TRUNC:
            return Resent(pid, "open", inode)
        case n if n == SETXATTR:
            (flags,) = struct.unpack_from("=I", body, 4)
            return Resent(pid, "setxattr", inode, names(8)[0], exclusive=bool(flags & os.XATTR_CREATE))
        case n if n == REMOVEXATTR:
            return Resent(pid, "removexattr", inode, names(0)[0])
        case _:
            return None
