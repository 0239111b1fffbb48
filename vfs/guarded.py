"""A session whose routes say what may be done where: read-only places, hidden names, and the borders between routes.

Where no route is read-only, no glob hides anything and there is one route, a request pays one comparison for this.
`PersistedSession` adds the persistences.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Coroutine, Iterator
from typing import Any

from vfs.errors import error
from vfs.inode import Dentry, Inode
from vfs.policy import Policy
from vfs.routes import Place, Routes
from vfs.session import Session
from vfs.tree import Caller

__all__ = ["Guarded"]


class Guarded(Session):
    def __init__(self, *arguments: Any, routes: Routes, **others: Any) -> None:
        super().__init__(*arguments, **others)
        self.routes = routes

    def apply(self, policy: Policy) -> None:
        """The session's own globs are the policy's from the first change of them on."""
        before = self.policy
        super().apply(policy)
        if (policy.hidden, policy.local_only) != (before.hidden, before.local_only):
            self.routes.govern(policy.hidden, policy.local_only)

    @property
    def unlisted(self) -> bool:
        return self.routes.unlisted

    # ---- where things are

    def at(self, path: bytes) -> Inode | None:
        """The inode at a path, if there is one."""
        inode = self.namespace.root
        if path:
            for name in path.split(b"/"):
                entries = inode.entries
                if entries is None:
                    return None
                dentry = entries.get(name)
                if dentry is None:
                    return None
                inode = dentry.inode
        return inode

    def paths(self, inode: Inode) -> Iterator[bytes]:
        """Every path of a file."""
        for dentry in list(inode.dentries):
            parent = self.namespace.path(dentry.parent)
            yield parent + b"/" + dentry.name if parent else dentry.name

    def place(self, path: bytes) -> Place:
        """What holds for the path of a file."""
        everywhere = self.routes.everywhere
        return self.routes.for_path(path.split(b"/")) if everywhere is None else everywhere

    def _directory(self, ino: int) -> Place:
        """What holds for a directory; ENOENT for one that was removed."""
        return self.routes.for_path(self.namespace.parts(self.namespace.directory(ino)), True)

    # ---- what may be done

    def _check(self, parent: int, name: bytes, is_directory: bool = False) -> Place:
        """A name in a directory may be changed: ENOENT where it is hidden, EROFS in a read-only route."""
        place = self.routes.step(self._directory(parent), name, is_directory)
        if place.hidden:
            raise error(errno.ENOENT, name)
        if place.read_only:
            raise error(errno.EROFS, name)
        return place

    def check_writable(self, ino: int) -> None:
        """EROFS unless a file may be changed: it may if any of its names may be; one without a name is nobody's."""
        if not self.routes.guards:
            return
        inode = self.namespace.inode(ino)
        if inode is self.namespace.root:
            places = [self.routes.root]
        else:
            places = [self.routes.step(self._directory(d.parent.ino), d.name, inode.is_dir) for d in inode.dentries]
        if places and all(place.read_only for place in places):
            raise error(errno.EROFS, f"inode {ino}")

    def _is_hidden(self, parent: int, name: bytes) -> bool:
        directory = self.namespace.inode(parent)
        dentry = (directory.entries or {}).get(name)
        if not directory.nlink or (dentry is None and name in (b".", b"..")):
            return False
        is_directory = dentry is not None and dentry.inode.is_dir
        return self.routes.step(self._directory(parent), name, is_directory).hidden

    def lookup(self, parent: int, name: bytes) -> Inode:
        inode = super().lookup(parent, name)
        if self.routes.guards and self._is_hidden(parent, name):
            raise error(errno.ENOENT, name)
        return inode

    def readdir(self, ino: int, after: int) -> Iterator[Dentry]:
        if not self.routes.guards or not self.namespace.inode(ino).nlink:
            yield from super().readdir(ino, after)
            return
        place = self._directory(ino)
        for dentry in super().readdir(ino, after):
            if not self.routes.step(place, dentry.name, dentry.inode.is_dir).hidden:
                yield dentry

    def mknod(
        self, parent: int, name: bytes, mode: int, caller: Caller, *, rdev: int = 0, target: bytes = b""
    ) -> Inode:
        if self.routes.guards:
            self._check(parent, name, mode & 0o170000 == 0o040000)
        return super().mknod(parent, name, mode, caller, rdev=rdev, target=target)

    def link(self, ino: int, parent: int, name: bytes, caller: Caller) -> Inode:
        if self.routes.guards:
            self._check(parent, name)
        return super().link(ino, parent, name, caller)

    def publish(self, ino: int, parent: int, name: bytes, caller: Caller) -> None:
        if self.routes.guards:
            self._check(parent, name)
        super().publish(ino, parent, name, caller)

    def unlink(self, parent: int, name: bytes, caller: Caller) -> None:
        if self.routes.guards:
            self._check(parent, name)
        super().unlink(parent, name, caller)

    def rmdir(self, parent: int, name: bytes, caller: Caller) -> None:
        if self.routes.guards:
            self._check(parent, name, True)
        super().rmdir(parent, name, caller)

    def rename(
        self, old_parent: int, old_name: bytes, new_parent: int, new_name: bytes, flags: int, caller: Caller
    ) -> None:
        """EXDEV for a directory that would change its route, or has another one inside: rename(2)'s callers copy."""
        if self.routes.guards:
            inode = super().lookup(old_parent, old_name)
            is_directory = inode.is_dir
            old = self._check(old_parent, old_name, is_directory)
            new = self._check(new_parent, new_name, is_directory)
            if is_directory and (old.route is not new.route or self._has_base(inode)):
                raise error(errno.EXDEV, old_name)
            other = self.namespace.directory(new_parent).entries or {}
            if (
                new_name in other
                and other[new_name].inode.is_dir
                and (old.route is not new.route or self._has_base(other[new_name].inode))
            ):
                raise error(errno.EXDEV, new_name)
        super().rename(old_parent, old_name, new_parent, new_name, flags, caller)

    def _has_base(self, inode: Inode) -> bool:
        path = self.namespace.path(inode)
        bases = [os.fsencode(route.base) for route in self.routes if route.base]
        return any(base == path or base.startswith(path + b"/") for base in bases)

    def open_file(self, ino: int, flags: int, caller: Caller) -> Coroutine[Any, Any, None]:
        if not self.routes.guards or flags & (os.O_ACCMODE | os.O_TRUNC) == os.O_RDONLY:
            return super().open_file(ino, flags, caller)  # each frame on the way would cost a request a microsecond
        return self._open_guarded(ino, flags, caller)

    async def _open_guarded(self, ino: int, flags: int, caller: Caller) -> None:
        self.check_writable(ino)
        await super().open_file(ino, flags, caller)

    def setxattr(self, ino: int, name: bytes, value: bytes, caller: Caller) -> None:
        self.check_writable(ino)
        super().setxattr(ino, name, value, caller)

    def removexattr(self, ino: int, name: bytes, caller: Caller) -> None:
        self.check_writable(ino)
        super().removexattr(ino, name, caller)
