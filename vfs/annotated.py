"""A session whose files carry what the persistence said about them: its metadata, visible as `user.*` xattrs.

What is shown, and told to the persistence at the next write, is the last answer for the file with the user's own
xattrs over it. A program may take away what was answered: the name with a digest of its value is noted in an xattr of
our own, and hidden for as long as the persistence says the same. What it says anew is shown again.

`PersistedSession` adds the rest.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from vfs.errors import error
from vfs.guarded import Guarded
from vfs.inode import Inode
from vfs.remote import Entry
from vfs.tree import Caller

if TYPE_CHECKING:
    from vfs.hydrate import Hydration

__all__ = ["Annotated"]

_USER = b"user."
_REMOVED = b"trusted.mount-session.removed"
"""The xattr that says what of the answers was taken away: msgpack, name -> digest of the value."""


class Annotated(Guarded):
    hydration: Hydration

    def metadata_of(self, inode: Inode, held: Entry | None) -> dict[str, str]:
        """What is kept with the file in the persistence: earlier answers, and the user's own xattrs over them."""
        metadata = {} if held is None else _left(held.metadata, inode)
        for name, value in (inode.xattrs or {}).items():
            if name.startswith(_USER):
                with contextlib.suppress(UnicodeDecodeError):
                    metadata[name[len(_USER) :].decode()] = value.decode()
        return metadata

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """With what the persistence said about the file, as `user.*`."""
        inode = self.namespace.inode(ino)
        if inode.xattrs is not None and name in inode.xattrs:
            return inode.xattrs[name]
        if name.startswith(_USER) and (value := self._answered(inode).get(os.fsdecode(name[len(_USER) :]))) is not None:
            return os.fsencode(value)
        raise error(errno.ENODATA, name)

    def listxattr(self, ino: int) -> list[bytes]:
        own = [name for name in super().listxattr(ino) if name != _REMOVED]
        answered = [_USER + os.fsencode(key) for key in self._answered(self.namespace.inode(ino))]
        return own + [name for name in answered if name not in own]

    def setxattr(self, ino: int, name: bytes, value: bytes, caller: Caller) -> None:
        super().setxattr(ino, name, value, caller)
        self._changed(ino, name)

    def removexattr(self, ino: int, name: bytes, caller: Caller) -> None:
        inode = self.namespace.inode(ino)
        key = os.fsdecode(name[len(_USER) :])
        answered = self._answered(inode).get(key) if name.startswith(_USER) else None
        if answered is not None:
            noted = msgspec.msgpack.encode({**_removed(inode), key.encode(errors="surrogateescape"): _digest(answered)})
            super().setxattr(ino, _REMOVED, noted, caller)
        if answered is None or name in (inode.xattrs or {}):
            super().removexattr(ino, name, caller)
        self._changed(ino, name)

    def _answered(self, inode: Inode) -> dict[str, str]:
        newest = self.namespace.remote.newest(inode.ino)
        return {} if newest is None else _left(newest[1].metadata, inode)

    def _changed(self, ino: int, name: bytes) -> None:
        """What is said of a file is written with it, so the file is written again; an image has it anyhow."""
        inode, newest = self.namespace.inode(ino), self.namespace.remote.newest(ino)
        if not name.startswith(_USER) or newest is None or ino in self.hydration.unsized:
            return
        persistence = self.place(newest[0]).persistence
        if persistence is None or not persistence.writes or "on_save_image" in persistence.can:
            return
        if inode.remote:
            self.hydration.back(inode)
        self._begin_write(inode)


def _left(metadata: Mapping[str, str] | None, inode: Inode) -> dict[str, str]:
    """Of an answer, what nobody has taken away since."""
    if not metadata:
        return {}
    removed = _removed(inode)
    if not removed:
        return dict(metadata)
    return {k: v for k, v in metadata.items() if removed.get(k.encode(errors="surrogateescape")) != _digest(v)}


def _removed(inode: Inode) -> dict[bytes, bytes]:
    noted = (inode.xattrs or {}).get(_REMOVED)
    try:
        return {} if noted is None else msgspec.msgpack.decode(noted, type=dict[bytes, bytes])
    except msgspec.DecodeError:  # root may set any xattr; this one means nothing then
        return {}


def _digest(value: str) -> bytes:
    return hashlib.sha256(value.encode(errors="surrogateescape")).digest()[:8]
