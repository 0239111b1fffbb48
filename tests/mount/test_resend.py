"""Resend: the kernel's requests are read and known by name; the notes of what is in flight survive the process."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

import pytest
import trio

from mount import resend
from mount.handshake import HEADER, OUT_HEADER
from mount.inflight import SLOTS, InFlight, Place
from mount.resend import UNIQUE_RESEND, Request, describe, is_asked, recall
from vfs.journal import Journal
from vfs.records import Make, Unlink
from vfs.replay import Resent


def sent(unique: int, opcode: int, nodeid: int, body: bytes = b"") -> bytes:
    return HEADER.pack(HEADER.size + len(body), opcode, unique, nodeid, 0, 0, 7, 0, 0) + body


@pytest.mark.parametrize(
    ("opcode", "body", "known"),
    [
        (resend.CREATE, struct.pack("=IIII", 0, 0, 0, 0) + b"a\0", Resent(7, "create", 5, b"a")),
        (resend.MKDIR, struct.pack("=II", 0, 0) + b"a\0", Resent(7, "mkdir", 5, b"a")),
        (resend.MKNOD, struct.pack("=IIII", 0, 0, 0, 0) + b"a\0", Resent(7, "mknod", 5, b"a")),
        (resend.SYMLINK, b"a\0target\0", Resent(7, "symlink", 5, b"a")),
        (resend.LINK, struct.pack("=Q", 9) + b"a\0", Resent(7, "link", 9, to_inode=5, to_name=b"a")),
        (resend.UNLINK, b"a\0", Resent(7, "unlink", 5, b"a")),
        (resend.RMDIR, b"a\0", Resent(7, "rmdir", 5, b"a")),
        (resend.RENAME, struct.pack("=Q", 6) + b"a\0b\0", Resent(7, "rename", 5, b"a", 6, b"b")),
        (resend.RENAME2, struct.pack("=QII", 6, 1, 0) + b"a\0b\0", Resent(7, "rename", 5, b"a", 6, b"b")),
        (resend.RENAME2, struct.pack("=QII", 6, 2, 0) + b"a\0b\0", Resent(7, "rename", 5, b"a", 6, b"b", True)),
        (resend.SETATTR, bytes(88), Resent(7, "setattr", 5)),
        (resend.OPEN, struct.pack("=II", os.O_TRUNC, 0), Resent(7, "open", 5)),
        (resend.OPEN, struct.pack("=II", os.O_RDWR, 0), None),
        (resend.SETXATTR, struct.pack("=II", 1, 0) + b"user.a\0v", Resent(7, "setxattr", 5, b"user.a")),
        (resend.REMOVEXATTR, b"user.a\0", Resent(7, "removexattr", 5, b"user.a")),
        (15, bytes(40), None),
    ],
)
def test_a_request_is_known_by_thread_operation_and_names(opcode: int, body: bytes, known: Resent | None) -> None:
    assert describe(Request(1, opcode, 5, 7, body)) == known


def test_marked_requests_are_recalled_and_forgets_among_them_are_kept() -> None:
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, ours:
        kernel.send(sent(2 | UNIQUE_RESEND, resend.UNLINK, 5, b"a\0"))
        kernel.send(sent(0, resend.FORGET, 8, struct.pack("=Q", 3)))
        kernel.send(sent(5, resend.INTERRUPT, 0, struct.pack("=Q", 2)))
        kernel.send(sent(0, resend.BATCH_FORGET, 0, struct.pack("=IIQQQQ", 2, 0, 9, 1, 10, 2)))
        kernel.send(sent(4 | UNIQUE_RESEND, resend.RMDIR, 5, b"b\0"))
        kernel.send(sent(6, resend.MKDIR, 5, bytes(8) + b"new\0"))
        kernel.send(sent(8, resend.MKDIR, 5, bytes(8) + b"later\0"))
        found = recall(ours.fileno(), lambda requests: [])
        assert [(request.unique, request.opcode) for request in found.requests] == [
            (2, resend.UNLINK),
            (4, resend.RMDIR),
        ]
        assert found.forgotten == [(8, 3), (9, 1), (10, 2)]
        assert ours.recv(4096)[HEADER.size + 8 :] == b"later\0"  # behind the first that is new, nothing was read
        notification = OUT_HEADER.pack(16, 7, 0)
        assert [kernel.recv(100), kernel.recv(100)] == [notification, notification]
        assert os.get_blocking(ours.fileno())


def table(directory: Path, adopted: bool) -> InFlight:
    return InFlight(directory, adopted)


def test_a_record_in_flight_is_found_by_the_next_worker(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0)
    first = table(tmp_path, False)
    unlink = Unlink(1, b"a", 5, pid=7)
    journal.append(Unlink(1, b"before", 5, pid=7))
    first.begin("task", Place(journal.segment, journal.size))
    journal.append(unlink)
    journal.append(Unlink(1, b"behind", 5, pid=7))
    first.begin("another", Place(journal.segment, journal.size))  # and died before the record was there
    second = table(tmp_path, True)
    assert list(second.left_over(tmp_path).values()) == [unlink]
    assert list(table(tmp_path, True).left_over(tmp_path).values()) == [unlink]  # it died as well


def test_a_record_whose_request_was_answered_is_not_in_flight(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0)
    first = table(tmp_path, False)
    first.begin("task", Place(0, 0))
    journal.append(Make(1, b"a", 2, 0o100644, 0, 0, 5, pid=7))
    (slot,) = first.left_over(tmp_path)
    first.keep_only(set())
    assert table(tmp_path, True).left_over(tmp_path) == {}
    assert slot in range(SLOTS)


def test_notes_of_another_mount_do_not_count(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0)
    first = table(tmp_path, False)
    first.begin("task", Place(0, 0))
    journal.append(Make(1, b"a", 2, 0o100644, 0, 0, 5, pid=7))
    assert table(tmp_path, False).left_over(tmp_path) == {}


def test_the_table_holds_what_two_workers_can_have_in_hand(tmp_path: Path) -> None:
    first = table(tmp_path, False)
    for number in range(2 * 99):
        first.begin(number, Place(0, number))
    first.close()


def test_of_a_session_that_sleeps_nothing_is_asked_by_forgets_alone() -> None:
    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, ours:
        assert not is_asked(ours.fileno())
        kernel.send(sent(0, resend.FORGET, 8, struct.pack("=Q", 3)))
        kernel.send(sent(0, resend.BATCH_FORGET, 0, struct.pack("=IIQQ", 1, 0, 9, 1)))
        assert not is_asked(ours.fileno())
        kernel.send(sent(0, resend.FORGET, 8, struct.pack("=Q", 3)))
        kernel.send(sent(6, resend.MKDIR, 5, bytes(8) + b"new\0"))
        assert is_asked(ours.fileno())
        assert os.get_blocking(ours.fileno())


async def test_a_task_that_ends_once_it_has_answered_gives_its_note_back(tmp_path: Path) -> None:
    """pyfuse3 ends tasks when enough others wait for requests."""
    journal = Journal(tmp_path, 0)
    notes = table(tmp_path, False)
    trio.lowlevel.add_instrument(notes)

    async def request() -> None:
        notes.begin(trio.lowlevel.current_task(), Place(journal.segment, journal.size))
        journal.append(Unlink(1, b"a", 5, pid=7))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(request)
    assert table(tmp_path, True).left_over(tmp_path) == {}
    notes.give_up()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(request)
    assert list(table(tmp_path, True).left_over(tmp_path).values()) == [Unlink(1, b"a", 5, pid=7)]
