"""The tree of a session as callers change it: names, attributes and xattrs, each change journaled before it is made.

Every call here is synchronous: between the check, the record in the journal and the change nothing is awaited, so each
is atomic without a lock. `Session` adds the bytes.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import msgspec

from vfs import failpoints, rules
from vfs.errors import error
from vfs.inode import Dentry, Inode
from vfs.journal import Journal
from vfs.namespace import Namespace
from vfs.policy import Policy
from vfs.quota import Quota, SoftLimit
from vfs.records import Make, Record

__all__ = ["KERNEL", "SEGMENT_BYTES", "UNNAMED", "Caller", "Observer", "Ownership", "Tree"]

UNNAMED = b"mount-session-new-%d"  # the name, by number, of a file that is about to get its own
SEGMENT_BYTES = 4 << 20  # replay of a segment of this size takes about 0.3 s


class Caller(Protocol):
    """Who asks: the thread, and the user that new inodes belong to."""

    @property
    def pid(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...


class _Kernel(msgspec.Struct, frozen=True):
    pid: int = 0
    uid: int = os.geteuid()
    gid: int = os.getegid()


KERNEL = _Kernel()
"""The caller for what no program asked for: this process itself."""


class Ownership(msgspec.Struct, frozen=True):
    """One user and group for all that is in the session, or None: as it is."""

    uid: int | None = None
    gid: int | None = None


class Observer(Protocol):
    """Told of every change after it was made, in order; must neither raise nor wait."""

    def committed(self, record: Record, inode: Inode | None) -> None: ...
    def written(self, inode: Inode) -> None: ...
    def released(self, inode: Inode) -> None: ...


class Tree(ABC):
    def __init__(self, session_id: str, namespace: Namespace, journal: Journal, policy: Policy) -> None:
        self.id = session_id
        self.namespace = namespace
        self.journal = journal
        self.observers: list[Observer] = []
        self.before_record: Callable[[Record], None] = lambda record: None
        """Told of each record before it is appended: `mount.inflight` notes where it is going to be."""
        self.actor: Caller = KERNEL  # who asks for the change that is being made
        self.foreign = False  # what is being committed was done by someone else, in the persistence
        self.on_soft_limit: Callable[[SoftLimit], None] = lambda passed: None
        self.invalidate: Callable[[list[tuple[int, bytes]], list[int]], None] = lambda names, inos: None
        """Told of (directory, name) and of inodes that someone else has changed: a mount tells the kernel."""
        self.requests: Callable[[], int] = lambda: 0
        """How many requests a mount has taken so far: who works beside them looks when there are none."""
        self.quota: Quota | None = None
        Tree.apply(self, policy)

    def apply(self, policy: Policy) -> None:
        """Put a policy in force: for every request from here on. What the kernel has cached is the caller's concern."""
        self.policy = policy
        self.read_only = policy.read_only
        self.owner = Ownership(policy.uid, policy.gid)
        before, self.quota = self.quota, None
        if Quota.needed(policy):
            self.quota = Quota(self.namespace, policy, lambda passed: self.on_soft_limit(passed))
            self.quota.follow(before)

    # ---- for the session that this tree is part of

    @abstractmethod
    def _segment_full(self) -> None:
        """The journal's segment has grown enough to become part of the image."""

    @abstractmethod
    def _let_go(self, inode: Inode | None) -> None:
        """An inode may have lost its last name."""

    # ---- records

    def _commit(self, record: Record, *, frees: bool = False) -> Inode | None:
        """The record into the journal, then into the namespace. `frees`: it makes room, whatever its kind does."""
        self.before_record(record)
        self.journal.append(record, frees=frees)
        inode = self._apply(record)
        failpoints.reach("record.applied")
        if self.journal.size > SEGMENT_BYTES:
            self._segment_full()
        return inode

    def commit_all(self, records: Sequence[Record]) -> None:
        """Records of one kind, that no request brings: all of them are in the journal, or none."""
        if not records:
            return
        self.journal.append(*records)
        for record in records:
            self._apply(record)
        if self.journal.size > SEGMENT_BYTES:
            self._segment_full()

    def _apply(self, record: Record) -> Inode | None:
        inode = self.namespace.apply(record)
        for observer in self.observers:
            observer.committed(record, inode)
        return inode

    def _writable(self) -> None:
        if self.read_only:
            raise error(errno.EROFS, self.id)

    # ---- names

    def lookup(self, parent: int, name: bytes) -> Inode:
        """The inode that `name` means in the directory; ENOENT, ENOTDIR, ENAMETOOLONG."""
        return rules.child(self.namespace, parent, name)

    def getattr(self, ino: int) -> Inode:
        return self.namespace.inode(ino)

    def mknod(
        self, parent: int, name: bytes, mode: int, caller: Caller, *, rdev: int = 0, target: bytes = b""
    ) -> Inode:
        """A new inode of the kind in `mode`: mknod(2), mkdir(2), symlink(2), or open(2) with O_CREAT."""
        self._writable()
        self.actor = caller
        uid = caller.uid if self.owner.uid is None else self.owner.uid
        gid = caller.gid if self.owner.gid is None else self.owner.gid
        if self.quota is not None:
            self.quota.admit_inode(name)
        if self.policy.umask and not stat.S_ISLNK(mode):
            mode &= ~self.policy.umask
        record = rules.make(
            self.namespace, parent, name, mode, uid, gid, time.time_ns(), pid=caller.pid, rdev=rdev, target=target
        )
        return self._made(record)

    def _made(self, record: Make) -> Inode:
        inode = self._commit(record)
        assert inode is not None
        return inode

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Inode:
        return self.mknod(parent, name, stat.S_IFDIR | stat.S_IMODE(mode), caller)

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Inode:
        return self.mknod(parent, name, stat.S_IFLNK | 0o777, caller, target=target)

    def readlink(self, ino: int) -> bytes:
        inode = self.namespace.inode(ino)
        if not inode.is_symlink:
            raise error(errno.EINVAL, f"inode {ino}")
        return inode.target

    def link(self, ino: int, parent: int, name: bytes, caller: Caller) -> Inode:
        self._writable()
        self.actor = caller
        self._commit(rules.link(self.namespace, ino, parent, name, time.time_ns(), pid=caller.pid))
        return self.namespace.inode(ino)

    def publish(self, ino: int, parent: int, name: bytes, caller: Caller) -> None:
        """A file that has no name gets this one, in one step, in the place of the file that had it."""
        self._writable()
        self.actor = caller
        directory = self.namespace.directory(parent)
        assert directory.entries is not None
        if name not in directory.entries:
            self._commit(rules.link(self.namespace, ino, parent, name, time.time_ns(), pid=caller.pid, unnamed=True))
            return
        aside = UNNAMED % ino
        self._commit(rules.link(self.namespace, ino, parent, aside, time.time_ns(), pid=caller.pid, unnamed=True))
        try:
            self.rename(parent, aside, parent, name, 0, caller)
        except OSError:
            self.unlink(parent, aside, caller)
            raise

    def unlink(self, parent: int, name: bytes, caller: Caller) -> None:
        """The name goes; the file stays readable and writable for those who have it open."""
        self._writable()
        self.actor = caller
        inode = self._commit(rules.unlink(self.namespace, parent, name, time.time_ns(), pid=caller.pid))
        self._let_go(inode)

    def rmdir(self, parent: int, name: bytes, caller: Caller) -> None:
        self._writable()
        self.actor = caller
        inode = self._commit(rules.rmdir(self.namespace, parent, name, time.time_ns(), pid=caller.pid))
        self._let_go(inode)

    def rename(
        self, old_parent: int, old_name: bytes, new_parent: int, new_name: bytes, flags: int, caller: Caller
    ) -> None:
        """rename(2); `flags` as for renameat2(2): RENAME_NOREPLACE, RENAME_EXCHANGE."""
        self._writable()
        self.actor = caller
        record = rules.rename(
            self.namespace, old_parent, old_name, new_parent, new_name, flags, time.time_ns(), pid=caller.pid
        )
        if record is None:
            return
        directory = self.namespace.directory(new_parent)
        assert directory.entries is not None
        replaced = directory.entries.get(new_name)
        before = replaced.inode if replaced else None
        self._commit(record)
        self._let_go(before)

    def readdir(self, ino: int, after: int) -> Iterator[Dentry]:
        """Entries in the order of their cookies, from the first above `after`; `.` and `..` are not among them."""
        return self.namespace.list(self.namespace.directory(ino), after)

    # ---- extended attributes

    def setxattr(self, ino: int, name: bytes, value: bytes, caller: Caller) -> None:
        self._writable()
        self.actor = caller
        inode = self.namespace.inode(ino)
        self._commit(rules.setxattr(inode, name, value, time.time_ns(), pid=caller.pid))

    def getxattr(self, ino: int, name: bytes) -> bytes:
        """ENODATA if there is none of that name."""
        xattrs = self.namespace.inode(ino).xattrs
        if xattrs is None or name not in xattrs:
            raise error(errno.ENODATA, name)
        return xattrs[name]

    def listxattr(self, ino: int) -> list[bytes]:
        return list(self.namespace.inode(ino).xattrs or ())

    def removexattr(self, ino: int, name: bytes, caller: Caller) -> None:
        self._writable()
        self.actor = caller
        self._commit(rules.removexattr(self.namespace.inode(ino), name, time.time_ns(), pid=caller.pid))
