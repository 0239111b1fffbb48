"""A block map: which blocks of a file whose content is in the persistence are here, in its backing file.

Bits are set after the bytes are written, so a crash of the process makes a map say too little, never too much. `limit`
is how much of the file the persistence still has a say in: a truncation lowers it, what lies behind is a hole, and no
later growth brings the old bytes back. A map without a file on disk is one with nothing present.

The file: `magic, u32 block size, u64 limit`, a bitmap of what is present, a bitmap of what of it counts after power
loss: what was overwritten here, and what an fsync has brought to the disk. What else was fetched may not have reached
it, and can be fetched again. An fsync syncs the map too, so one that power loss has cut short has nothing that counts.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

from vfs.durable import sync_directory
from vfs.errors import DamagedState

__all__ = ["BLOCK", "BlockMap"]

BLOCK = 256 << 10
_HEADER = struct.Struct("<8sIQ")
_MAGIC = b"MSBLOCK1"


class BlockMap:
    """`limit` in bytes. Every change is on disk (as far as the kernel) when the call returns."""

    def __init__(self, path: Path, limit: int, bits: bytes | None = None) -> None:
        self.path = path
        self.limit = limit
        self._bytes = (-(-limit // BLOCK) + 7) // 8
        self._present = bytearray(bits[: self._bytes] if bits else self._bytes)
        self._lasting = bytearray(bits[self._bytes :] if bits else self._bytes)
        self.missing = sum(1 for _ in self.absent(0, self.blocks))
        self._changes = int(bits is not None)  # of what counts after power loss
        self._synced = 0
        self._is_synced = bits is not None  # what is on disk may be counted on

    @classmethod
    def load(cls, path: Path, limit: int, *, powered_off: bool) -> BlockMap:
        """The map on disk, or an empty one for `limit` bytes."""
        try:
            stored = path.read_bytes()
        except FileNotFoundError:
            return cls(path, limit)
        try:
            size = (-(-_limit(path, stored) // BLOCK) + 7) // 8
            bits = stored[_HEADER.size :]
            if len(bits) != 2 * size:
                raise DamagedState(str(path), "it has not the length that it says")
        except DamagedState:
            if not powered_off:
                raise
            path.unlink()  # it was never synced
            return cls(path, limit)
        if powered_off:
            bits = bits[size:] * 2
        found = cls(path, _limit(path, stored), bits)
        found.truncate(limit)
        if powered_off:
            found.save()  # what was dropped just now must not be believed after the next crash
        return found

    @property
    def blocks(self) -> int:
        return -(-self.limit // BLOCK)

    def is_absent(self, block: int) -> bool:
        return block < self.blocks and not self._present[block >> 3] >> (block & 7) & 1

    def absent(self, first: int, end: int) -> Iterator[int]:
        """Blocks from `first` to before `end` whose content is in the persistence only."""
        for block in range(first, min(end, self.blocks)):
            if not self._present[block >> 3] >> (block & 7) & 1:
                yield block

    def lacks(self, blocks: Sequence[int]) -> bool:
        """Whether one of them is absent; they follow each other."""
        return next(self.absent(blocks[0], blocks[-1] + 1), None) is not None

    def extent(self, block: int) -> tuple[int, int]:
        """Offset and end of what of the block is the persistence's."""
        return block * BLOCK, min((block + 1) * BLOCK, self.limit)

    def fetched(self, *blocks: int) -> None:
        """The blocks' bytes are in the backing file."""
        self._set(blocks, self._present, 0)

    def overwritten(self, block: int) -> None:
        """The block's bytes are in the backing file, all written here."""
        self._set((block,), self._present, 0)
        self._set((block,), self._lasting, self._bytes, count=False)
        self._changes += 1

    def here(self) -> bytes:
        """What is present now, for `lasts`."""
        return bytes(self._present)

    def lasts(self, here: bytes) -> None:
        """The bytes of what was `here` are on disk: with the next `sync` that counts after power loss."""
        lasting = bytearray(old | new for old, new in zip(self._lasting, here, strict=False))
        if lasting != self._lasting:
            self._lasting = lasting
            self._changes += 1
            self._put(self._lasting, self._bytes, 0, len(lasting))

    @property
    def needs_sync(self) -> bool:
        return self._synced != self._changes

    def sync(self) -> None:
        """What counts after power loss by now is on disk. Blocks: call it in a thread."""
        changes = self._changes
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
            sync_directory(self.path.parent)
            self._is_synced = True
        self._synced = changes

    def _set(self, blocks: Sequence[int], bits: bytearray, offset: int, count: bool = True) -> None:
        for block in blocks:
            if count and self.is_absent(block):
                self.missing -= 1
            bits[block >> 3] |= 1 << (block & 7)
        self._put(bits, offset, min(blocks) >> 3, (max(blocks) >> 3) + 1)

    def _put(self, bits: bytearray, offset: int, first: int, end: int) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(fd).st_size == 0:
                os.pwrite(fd, self._all(), 0)
            else:
                os.pwrite(fd, bits[first:end], _HEADER.size + offset + first)
        finally:
            os.close(fd)

    def _all(self) -> bytes:
        # The header keeps the limit that the bitmaps were made for; a lower one is written by `truncate`.
        return _HEADER.pack(_MAGIC, BLOCK, self.limit) + self._present + self._lasting

    def truncate(self, limit: int) -> None:
        """The persistence has no say in what lies behind `limit` any more."""
        if limit >= self.limit:
            return
        size = (-(-limit // BLOCK) + 7) // 8
        self.limit = limit
        self._bytes = size
        del self._present[size:], self._lasting[size:]
        self.missing = sum(1 for _ in self.absent(0, self.blocks))
        self.save()

    def save(self) -> None:
        """Write the whole map, aside and renamed; synced if the one that it replaces was."""
        aside = self.path.with_suffix(".map-new")
        with open(aside, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(self._all())
            if self._is_synced:
                file.flush()
                os.fsync(file.fileno())
        self._changes += 1
        aside.rename(self.path)

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def _limit(path: Path, stored: bytes) -> int:
    if len(stored) < _HEADER.size:
        raise DamagedState(str(path), "it is too short for a block map")
    magic, block, limit = _HEADER.unpack_from(stored)
    if magic != _MAGIC or block != BLOCK:
        raise DamagedState(str(path), "it is not a block map of this version")
    return int(limit)
