"""Replay: a request that comes again belongs to the record in flight of the same thread, operation and names."""

from __future__ import annotations

import stat

import pytest

from vfs.records import Dirty, Link, Make, Record, Removexattr, Rename, Setattr, Setxattr, Unlink
from vfs.replay import Resent, carried_out, match

DONE: list[tuple[Resent, Record]] = [
    (Resent(7, "create", 1, b"a"), Make(1, b"a", 9, stat.S_IFREG | 0o644, 0, 0, 5, pid=7)),
    (Resent(7, "mkdir", 1, b"a"), Make(1, b"a", 9, stat.S_IFDIR | 0o755, 0, 0, 5, pid=7)),
    (Resent(7, "mknod", 1, b"a"), Make(1, b"a", 9, stat.S_IFIFO | 0o644, 0, 0, 5, pid=7)),
    (Resent(7, "symlink", 1, b"a"), Make(1, b"a", 9, stat.S_IFLNK | 0o777, 0, 0, 5, pid=7, target=b"t")),
    (Resent(7, "link", 9, to_inode=1, to_name=b"b"), Link(9, 1, b"b", 5, pid=7)),
    (Resent(7, "unlink", 1, b"a"), Unlink(1, b"a", 5, pid=7)),
    (Resent(7, "rmdir", 1, b"a"), Unlink(1, b"a", 5, pid=7)),
    (Resent(7, "rename", 1, b"a", 2, b"b"), Rename(1, b"a", 2, b"b", 5, pid=7)),
    (Resent(7, "rename", 1, b"a", 2, b"b", True), Rename(1, b"a", 2, b"b", 5, exchange=True, pid=7)),
    (Resent(7, "setattr", 9), Setattr(9, 5, mode=0o600, pid=7)),
    (Resent(7, "open", 9), Setattr(9, 5, size=0, mtime_ns=5, pid=7)),
    (Resent(7, "setxattr", 9, b"user.a"), Setxattr(9, b"user.a", b"v", 5, pid=7)),
    (Resent(7, "removexattr", 9, b"user.a"), Removexattr(9, b"user.a", 5, pid=7)),
]


@pytest.mark.parametrize(("request_", "record"), DONE)
def test_a_request_is_known_by_its_record(request_: Resent, record: Record) -> None:
    assert carried_out(request_, record)


@pytest.mark.parametrize(("request_", "record"), DONE)
def test_another_thread_name_inode_or_operation_is_another_request(request_: Resent, record: Record) -> None:
    fields = {name: getattr(request_, name) for name in request_.__struct_fields__}
    others = [fields | {"pid": 8}, fields | {"inode": 77}, fields | {"kind": "readlink"}]
    if request_.name:
        others.append(fields | {"name": b"other"})
    if request_.to_name:
        others += [fields | {"to_name": b"other"}, fields | {"to_inode": 77}]
    if request_.kind == "rename":
        others.append(fields | {"exchange": not request_.exchange})
    for other in others:
        assert not carried_out(Resent(**other), record)


def test_each_record_serves_once() -> None:
    request = Resent(0, "setattr", 9)
    record = Setattr(9, 5, mode=0o600)
    assert match([request, request], {3: record}) == {request: [3]}
    assert match([request, request], {3: record, 4: record}) == {request: [3, 4]}


def test_what_has_no_record_was_not_carried_out() -> None:
    assert match([Resent(7, "mkdir", 1, b"a")], {1: Dirty(1, 1), 2: Unlink(1, b"a", 5, pid=7)}) == {}
