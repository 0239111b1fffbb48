"""The journal's records: every way in which a namespace can change.

A record says what became so, not what was asked for: it holds the new inode's number, the owner after set-id rules, the
time. Applying the same records to the same namespace gives the same namespace, cookies included. Times are nanoseconds
since the epoch. `pid` is the thread that asked (0: none), which is how a request that is sent again finds what it did.

The encoding is msgpack: an array whose first element is the record's tag. A tag, and the meaning and order of the
fields behind it, never change; a new field goes last, with a default.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

__all__ = [
    "TIME_MAX",
    "TIME_MIN",
    "Adopt",
    "Begin",
    "Dirty",
    "Evicted",
    "Hydrated",
    "Link",
    "Make",
    "Reclaim",
    "Record",
    "Removed",
    "Removexattr",
    "Rename",
    "Renewed",
    "Setattr",
    "Setxattr",
    "Stored",
    "Storing",
    "Unlink",
    "decode",
    "encode",
]

TIME_MIN, TIME_MAX = -(1 << 63), (1 << 64) - 1  # that msgpack holds: from 1677 to 2554; file systems go to 2446


class _Record(msgspec.Struct, array_like=True, gc=False):
    frees: ClassVar[bool] = False  # may use the journal's last reserve: it makes room


class Make(_Record, tag=1):
    """A new inode with a name: create, mknod, mkdir or symlink, by `mode`'s file type."""

    parent: int
    name: bytes
    ino: int
    mode: int
    uid: int
    gid: int
    time_ns: int
    pid: int = 0
    rdev: int = 0
    target: bytes = b""


class Link(_Record, tag=2):
    """One more name for an inode."""

    ino: int
    parent: int
    name: bytes
    time_ns: int
    pid: int = 0


class Unlink(_Record, tag=3):
    """A name is gone: unlink of a non-directory, or rmdir of an empty directory."""

    frees: ClassVar[bool] = True
    parent: int
    name: bytes
    time_ns: int
    pid: int = 0


class Rename(_Record, tag=4):
    """A name moved, replacing what was there, or with `exchange` changing places with it."""

    old_parent: int
    old_name: bytes
    new_parent: int
    new_name: bytes
    time_ns: int
    exchange: bool = False
    pid: int = 0


class Setattr(_Record, tag=5):
    """Attributes set; None: unchanged. With `size` or `mtime_ns` the file is settled, and both are given."""

    ino: int
    ctime_ns: int
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    pid: int = 0


class Setxattr(_Record, tag=6):
    ino: int
    name: bytes
    value: bytes
    ctime_ns: int
    pid: int = 0


class Removexattr(_Record, tag=7):
    ino: int
    name: bytes
    ctime_ns: int
    pid: int = 0


class Dirty(_Record, tag=8):
    """A content generation begins: from here the backing file's size and mtime are the file's."""

    ino: int
    generation: int


class Reclaim(_Record, tag=9):
    """Inodes without a name that the kernel has let go of: they and their backing files are gone."""

    frees: ClassVar[bool] = True
    inos: list[int]


class Storing(_Record, tag=10):
    """An upload of a generation to `path` begins; see `remote.Attempt`. With `source` it is a move."""

    frees: ClassVar[bool] = True
    path: bytes
    ino: int
    generation: int
    size: int
    checksum: bytes
    source: bytes = b""


class Stored(_Record, tag=11):
    """The persistence has answered: `path` holds this generation. With `source` it was moved from there."""

    frees: ClassVar[bool] = True
    path: bytes
    ino: int
    generation: int
    version: str | None
    size: int
    metadata: dict[str, str] | None = None
    source: bytes = b""


class Removed(_Record, tag=12):
    """The persistence holds nothing at `path`."""

    frees: ClassVar[bool] = True
    path: bytes


class Adopt(_Record, tag=13):
    """Files found in the persistence, and directories that their paths imply, parents first.

    Each row: parent, name, ino, mode, uid, gid, size (-1: not known), mtime_ns, version, metadata.
    """

    rows: list[tuple[int, bytes, int, int, int, int, int, int, str | None, dict[str, str] | None]]
    time_ns: int


class Renewed(_Record, tag=14):
    """Someone else has changed a clean file in the persistence, or its size was found out: its content is there."""

    path: bytes
    ino: int
    generation: int
    size: int
    mtime_ns: int
    version: str | None
    time_ns: int
    metadata: dict[str, str] | None = None


class Hydrated(_Record, tag=15):
    """All content of the file is here."""

    frees: ClassVar[bool] = True
    ino: int


class Evicted(_Record, tag=16):
    """The content of clean files is in the persistence only. Each row: ino, size, mtime_ns."""

    frees: ClassVar[bool] = True
    rows: list[tuple[int, int, int]]


class Begin(_Record, tag=17):
    """The first record of each segment but the session's first: how many bytes the one before has. After power loss a
    segment can be on disk of which the one before has lost its end."""

    previous: int


Record = (
    Make
    | Link
    | Unlink
    | Rename
    | Setattr
    | Setxattr
    | Removexattr
    | Dirty
    | Reclaim
    | Storing
    | Stored
    | Removed
    | Adopt
    | Renewed
    | Hydrated
    | Evicted
    | Begin
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)

encode = _encoder.encode
decode = _decoder.decode
