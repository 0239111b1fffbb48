"""Repeated requests: those that an earlier worker carried out and did not answer are answered with what it did.

Stands before an `Operations` by instance attributes, only in a worker that took a live mount over and found such
requests, and only until each has come, or long enough has passed that it never will (its program was killed meanwhile).
"""

from __future__ import annotations

import errno
import logging
import os
from typing import Any, Final

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, RequestContext, SetattrFields

from mount.inflight import InFlight
from vfs.replay import Resent

log = logging.getLogger(__name__)

PATIENCE: Final = 60.0  # seconds; resent requests are at the head of the kernel's queue
_HANDLERS: Final = (
    "create",
    "mkdir",
    "mknod",
    "symlink",
    "link",
    "unlink",
    "rmdir",
    "rename",
    "setattr",
    "open",
    "setxattr",
    "getxattr",
    "removexattr",
)


class Repeated:
    def __init__(self, operations: pyfuse3.Operations, in_flight: InFlight, done: dict[Resent, list[int]]) -> None:
        self._operations = operations
        self._in_flight = in_flight
        self._done = done
        self.answered = 0
        self._inner: dict[str, Any] = {name: getattr(operations, name) for name in (*_HANDLERS, "lookup", "getattr")}
        for name in _HANDLERS:
            setattr(operations, name, getattr(self, name))

    async def leave_in_time(self) -> None:
        """Called when none of them waits for its turn any more; one may still be asked of a second handler."""
        await trio.sleep(PATIENCE)
        self._leave()

    def _leave(self) -> None:
        for slot in (slot for slots in self._done.values() for slot in slots):
            self._in_flight.drop(slot)
        self._done = {}
        for name in _HANDLERS:
            if self._operations.__dict__.get(name) == getattr(self, name):
                delattr(self._operations, name)

    def _take(self, request: Resent) -> bool:
        """Was this done before? Each record says so once."""
        slots = self._done.get(request)
        if not slots:
            return False
        self._in_flight.keep(slots.pop())
        self.answered += 1
        log.info("%s of thread %d had been carried out already; answered", request.kind, request.pid)
        if not slots:
            del self._done[request]
            if not self._done:
                self._leave()
        return True

    async def _found(self, parent: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        entry: EntryAttributes = await self._inner["lookup"](parent, name, ctx)
        return entry

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        if self._take(Resent(ctx.pid, "create", parent_inode, name)):
            flags &= ~(os.O_EXCL | os.O_TRUNC)  # it is there, and empty: it opens what it made
        answer: tuple[FileInfo, EntryAttributes] = await self._inner["create"](parent_inode, name, mode, flags, ctx)
        return answer

    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext) -> EntryAttributes:
        if self._take(Resent(ctx.pid, "mkdir", parent_inode, name)):
            return await self._found(parent_inode, name, ctx)
        entry: EntryAttributes = await self._inner["mkdir"](parent_inode, name, mode, ctx)
        return entry

    async def mknod(self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext) -> EntryAttributes:
        if self._take(Resent(ctx.pid, "mknod", parent_inode, name)):
            return await self._found(parent_inode, name, ctx)
        entry: EntryAttributes = await self._inner["mknod"](parent_inode, name, mode, rdev, ctx)
        return entry

    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext) -> EntryAttributes:
        if self._take(Resent(ctx.pid, "symlink", parent_inode, name)):
            return await self._found(parent_inode, name, ctx)
        entry: EntryAttributes = await self._inner["symlink"](parent_inode, name, target, ctx)
        return entry

    async def link(self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext) -> EntryAttributes:
        if self._take(Resent(ctx.pid, "link", inode, to_inode=new_parent_inode, to_name=new_name)):
            return await self._found(new_parent_inode, new_name, ctx)
        entry: EntryAttributes = await self._inner["link"](inode, new_parent_inode, new_name, ctx)
        return entry

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        if not self._take(Resent(ctx.pid, "unlink", parent_inode, name)):
            await self._inner["unlink"](parent_inode, name, ctx)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        if not self._take(Resent(ctx.pid, "rmdir", parent_inode, name)):
            await self._inner["rmdir"](parent_inode, name, ctx)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        exchange = bool(flags & pyfuse3.RENAME_EXCHANGE)
        request = Resent(ctx.pid, "rename", parent_inode_old, name_old, parent_inode_new, name_new, exchange)
        if not self._take(request):
            await self._inner["rename"](parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx)

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        entry: EntryAttributes
        if self._take(Resent(ctx.pid, "setattr", inode)):
            entry = await self._inner["getattr"](inode, ctx)
        else:
            entry = await self._inner["setattr"](inode, attr, fields, fh, ctx)
        return entry

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        if flags & os.O_TRUNC and self._take(Resent(ctx.pid, "open", inode)):
            flags &= ~os.O_TRUNC
        opened: FileInfo = await self._inner["open"](inode, flags, ctx)
        return opened

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        requests = [Resent(ctx.pid, "setxattr", inode, name, exclusive=exclusive) for exclusive in (False, True)]
        if not any(self._take(request) for request in requests):
            await self._inner["setxattr"](inode, name, value, ctx)

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        """By this pyfuse3 looks whether an attribute that must be new is there; the one that the request itself made is
        not meant. The thread waits for that request, so it asks for nothing else."""
        if Resent(ctx.pid, "setxattr", inode, name, exclusive=True) in self._done:
            raise pyfuse3.FUSEError(errno.ENODATA)
        value: bytes = await self._inner["getxattr"](inode, name, ctx)
        return value

    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        if not self._take(Resent(ctx.pid, "removexattr", inode, name)):
            await self._inner["removexattr"](inode, name, ctx)
