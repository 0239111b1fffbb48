"""The quota of a session: what it may take, checked before a change is made.

What it takes is `Namespace.bytes` and the number of its inodes, both kept by the namespace as it changes and so the
same after recovery; a check is two comparisons, and a session without limits has no Quota at all. Nothing that only
frees is ever checked, so deletes always work, also in a session that is above a limit that was lowered.
Owned by `Tree`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Literal

import msgspec

from vfs.errors import error
from vfs.inode import Inode
from vfs.namespace import Namespace
from vfs.policy import UNLIMITED, Policy

__all__ = ["Quota", "SoftLimit"]


class SoftLimit(msgspec.Struct, frozen=True):
    """A soft limit was passed: `used` is what there will be once the change that passed it is made.

    `ino`: the file that a write passed it with; None where it was who asks for the change that is being made, 0 where
    it was a change of the policy.
    """

    of: Literal["bytes", "inodes"]
    used: int
    limit: int
    ino: int | None = None


class Quota:
    """`passed` is called when a soft limit is passed, by what is used or by a new limit: once, until the session has
    been below it again."""

    def __init__(self, namespace: Namespace, policy: Policy, passed: Callable[[SoftLimit], None]) -> None:
        self._namespace = namespace
        self._policy = policy
        self._passed = passed
        self._told: dict[str, bool] = {}

    def follow(self, before: Quota | None) -> None:
        """The policy was changed: a limit that stays is not told of again, one that is new and passed already is."""
        old, new = before._policy if before else UNLIMITED, self._policy
        if before is not None:
            self._told = dict(before._told)
        if new.soft_bytes != old.soft_bytes:
            self._told.pop("bytes", None)
            self._check_soft("bytes", self._namespace.bytes, new.soft_bytes, 0)
        if new.soft_inodes != old.soft_inodes:
            self._told.pop("inodes", None)
            self._check_soft("inodes", self.inodes, new.soft_inodes, 0)

    @staticmethod
    def needed(policy: Policy) -> bool:
        limits = (policy.quota_bytes, policy.quota_inodes, policy.soft_bytes, policy.soft_inodes, policy.max_file_bytes)
        return any(limit is not None for limit in limits)

    @property
    def inodes(self) -> int:
        """Inodes in use; the root is not the session's doing."""
        return len(self._namespace.inodes) - 1

    def admit_inode(self, name: bytes) -> None:
        """EDQUOT if one more inode is too many."""
        policy, used = self._policy, self.inodes + 1
        if policy.quota_inodes is not None and used > policy.quota_inodes:
            raise error(errno.EDQUOT, name)
        self._check_soft("inodes", used, policy.soft_inodes)

    def admit_size(self, inode: Inode, size: int) -> None:
        """EDQUOT or EFBIG if the file must not become that large."""
        if size <= inode.size:
            return
        policy, used = self._policy, self._namespace.bytes + size - inode.size
        if policy.max_file_bytes is not None and size > policy.max_file_bytes:
            raise error(errno.EFBIG, f"inode {inode.ino}")
        if policy.quota_bytes is not None and used > policy.quota_bytes:
            raise error(errno.EDQUOT, f"inode {inode.ino}")
        self._check_soft("bytes", used, policy.soft_bytes)

    def admit_write(self, inode: Inode, offset: int, length: int) -> int:
        """How many of `length` bytes may be written at `offset`, as write(2) does at a limit: what fits; an error if
        nothing does."""
        end = offset + length
        if end <= inode.size:
            return length
        policy = self._policy
        if policy.max_file_bytes is not None and end > policy.max_file_bytes:
            end = max(policy.max_file_bytes, inode.size)
            if end <= offset:
                raise error(errno.EFBIG, f"inode {inode.ino}")
        if policy.quota_bytes is not None:
            end = min(end, inode.size + max(0, policy.quota_bytes - self._namespace.bytes))
            if end <= offset:
                raise error(errno.EDQUOT, f"inode {inode.ino}")
        self._check_soft("bytes", self._namespace.bytes + max(0, end - inode.size), policy.soft_bytes, inode.ino)
        return end - offset

    def _check_soft(self, of: Literal["bytes", "inodes"], used: int, limit: int | None, ino: int | None = None) -> None:
        if limit is None:
            return
        above = used > limit
        if above and not self._told.get(of):
            self._passed(SoftLimit(of, used, limit, ino))
        self._told[of] = above

    def statvfs(self, disk: os.statvfs_result) -> os.statvfs_result:
        """What is left for the session: of its quota, and never more than the disk has."""
        policy, unit = self._policy, disk.f_frsize
        blocks, free, available = disk.f_blocks, disk.f_bfree, disk.f_bavail
        files, files_free, files_available = disk.f_files, disk.f_ffree, disk.f_favail
        if policy.quota_bytes is not None:
            left = max(0, policy.quota_bytes - self._namespace.bytes) // unit
            blocks, free, available = policy.quota_bytes // unit, min(free, left), min(available, left)
        if policy.quota_inodes is not None:
            left = max(0, policy.quota_inodes - self.inodes)
            files, files_free = policy.quota_inodes, left
            files_available = left
        return os.statvfs_result(
            (disk.f_bsize, unit, blocks, free, available, files, files_free, files_available, disk.f_flag, 255)
        )
