"""A description: what files alone cannot say about a tree, as one object that a persistence keeps (`on_save_image`).

One row for each name: its kind, mode, owner, mtime, xattrs, a symlink's target, a device's number, and the inode's
number, which makes two rows with the same one hard links. A file's row also says which version of its content it was
made for: to a file that someone else has replaced since, mode and owner still apply, but not its mtime.

The format is a magic number and zlib-compressed msgpack; a reader refuses what it does not know.
"""

from __future__ import annotations

import stat
import zlib
from collections.abc import Mapping

import msgspec

from vfs.errors import DamagedState
from vfs.inode import Inode
from vfs.remote import Entry

__all__ = ["Row", "decode", "encode", "row"]

_MAGIC = b"MSTREE01"


class Row(msgspec.Struct, array_like=True, frozen=True):
    """`mode` with the file type; times in nanoseconds; `size` and `version` of a regular file in the persistence."""

    path: bytes
    ino: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    size: int = 0
    version: str | None = None
    rdev: int = 0
    target: bytes = b""
    xattrs: dict[bytes, bytes] | None = None

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    def describes(self, entry: Entry | None) -> bool:
        """Whether the row was made for the content that is there."""
        return entry is not None and entry.size == self.size and entry.version == self.version


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Row])


def row(path: bytes, inode: Inode, entry: Entry | None) -> Row:
    size, version = (entry.size, entry.version) if entry is not None else (0, None)
    owner = inode.ino, inode.mode, inode.uid, inode.gid, inode.mtime_ns
    return Row(path, *owner, size, version, inode.rdev, inode.target, inode.xattrs or None)


def encode(rows: list[Row]) -> bytes:
    """Blocks for about 2 microseconds a row: call it in a thread."""
    return _MAGIC + zlib.compress(_encoder.encode(rows), 1)


def decode(image: bytes, name: str) -> Mapping[bytes, Row]:
    """Rows by path, directories before what is in them. DamagedState names the persistence."""
    if not image.startswith(_MAGIC):
        raise DamagedState(name, "the description of the tree in the persistence is of an unknown version")
    try:
        rows = _decoder.decode(zlib.decompress(image[len(_MAGIC) :]))
    except (msgspec.DecodeError, zlib.error) as e:
        raise DamagedState(name, f"the description of the tree in the persistence: {e}") from e
    return {found.path: found for found in sorted(rows, key=lambda found: found.path.count(b"/"))}
