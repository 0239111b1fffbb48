"""What POSIX allows and with which errno, where the kernel leaves it to us or callers of the Python API can get to it.

That the rules agree with the kernel's own file systems is what `test_model` checks.
"""

from __future__ import annotations

import errno
import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.vfs.snapshot import check
from vfs import rules
from vfs.namespace import Namespace
from vfs.records import Make, Record, Unlink
from vfs.rules import RENAME_EXCHANGE, RENAME_NOREPLACE, Changes, check_name
from vfs.session import KERNEL, Ownership, Session


class User(msgspec.Struct, frozen=True):
    pid: int = 4242
    uid: int = 1001
    gid: int = 1002


def refused(number: int, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    with pytest.raises(OSError) as caught:
        function(*arguments, **options)
    assert caught.value.errno == number, caught.value


async def refused_later(number: int, function: Callable[..., Any], *arguments: Any) -> None:
    with pytest.raises(OSError) as caught:
        await function(*arguments)
    assert caught.value.errno == number, caught.value


@pytest.fixture
def namespace() -> Namespace:
    """`/d`, `/d/e`, `/d/e/f` directories; `/file`, `/other` files; `/gone` was a directory, of number 7."""
    namespace = Namespace()

    def make(parent: int, name: bytes, mode: int) -> None:
        namespace.apply(Make(parent, name, namespace.next_ino, mode, 0, 0, 1))

    make(1, b"d", stat.S_IFDIR | 0o755)  # 2
    make(2, b"e", stat.S_IFDIR | 0o755)  # 3
    make(3, b"f", stat.S_IFDIR | 0o755)  # 4
    make(1, b"file", stat.S_IFREG | 0o644)  # 5
    make(1, b"other", stat.S_IFREG | 0o644)  # 6
    make(1, b"gone", stat.S_IFDIR | 0o755)  # 7
    namespace.apply(Unlink(1, b"gone", 2))
    return namespace


FILE = stat.S_IFREG | 0o644


@pytest.mark.parametrize("name", [b"x" * 255, b"\xff\xfe", b"\n", b" ", b"...", b"a\\b", bytes(range(1, 47))])
def test_a_name_is_up_to_255_bytes_of_anything(namespace: Namespace, name: bytes) -> None:
    check_name(name)
    record = rules.make(namespace, 1, name, FILE, 0, 0, 1)
    namespace.apply(record)
    assert rules.child(namespace, 1, name).ino == record.ino


@pytest.mark.parametrize(
    ("name", "number"),
    [
        (b"x" * 256, errno.ENAMETOOLONG),
        (b"", errno.EINVAL),
        (b".", errno.EINVAL),
        (b"..", errno.EINVAL),
        (b"a/b", errno.EINVAL),
        (b"a\0", errno.EINVAL),
    ],
)
def test_other_names_are_refused_wherever_one_is_given(namespace: Namespace, name: bytes, number: int) -> None:
    refused(number, rules.make, namespace, 1, name, FILE, 0, 0, 1)
    refused(number, rules.link, namespace, 5, 1, name, 1)
    refused(errno.EBUSY if name in (b".", b"..") else number, rules.rename, namespace, 1, b"file", 1, name, 0, 1)


def test_dot_and_dot_dot_are_looked_up_and_never_changed(namespace: Namespace) -> None:
    assert rules.child(namespace, 3, b".").ino == 3
    assert rules.child(namespace, 3, b"..").ino == 2
    assert rules.child(namespace, 1, b"..").ino == 1
    refused(errno.EINVAL, rules.rmdir, namespace, 3, b".", 1)
    refused(errno.ENOTEMPTY, rules.rmdir, namespace, 3, b"..", 1)
    refused(errno.EISDIR, rules.unlink, namespace, 3, b".", 1)
    refused(errno.EBUSY, rules.rename, namespace, 3, b".", 1, b"x", 0, 1)
    refused(errno.EBUSY, rules.rename, namespace, 1, b"file", 3, b"..", 0, 1)


def test_what_is_not_there_is_enoent_and_below_a_file_is_enotdir(namespace: Namespace) -> None:
    for parent, number in ((1, errno.ENOENT), (5, errno.ENOTDIR), (99, errno.ESTALE)):
        refused(number, rules.child, namespace, parent, b"missing")
        refused(number, rules.unlink, namespace, parent, b"missing", 1)
        refused(number, rules.rmdir, namespace, parent, b"missing", 1)
        refused(number, rules.rename, namespace, parent, b"missing", 1, b"x", 0, 1)
    refused(errno.ENOTDIR, rules.rename, namespace, 1, b"file", 6, b"x", 0, 1)
    refused(errno.ENOTDIR, rules.make, namespace, 5, b"x", FILE, 0, 0, 1)
    refused(errno.ENAMETOOLONG, rules.child, namespace, 1, b"x" * 256)


def test_nothing_can_be_made_in_a_directory_that_was_removed(namespace: Namespace) -> None:
    refused(errno.ENOENT, rules.make, namespace, 7, b"x", FILE, 0, 0, 1)
    refused(errno.ENOENT, rules.link, namespace, 5, 7, b"x", 1)
    refused(errno.ENOENT, rules.rename, namespace, 1, b"file", 7, b"x", 0, 1)


def test_a_name_that_is_taken_is_eexist(namespace: Namespace) -> None:
    refused(errno.EEXIST, rules.make, namespace, 1, b"file", FILE, 0, 0, 1)
    refused(errno.EEXIST, rules.make, namespace, 1, b"d", stat.S_IFDIR, 0, 0, 1)
    refused(errno.EEXIST, rules.link, namespace, 5, 1, b"other", 1)
    refused(errno.EEXIST, rules.rename, namespace, 1, b"file", 1, b"other", RENAME_NOREPLACE, 1)


def test_directories_have_one_name_and_a_file_without_one_gets_none(namespace: Namespace) -> None:
    refused(errno.EPERM, rules.link, namespace, 2, 1, b"x", 1)
    namespace.apply(Unlink(1, b"file", 1))
    refused(errno.ENOENT, rules.link, namespace, 5, 1, b"x", 1)


def test_unlink_is_for_files_and_rmdir_for_empty_directories(namespace: Namespace) -> None:
    refused(errno.EISDIR, rules.unlink, namespace, 1, b"d", 1)
    refused(errno.ENOTDIR, rules.rmdir, namespace, 1, b"file", 1)
    refused(errno.ENOTEMPTY, rules.rmdir, namespace, 1, b"d", 1)
    assert rules.rmdir(namespace, 3, b"f", 1) == Unlink(3, b"f", 1)


def test_rename_refuses_what_would_cut_off_a_part_of_the_tree(namespace: Namespace) -> None:
    for flags in (0, RENAME_NOREPLACE):
        refused(errno.EINVAL, rules.rename, namespace, 1, b"d", 2, b"x", flags, 1)
        refused(errno.EINVAL, rules.rename, namespace, 1, b"d", 4, b"x", flags, 1)
    refused(errno.EINVAL, rules.rename, namespace, 1, b"d", 2, b"e", RENAME_EXCHANGE, 1)
    refused(errno.EINVAL, rules.rename, namespace, 2, b"e", 1, b"d", RENAME_EXCHANGE, 1)
    refused(errno.ENOTEMPTY, rules.rename, namespace, 2, b"e", 1, b"d", 0, 1)


def test_rename_puts_files_over_files_and_directories_over_empty_ones(namespace: Namespace) -> None:
    refused(errno.EISDIR, rules.rename, namespace, 1, b"file", 3, b"f", 0, 1)
    refused(errno.ENOTDIR, rules.rename, namespace, 1, b"d", 1, b"file", 0, 1)
    namespace.apply(Make(1, b"full", 8, stat.S_IFDIR, 0, 0, 1))
    namespace.apply(Make(8, b"x", 9, FILE, 0, 0, 1))
    namespace.apply(Make(1, b"empty", 10, stat.S_IFDIR, 0, 0, 1))
    refused(errno.ENOTEMPTY, rules.rename, namespace, 1, b"empty", 1, b"full", 0, 1)
    assert rules.rename(namespace, 1, b"full", 1, b"empty", 0, 1) is not None
    refused(errno.ENOENT, rules.rename, namespace, 1, b"full", 1, b"missing", RENAME_EXCHANGE, 1)
    for flags in (RENAME_NOREPLACE | RENAME_EXCHANGE, 4, 8):
        refused(errno.EINVAL, rules.rename, namespace, 1, b"file", 1, b"other", flags, 1)


def test_an_exchange_of_a_directory_and_a_file_moves_the_link_that_a_directory_is(namespace: Namespace) -> None:
    assert (namespace.inodes[1].nlink, namespace.inodes[2].nlink) == (3, 3)
    record = rules.rename(namespace, 1, b"file", 2, b"e", RENAME_EXCHANGE, 1)
    assert record is not None
    namespace.apply(record)
    assert (namespace.inodes[1].nlink, namespace.inodes[2].nlink) == (4, 2)
    check(namespace)
    namespace.apply(record)
    assert (namespace.inodes[1].nlink, namespace.inodes[2].nlink) == (3, 3)
    check(namespace)


def test_two_names_of_one_file_are_left_alone_by_rename(namespace: Namespace) -> None:
    namespace.apply(rules.link(namespace, 5, 1, b"second", 1))
    assert rules.rename(namespace, 1, b"file", 1, b"second", 0, 1) is None
    assert rules.rename(namespace, 1, b"file", 1, b"file", 0, 1) is None
    assert rules.rename(namespace, 1, b"d", 1, b"d", 0, 1) is None


def test_symlinks_hold_up_to_4095_bytes_and_not_nothing(namespace: Namespace) -> None:
    kind = stat.S_IFLNK | 0o777
    rules.make(namespace, 1, b"l", kind, 0, 0, 1, target=b"\xff" * 4095)
    refused(errno.ENAMETOOLONG, rules.make, namespace, 1, b"l", kind, 0, 0, 1, target=b"x" * 4096)
    refused(errno.ENOENT, rules.make, namespace, 1, b"l", kind, 0, 0, 1)
    refused(errno.EINVAL, rules.make, namespace, 1, b"l", kind, 0, 0, 1, target=b"a\0")
    refused(errno.EINVAL, rules.make, namespace, 1, b"l", 0o644, 0, 0, 1)


def test_a_set_group_id_directory_hands_its_group_down(namespace: Namespace) -> None:
    namespace.inodes[2].mode |= stat.S_ISGID
    namespace.inodes[2].gid = 77
    assert rules.make(namespace, 2, b"x", FILE, 5, 6, 1).gid == 77
    below = rules.make(namespace, 2, b"y", stat.S_IFDIR | 0o755, 5, 6, 1)
    assert (below.gid, below.mode & stat.S_ISGID) == (77, stat.S_ISGID)
    assert rules.make(namespace, 1, b"z", FILE, 5, 6, 1).gid == 6


@pytest.mark.parametrize(
    ("mode", "left"), [(0o6755, 0o755), (0o4711, 0o711), (0o2755, 0o755), (0o2644, 0o2644), (0o1777, 0o1777)]
)
def test_a_change_of_owner_takes_set_id_bits_from_files(namespace: Namespace, mode: int, left: int) -> None:
    namespace.inodes[5].mode = stat.S_IFREG | mode
    namespace.inodes[2].mode = stat.S_IFDIR | mode
    for changes in (Changes(uid=1), Changes(gid=1)):
        namespace.inodes[5].mode = stat.S_IFREG | mode
        namespace.apply(rules.setattr(namespace.inodes[5], changes, 1))
        assert namespace.inodes[5].mode == stat.S_IFREG | left
        namespace.apply(rules.setattr(namespace.inodes[2], changes, 1))
        assert namespace.inodes[2].mode == stat.S_IFDIR | mode
    assert rules.setattr(namespace.inodes[5], Changes(uid=1, mode=0o6755), 1).mode == 0o6755


async def test_truncating_at_open_takes_set_id_bits_unless_root_does_it(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        for caller, left in ((KERNEL, 0o6755), (User(), 0o755)):
            ino = session.create(1, b"%d" % caller.uid, 0o6755, KERNEL).ino
            session.release(ino)
            await session.open_file(ino, os.O_WRONLY | os.O_TRUNC, caller)
            assert stat.S_IMODE(session.getattr(ino).mode) == (left if os.geteuid() == 0 else 0o755)


async def test_truncating_an_empty_file_at_open_changes_its_mtime(tmp_path: Path) -> None:
    """`: > stamp` is how makefiles say that something is done."""
    async with Session.open("work", tmp_path) as session:
        ino = session.create(1, b"stamp", 0o644, KERNEL).ino
        await session.setattr(ino, Changes(mtime_ns=1), KERNEL)
        await session.open_file(ino, os.O_WRONLY | os.O_TRUNC, KERNEL)
        assert session.getattr(ino).mtime_ns > 1


async def test_times_sizes_and_modes_are_set_and_ctime_follows(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        ino = session.create(1, b"file", 0o644, KERNEL).ino
        for changes in (
            Changes(mode=0o7777),
            Changes(uid=0, gid=2**32 - 2),
            Changes(atime_ns=-1, mtime_ns=2**62 + 1),
            Changes(size=10),
        ):
            before = session.getattr(ino).ctime_ns
            inode = await session.setattr(ino, changes, KERNEL)
            assert inode.ctime_ns > before
            for name in ("uid", "gid", "atime_ns", "mtime_ns", "size"):
                wanted = getattr(changes, name)
                assert wanted is None or getattr(inode, name) == wanted
        assert inode.mtime_ns == inode.ctime_ns, "a change of size is a change of content"


async def test_a_time_too_far_away_becomes_the_last_that_can_be_kept(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        ino = session.create(1, b"file", 0o644, KERNEL).ino
        await session.setattr(ino, Changes(atime_ns=-(2**70), mtime_ns=2**70), KERNEL)
    async with Session.open("work", tmp_path) as session:
        inode = session.getattr(ino)
        assert (inode.atime_ns, inode.mtime_ns) == (-(2**63), 2**64 - 1)


async def test_only_files_have_a_size_that_can_be_set(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        fifo = session.mknod(1, b"fifo", stat.S_IFIFO | 0o600, KERNEL).ino
        await refused_later(errno.EISDIR, session.setattr, 1, Changes(size=0), KERNEL)
        await refused_later(errno.EINVAL, session.setattr, fifo, Changes(size=0), KERNEL)
        ino = session.create(1, b"file", 0o644, KERNEL).ino
        await refused_later(errno.EINVAL, session.setattr, ino, Changes(size=-1), KERNEL)
        await refused_later(errno.EISDIR, session.read, 1, 0, 1)
        await refused_later(errno.EINVAL, session.write, fifo, 0, b"x")


async def test_a_size_that_the_disk_cannot_have_changes_nothing(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        ino = session.create(1, b"file", 0o644, KERNEL).ino
        await session.write(ino, 0, b"content")
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 40, before[1]))  # as a disk does; a tmpfs takes any size
        try:
            await refused_later(errno.EFBIG, session.setattr, ino, Changes(size=1 << 41), KERNEL)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert session.getattr(ino).size == 7
        assert await session.read(ino, 0, 100) == b"content"


async def test_what_a_caller_asks_for_is_not_changed_by_the_answer(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path, owner=Ownership(5, 6)) as session:
        changes = Changes(uid=1, gid=2, mode=0o600)
        inode = await session.setattr(1, changes, KERNEL)
        assert changes == Changes(uid=1, gid=2, mode=0o600)
        assert (inode.uid, inode.gid) == (5, 6)
        assert session.mkdir(1, b"d", 0o755, User()).uid == 5


async def test_xattrs_have_the_kernel_s_limits(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        session.setxattr(1, b"user." + b"n" * 250, b"v" * 65536, KERNEL)
        refused(errno.ERANGE, session.setxattr, 1, b"user." + b"n" * 251, b"", KERNEL)
        refused(errno.E2BIG, session.setxattr, 1, b"user.v", b"v" * 65537, KERNEL)
        refused(errno.ENOTSUP, session.setxattr, 1, b"system.posix_acl_access", b"", KERNEL)
        refused(errno.ENOTSUP, session.setxattr, 1, b"plain", b"", KERNEL)
        refused(errno.EINVAL, session.setxattr, 1, b"user.", b"", KERNEL)
        refused(errno.ENODATA, session.getxattr, 1, b"user.missing")
        refused(errno.ENODATA, session.removexattr, 1, b"user.missing", KERNEL)
        for n in range(2):
            session.setxattr(1, b"user.%d" % n, b"v" * 65536, KERNEL)
        refused(errno.ENOSPC, session.setxattr, 1, b"user.more", b"v" * 65536, KERNEL)
        session.setxattr(1, b"user.0", b"w" * 65536, KERNEL)
        session.removexattr(1, b"user.1", KERNEL)
        assert sorted(session.listxattr(1)) == [b"user.0", b"user." + b"n" * 250]


async def test_a_read_only_session_refuses_every_change_and_is_as_it_was(tmp_path: Path) -> None:
    async with Session.open("work", tmp_path) as session:
        ino = session.create(1, b"file", 0o644, KERNEL).ino
        session.setxattr(ino, b"user.x", b"", KERNEL)
        session.mkdir(1, b"d", 0o755, KERNEL)
    seen: list[Record] = []
    async with Session.open("work", tmp_path, read_only=True) as session:
        session.journal.append = lambda record, **_: seen.append(record)  # type: ignore[method-assign]
        for call, arguments in (
            (session.create, (1, b"x", 0o644)),
            (session.mkdir, (1, b"x", 0o755)),
            (session.symlink, (1, b"x", b"y")),
            (session.link, (ino, 1, b"x")),
            (session.unlink, (1, b"file")),
            (session.rmdir, (1, b"d")),
            (session.rename, (1, b"file", 1, b"x", 0)),
            (session.setxattr, (ino, b"user.x", b"y")),
            (session.removexattr, (ino, b"user.x")),
        ):
            refused(errno.EROFS, call, *arguments, KERNEL)
        await refused_later(errno.EROFS, session.setattr, ino, Changes(mode=0), KERNEL)
        await refused_later(errno.EROFS, session.write, ino, 0, b"x")
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
            await refused_later(errno.EROFS, session.open_file, ino, flags, KERNEL)
        await session.open_file(ino, os.O_RDONLY, KERNEL)
        assert await session.read(ino, 0, 10) == b""
    assert seen == []
