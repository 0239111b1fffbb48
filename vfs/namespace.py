"""The inode tree of a session.

It changes only by `apply(record)`, in the worker after the record is in the journal and in recovery by reading the
journal: the same code, so recovery cannot drift from what was promised. `apply` trusts the record; what may be done is
decided before, in `rules`. Nothing here waits, touches the disk, or knows the time.

An inode whose last name is gone stays as an orphan while the kernel may hold it, until `Reclaim`.
"""

from __future__ import annotations

import builtins
import errno
import stat
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Any

from vfs.errors import error
from vfs.inode import Dentry, Inode
from vfs.records import (
    Adopt,
    Begin,
    Dirty,
    Evicted,
    Hydrated,
    Link,
    Make,
    Reclaim,
    Record,
    Removed,
    Removexattr,
    Rename,
    Renewed,
    Setattr,
    Setxattr,
    Stored,
    Storing,
    Unlink,
)
from vfs.remote import Attempt, Entry, Remote

__all__ = ["ROOT", "Namespace"]

ROOT = 1  # FUSE_ROOT_ID, linux/fuse.h
_GONE = 64  # so many removed entries in a row are taken out of a listing: `rm -r` would pass them again for each part


class Namespace:
    def __init__(self, root: Inode | None = None) -> None:
        self.root = root or Inode(ROOT, stat.S_IFDIR | 0o755, 0, 0, 0)
        if not self.root.nlink:
            self.root.nlink = 2
        self.inodes: dict[int, Inode] = {ROOT: self.root}
        self.orphans: dict[int, Inode] = {}
        self.next_ino = ROOT + 1
        self.next_cookie = 1
        self.files = 0  # regular files, orphans among them
        self.bytes = 0  # the sizes of all files: what a quota counts
        self.remote = Remote()
        self._appliers: dict[type, Callable[[Any], Inode | None]] = {
            Make: self._make,
            Link: self._link,
            Unlink: self._unlink,
            Rename: self._rename,
            Setattr: self._setattr,
            Setxattr: self._setxattr,
            Removexattr: self._removexattr,
            Dirty: self._dirty,
            Reclaim: self._reclaim,
            Begin: self._begin,
            Storing: self._storing,
            Stored: self._stored,
            Removed: self._removed,
            Adopt: self._adopt,
            Renewed: self._renewed,
            Hydrated: self._hydrated,
            Evicted: self._evicted,
        }

    # ---- looking

    def inode(self, ino: int) -> Inode:
        """The inode of that number; ESTALE if there is none."""
        try:
            return self.inodes[ino]
        except KeyError:
            raise error(errno.ESTALE, f"inode {ino}") from None

    def directory(self, ino: int) -> Inode:
        """The directory of that number; ENOTDIR if it is something else."""
        inode = self.inode(ino)
        if inode.entries is None:
            raise error(errno.ENOTDIR, f"inode {ino}")
        return inode

    def path(self, inode: Inode) -> bytes:
        """One path from the root, without a leading `/`; b"" for the root. ENOENT for an orphan."""
        return b"/".join(self.parts(inode))

    def parts(self, inode: Inode) -> list[bytes]:
        parts: list[bytes] = []
        while inode is not self.root:
            if not inode.dentries:
                raise error(errno.ENOENT, f"inode {inode.ino} has no name")
            dentry = inode.dentries[0]
            parts.append(dentry.name)
            inode = dentry.parent
        parts.reverse()
        return parts

    def named(self) -> tuple[int, int]:
        """How many files have a name, and their bytes."""
        nameless = [inode.size for inode in self.orphans.values() if inode.is_file]
        return self.files - len(nameless), self.bytes - sum(nameless)

    def walk(self, path: bytes) -> Inode:
        """The inode at a path relative to the root; symlinks are not followed."""
        inode = self.root
        for name in path.split(b"/"):
            if not name:
                continue
            if inode.entries is None:
                raise error(errno.ENOTDIR, path)
            dentry = inode.entries.get(name)
            if dentry is None:
                raise error(errno.ENOENT, path)
            inode = dentry.inode
        return inode

    def list(self, directory: Inode, after: int) -> Iterator[Dentry]:
        """Entries with a cookie above `after`, in cookie order; entries made meanwhile come too, those removed do
        not."""
        assert directory.entries is not None
        entries = directory.entries
        listing = self._listing(directory)
        at = bisect_right(listing, after, key=_cookie)
        while True:
            if directory.listing is not listing:
                listing = self._listing(directory)
                at = bisect_right(listing, after, key=_cookie)
            gone = at
            while at < len(listing) and entries.get(listing[at].name) is not listing[at]:
                at += 1
            if at - gone > _GONE:
                listing = directory.listing = listing[:gone] + listing[at:]
                at = gone
            if at == len(listing):
                return
            after = listing[at].cookie
            yield listing[at]
            at += 1

    def _listing(self, directory: Inode) -> builtins.list[Dentry]:
        assert directory.entries is not None
        if directory.listing is None or len(directory.listing) > 2 * len(directory.entries) + _GONE:
            directory.listing = [*directory.entries.values()]
        return directory.listing

    # ---- changing

    def apply(self, record: Record) -> Inode | None:
        """Make it so. The result is the inode that a request of this form answers with, where it has one."""
        return self._appliers[type(record)](record)

    def resize(self, inode: Inode, size: int) -> None:
        """The file's size, in the sum of all sizes too."""
        self.bytes += size - inode.size
        inode.size = size

    def _insert(self, parent: Inode, name: bytes, inode: Inode) -> None:
        assert parent.entries is not None
        dentry = Dentry(parent, name, inode, self.next_cookie)
        self.next_cookie += 1
        if parent.listing is not None:
            self._listing(parent).append(dentry)  # without much that is gone, though nobody lists it again
        parent.entries[name] = dentry
        inode.dentries.append(dentry)
        if inode.entries is not None:
            parent.nlink += 1

    def _remove(self, parent: Inode, name: bytes) -> Inode:
        assert parent.entries is not None
        dentry = parent.entries.pop(name)
        inode = dentry.inode
        inode.dentries.remove(dentry)
        if inode.entries is not None:
            parent.nlink -= 1
        return inode

    def _drop(self, inode: Inode, time_ns: int) -> None:
        """One name fewer; without any it is an orphan."""
        inode.ctime_ns = time_ns
        inode.nlink = 0 if inode.entries is not None else inode.nlink - 1
        inode.listing = None  # of a directory: what is gone of it refers to it, and would be garbage for the collector
        if inode.nlink == 0:
            self.orphans[inode.ino] = inode

    def _make(self, r: Make) -> Inode:
        parent = self.inodes[r.parent]
        inode = Inode(r.ino, r.mode, r.uid, r.gid, r.time_ns)
        inode.rdev = r.rdev
        if r.target:
            inode.target = r.target
            inode.size = len(r.target)
        inode.nlink = 2 if inode.entries is not None else 1
        self.inodes[r.ino] = inode
        self.files += inode.is_file
        if r.ino >= self.next_ino:
            self.next_ino = r.ino + 1
        self._insert(parent, r.name, inode)
        parent.mtime_ns = parent.ctime_ns = r.time_ns
        return inode

    def _link(self, r: Link) -> Inode:
        inode = self.inodes[r.ino]
        parent = self.inodes[r.parent]
        inode.nlink += 1
        inode.ctime_ns = r.time_ns
        self.orphans.pop(r.ino, None)
        self._insert(parent, r.name, inode)
        parent.mtime_ns = parent.ctime_ns = r.time_ns
        return inode

    def _unlink(self, r: Unlink) -> Inode:
        parent = self.inodes[r.parent]
        inode = self._remove(parent, r.name)
        self._drop(inode, r.time_ns)
        parent.mtime_ns = parent.ctime_ns = r.time_ns
        return inode

    def _retarget(self, dentry: Dentry, inode: Inode) -> Inode:
        """The name stays, with its place in listings, and means another inode. The result is what it meant before."""
        before = dentry.inode
        before.dentries.remove(dentry)
        dentry.inode = inode
        inode.dentries.append(dentry)
        dentry.parent.nlink += (inode.entries is not None) - (before.entries is not None)
        return before

    def _rename(self, r: Rename) -> Inode:
        old, new = self.inodes[r.old_parent], self.inodes[r.new_parent]
        assert old.entries is not None and new.entries is not None
        source, target = old.entries[r.old_name], new.entries.get(r.new_name)
        inode = source.inode
        if target is None:
            self._remove(old, r.old_name)
            self._insert(new, r.new_name, inode)
        elif r.exchange:
            other = self._retarget(target, inode)
            inode.dentries.remove(source)
            source.inode = other
            other.dentries.append(source)
            old.nlink += (other.entries is not None) - (inode.entries is not None)
            other.ctime_ns = r.time_ns
        else:
            self._remove(old, r.old_name)
            self._drop(self._retarget(target, inode), r.time_ns)
        inode.ctime_ns = r.time_ns
        old.mtime_ns = old.ctime_ns = new.mtime_ns = new.ctime_ns = r.time_ns
        return inode

    def _setattr(self, r: Setattr) -> Inode:
        inode = self.inodes[r.ino]
        inode.ctime_ns = r.ctime_ns
        if r.mode is not None:
            inode.mode = (inode.mode & ~0o7777) | r.mode
        if r.uid is not None:
            inode.uid = r.uid
        if r.gid is not None:
            inode.gid = r.gid
        if r.atime_ns is not None:
            inode.atime_ns = r.atime_ns
        if r.size is not None:
            self.resize(inode, r.size)
        if r.mtime_ns is not None:
            inode.mtime_ns = r.mtime_ns
            inode.unsettled = False
        return inode

    def _setxattr(self, r: Setxattr) -> Inode:
        inode = self.inodes[r.ino]
        if inode.xattrs is None:
            inode.xattrs = {}
        inode.xattrs[r.name] = r.value
        inode.ctime_ns = r.ctime_ns
        return inode

    def _removexattr(self, r: Removexattr) -> Inode:
        inode = self.inodes[r.ino]
        assert inode.xattrs is not None
        del inode.xattrs[r.name]
        if not inode.xattrs:
            inode.xattrs = None
        inode.ctime_ns = r.ctime_ns
        return inode

    def _dirty(self, r: Dirty) -> Inode:
        inode = self.inodes[r.ino]
        inode.generation = r.generation
        inode.unsettled = True
        inode.sealed = False
        return inode

    def _begin(self, r: Begin) -> None:
        """Nothing: it is about the journal."""

    def _reclaim(self, r: Reclaim) -> None:
        for ino in r.inos:
            self.orphans.pop(ino, None)
            inode = self.inodes.pop(ino, None)
            if inode is not None and inode.is_file:
                self.files -= 1
                self.bytes -= inode.size

    # ---- what the persistences hold

    def _storing(self, r: Storing) -> Inode | None:
        """The generation is sealed: what is written from here on is another one, also after a crash."""
        self.remote.attempt(r.path, Attempt(r.ino, r.generation, r.size, r.checksum, r.source))
        inode = self.inodes.get(r.ino)
        if inode is not None and inode.generation == r.generation:
            inode.sealed = True
        return inode

    def _stored(self, r: Stored) -> Inode | None:
        self.remote.put(r.path, Entry(r.ino, r.generation, r.version, r.size, r.metadata))
        if r.source:
            self.remote.remove(r.source)
        return self.inodes.get(r.ino)

    def _removed(self, r: Removed) -> None:
        self.remote.remove(r.path)

    def _adopt(self, r: Adopt) -> None:
        for parent_ino, name, ino, mode, uid, gid, size, mtime_ns, version, metadata in r.rows:
            parent = self.inodes[parent_ino]
            inode = Inode(ino, mode, uid, gid, r.time_ns)
            inode.mtime_ns = mtime_ns
            inode.nlink = 2 if inode.entries is not None else 1
            self.inodes[ino] = inode
            self.files += inode.is_file
            self.next_ino = max(self.next_ino, ino + 1)
            self._insert(parent, name, inode)
            if inode.entries is None:
                self.resize(inode, max(0, size))
                inode.remote = size != 0
                inode.sealed = True
                self.remote.put(self.path(inode), Entry(ino, 0, version, size, metadata))

    def _renewed(self, r: Renewed) -> Inode | None:
        self.remote.put(r.path, Entry(r.ino, r.generation, r.version, r.size, r.metadata))
        inode = self.inodes.get(r.ino)
        if inode is not None:
            self.resize(inode, max(0, r.size))
            inode.generation = r.generation
            inode.mtime_ns = r.mtime_ns
            inode.ctime_ns = r.time_ns
            inode.unsettled = False
            inode.sealed = True
            inode.remote = r.size != 0
        return inode

    def _hydrated(self, r: Hydrated) -> Inode:
        inode = self.inodes[r.ino]
        inode.remote = False
        return inode

    def _evicted(self, r: Evicted) -> None:
        for ino, size, mtime_ns in r.rows:
            inode = self.inodes[ino]
            self.resize(inode, size)
            inode.mtime_ns = mtime_ns
            inode.unsettled = False
            inode.remote = size != 0


def _cookie(dentry: Dentry) -> int:
    return dentry.cookie
