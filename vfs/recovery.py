"""From the files in a state directory to the namespace that was promised.

The image, then the journal's segments; then what no record holds is read from the backing files: size and mtime of
unsettled
files. After a crash a settled file's backing file is brought to the recorded size (a truncation whose record was
written and
whose ftruncate was not), and backing files without an inode are removed.
"""

from __future__ import annotations

import logging
from pathlib import Path

from vfs import failpoints, image
from vfs.content import Content
from vfs.errors import DamagedState
from vfs.inode import Inode
from vfs.journal import Journal, segment_path, segments
from vfs.namespace import Namespace

__all__ = ["recover"]

log = logging.getLogger(__name__)


def recover(directory: Path, content: Content, *, crashed: bool) -> tuple[Namespace, Journal]:
    """The namespace as the last session left it, and the journal to go on with."""
    with image.lock(directory):
        namespace, first = image.load(directory)
        present = [segment for segment in segments(directory) if segment >= first]
        if present and present != list(range(first, present[-1] + 1)):
            raise DamagedState(str(directory), f"journal segments {present} do not follow each other from {first}")
        last, end = first, 0
        for segment in present:
            path = segment_path(directory, segment)
            last, end = segment, image.replay(namespace, path, torn_ok=segment == present[-1])
            torn = path.stat().st_size - end
            if torn:
                log.warning(
                    "%s: %d bytes behind the last whole record were cut: they were never acknowledged", path, torn
                )
    for inode in namespace.inodes.values():
        if inode.unsettled:
            _read_backing(inode, content)
        elif crashed and inode.is_file and not inode.remote:
            _settle(inode, content)
    namespace.bytes = sum(inode.size for inode in namespace.inodes.values() if inode.is_file)
    if crashed:
        for ino in content.inos() - namespace.inodes.keys():
            content.remove(ino)
    failpoints.reach("recovery.before-end")
    return namespace, Journal(directory, last, end)


def _read_backing(inode: Inode, content: Content) -> None:
    backing = content.stat(inode.ino)
    if backing is None:
        if not inode.remote:  # else it is as large as it is in the persistence
            inode.size = 0
        return
    inode.size = backing.st_size
    inode.mtime_ns = backing.st_mtime_ns
    inode.ctime_ns = max(inode.ctime_ns, inode.mtime_ns)


def _settle(inode: Inode, content: Content) -> None:
    """The backing file as the record has it: a crash may have come between the two."""
    backing = content.stat(inode.ino)
    if (backing.st_size if backing else 0) != inode.size:
        content.truncate(inode.ino, inode.size)
    content.touch(inode.ino, inode.mtime_ns)
