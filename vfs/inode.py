"""One inode and one dentry: what the namespace is made of.

An inode has attributes and, if it is a directory, entries; a dentry ties a name in a directory to an inode. Both change
only in `namespace`, by applying a record, except for `size`, `mtime_ns` and `ctime_ns` of an unsettled file, which
follow its backing file (see `content`).
"""

from __future__ import annotations

import stat

__all__ = ["Dentry", "Inode"]


class Dentry:
    """A name in a directory. `cookie` orders a directory's entries and is never used twice in a session."""

    __slots__ = ("cookie", "inode", "name", "parent")

    def __init__(self, parent: Inode, name: bytes, inode: Inode, cookie: int) -> None:
        self.parent = parent
        self.name = name
        self.inode = inode
        self.cookie = cookie


class Inode:
    """Attributes as in stat(2), times in nanoseconds since the epoch, `size` in bytes.

    generation   counts content versions; an upload of one generation never marks a newer one clean
    unsettled    size and mtime are those of the backing file; no record holds them
    sealed       this generation has been captured by an upload: the next write begins a new one
    remote       the content is not (all) here: what of it the backing file lacks is known to `hydrate`
    entries      name -> dentry of a directory, in cookie order; None for other kinds
    listing      a directory's dentries in cookie order, made when it is first listed; may hold entries that are gone
    """

    __slots__ = (
        "atime_ns",
        "ctime_ns",
        "dentries",
        "entries",
        "generation",
        "gid",
        "ino",
        "listing",
        "mode",
        "mtime_ns",
        "nlink",
        "rdev",
        "remote",
        "sealed",
        "size",
        "target",
        "uid",
        "unsettled",
        "xattrs",
    )

    def __init__(self, ino: int, mode: int, uid: int, gid: int, time_ns: int) -> None:
        self.ino = ino
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.rdev = 0
        self.size = 0
        self.nlink = 0
        self.atime_ns = self.mtime_ns = self.ctime_ns = time_ns
        self.target = b""
        self.xattrs: dict[bytes, bytes] | None = None
        self.dentries: list[Dentry] = []
        self.entries: dict[bytes, Dentry] | None = {} if stat.S_ISDIR(mode) else None
        self.listing: list[Dentry] | None = None
        self.generation = 0
        self.unsettled = False
        self.sealed = False
        self.remote = False

    @property
    def is_dir(self) -> bool:
        return self.entries is not None

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    @property
    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)
