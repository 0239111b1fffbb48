"""An open session as a Storage: for a program that knows the storage contract, and shall work on a live session.

What is written here is written to the session, with its promises: recorded when a call returns, brought to its
persistence behind it, `sync_to_remote` as the barrier. The session stays open and is its opener's to close.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import msgspec

from vfs.errors import error
from vfs.fileref import FileRef
from vfs.session import Session
from vfs.storage.base import Backend, FileRefs

__all__ = ["OpenSession"]


class OpenSession(Backend):
    """`mountpoint`: where the session is mounted too, if it is."""

    def __init__(self, session: Session, *, mountpoint: str | os.PathLike[str] | None = None) -> None:
        self.session = session
        self.mountpoint = None if mountpoint is None else Path(mountpoint)
        self._session_id = session.id

    async def init(self, session_id: str, **options: Any) -> Self:
        """It is bound to its session already; EINVAL for another one's id, or for options."""
        if session_id != self.session.id or options:
            raise error(errno.EINVAL, session_id, f"this is session {self.session.id}, open, and takes no options")
        return self

    async def write(self, path: str, content: bytes) -> FileRef:
        return await self.session.files.write(path, content)

    async def read(self, path: str) -> bytes:
        return await self.session.files.read(path)

    async def exists(self, path: str) -> bool:
        return await self.session.files.exists(path)

    async def delete(self, path: str) -> None:
        await self.session.files.delete(path)

    async def list(self) -> AsyncIterator[FileRef]:
        for ref in await self.session.files.list():
            yield ref

    async def local_path(self) -> Path:
        if self.mountpoint is None:
            raise error(errno.ENOTSUP, self.session.id, "the session is not mounted")
        return self.mountpoint

    async def sync_to_remote(self) -> FileRefs:
        """All that was done before is in the persistence; the files that were brought there since the last time. EIO,
        with the first reason, where something could not be."""
        receipt = await self.session.sync()
        if receipt.pending:
            reason = receipt.reasons[0]
            why = f"{receipt.pending} changes could not be persisted; the first: {reason.error}"
            raise error(errno.EIO, reason.path, why)
        files = self.session.files
        return [
            msgspec.structs.replace(await files.stat(path), version=stored.version)
            for path, stored in sorted(receipt.stored.items())
            if await files.exists(path)
        ]

    async def cleanup(self) -> None:
        """Remove all files of the session, and from its persistence too."""
        await self.session.files.clear()
        await self.sync_to_remote()
