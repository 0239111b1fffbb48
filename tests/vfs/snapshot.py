"""All that a namespace holds, in a form that two of them can be compared in."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from vfs.namespace import Namespace


def snapshot(namespace: Namespace) -> dict[str, Any]:
    """Inodes with all their attributes, entries in the order of listings with their cookies, and the counters."""
    inodes = {}
    for inode in namespace.inodes.values():
        attributes = {
            name: getattr(inode, name)
            for name in inode.__slots__
            if name not in ("dentries", "entries", "listing", "xattrs")
        }
        names = sorted((dentry.parent.ino, dentry.name) for dentry in inode.dentries)
        entries = None
        if inode.entries is not None:
            entries = [(name, dentry.inode.ino, dentry.cookie) for name, dentry in inode.entries.items()]
            listed = [(dentry.name, dentry.inode.ino, dentry.cookie) for dentry in namespace.list(inode, 0)]
            assert listed == entries, "a listing must be the entries in cookie order"
        inodes[inode.ino] = (attributes, names, entries, dict(inode.xattrs or {}))
    return {
        "inodes": inodes,
        "orphans": sorted(namespace.orphans),
        "next": (namespace.next_ino, namespace.next_cookie),
    }


def check(namespace: Namespace) -> None:
    """What is true of every namespace: link counts, the way up, which inodes are there, the sum of sizes."""
    root = namespace.root
    names: dict[int, int] = {}
    for directory in namespace.inodes.values():
        if directory.entries is None:
            continue
        below = 0
        last = 0
        for name, dentry in directory.entries.items():
            assert dentry.name == name and dentry.parent is directory
            assert namespace.inodes[dentry.inode.ino] is dentry.inode
            assert dentry in dentry.inode.dentries
            assert last < dentry.cookie < namespace.next_cookie
            last = dentry.cookie
            names[dentry.inode.ino] = names.get(dentry.inode.ino, 0) + 1
            below += dentry.inode.is_dir
        assert directory.nlink == (0 if directory.ino in namespace.orphans else 2 + below)
        assert not directory.entries or directory.ino not in namespace.orphans
    for ino, inode in namespace.inodes.items():
        assert inode.ino == ino < namespace.next_ino
        assert len(inode.dentries) == names.get(ino, 0)
        assert (ino in namespace.orphans) == (inode is not root and not inode.dentries)
        if inode.entries is None:
            assert inode.nlink == len(inode.dentries)
        above = inode
        for _ in range(len(namespace.inodes)):
            if above is root or not above.dentries:
                break
            above = above.dentries[0].parent
        assert above is root or not above.dentries, "a directory is below itself"
    assert namespace.bytes == sum(inode.size for inode in namespace.inodes.values() if inode.is_file)


def abandoned(directory: Path, copy: Path) -> Path:
    """A copy of a state directory as `kill -9` of its process would leave it at this moment."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", "--sparse=always", directory, copy], check=True)
    return copy
