"""From the files in a state directory to the namespace that was promised.

The image, then the journal's segments; then what no record holds is read from the backing files: size and mtime of
unsettled files. After a crash a settled file's backing file is brought to the recorded size (a truncation whose record
was written and whose ftruncate was not), and what a crash left behind is removed: backing files without an inode, half
an image, segments that are in the image already. After power loss history ends where the disk's copy of it does.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from vfs import failpoints, image
from vfs.content import Content
from vfs.errors import DamagedState
from vfs.inode import Inode
from vfs.journal import Journal, frames, segment_path, segments
from vfs.namespace import Namespace
from vfs.records import Begin, Record, decode

__all__ = ["recover"]

log = logging.getLogger(__name__)

Replayed = Callable[[Namespace, int, int, Record, Inode | None], None]
"""Told of each record of the journal that was applied: its segment, and where it ends in it."""


def recover(
    directory: Path,
    content: Content,
    *,
    crashed: bool,
    powered_off: bool = False,
    replayed: Replayed = lambda namespace, segment, end, record, inode: None,
) -> tuple[Namespace, Journal]:
    """The namespace as the last session left it, and the journal to go on with."""
    with image.lock(directory), _no_collections():
        namespace, first = image.load(directory)
        last, end = _replay(namespace, directory, first, powered_off, replayed)
        (directory / image.ASIDE).unlink(missing_ok=True)
        for segment in segments(directory):
            if not first <= segment <= last:
                segment_path(directory, segment).unlink()
    for inode in namespace.inodes.values():
        if inode.unsettled:
            _read_backing(inode, content)
        elif crashed and inode.is_file:
            _settle(inode, content)
    sizes = [inode.size for inode in namespace.inodes.values() if inode.is_file]
    namespace.files, namespace.bytes = len(sizes), sum(sizes)
    if crashed:
        for ino in content.inos() - namespace.inodes.keys():
            content.remove(ino)
    failpoints.reach("recovery.before-end")
    return namespace, Journal(directory, last, end)


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Inodes are made by the hundred thousand and none is garbage: looking for some took half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _replay(
    namespace: Namespace, directory: Path, first: int, powered_off: bool, replayed: Replayed
) -> tuple[int, int]:
    """Apply the segments from `first` on; the result is the last one that counts, and the length of what is whole in
    it."""
    present = [segment for segment in segments(directory) if segment >= first]
    for expected, segment in enumerate(present or [-1], first):
        if segment != expected:
            raise DamagedState(str(segment_path(directory, expected)), "it is not there")
    last, end = first, 0
    for segment in present:
        path = segment_path(directory, segment)
        newest = segment == present[-1]
        if segment != first and not _continues(path, end, newest, powered_off):
            break

        def applied(
            namespace: Namespace, end: int, record: Record, inode: Inode | None, *, segment: int = segment
        ) -> None:
            replayed(namespace, segment, end, record, inode)

        last = segment
        torn_ok = newest or powered_off
        end = image.replay(namespace, path, torn_ok=torn_ok, powered_off=powered_off, applied=applied)
        torn = path.stat().st_size - end
        if torn:
            log.warning("%s: %d bytes behind the last whole record were cut: they were never acknowledged", path, torn)
            break
    return last, end


def _continues(path: Path, end: int, newest: bool, powered_off: bool) -> bool:
    """Does the segment go on where the one before ends? False if a crash came before it had begun, or power loss took
    the end of the one before."""
    for _, payload in frames(path, torn_ok=newest or powered_off, powered_off=powered_off):
        if decode(payload) == Begin(end):
            return True
        if powered_off:
            return False
        raise DamagedState(str(path), f"it does not go on where the one before ends, at {end} bytes")
    return False


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
    if backing is None and inode.remote:
        return
    if (backing.st_size if backing else 0) != inode.size:
        content.truncate(inode.ino, inode.size)
        backing = None
    if backing is None or backing.st_mtime_ns != inode.mtime_ns:
        content.touch(inode.ino, inode.mtime_ns)
