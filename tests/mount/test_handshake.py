"""The FUSE handshake: what the kernel is told, and that libfuse in a worker comes to the same conclusion."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mount import handshake
from mount.handshake import HEADER, INIT_IN, INIT_OUT, OUT_HEADER, Agreement, negotiate

EVERYTHING = 0xFFFF_FFFF_FFFF_FFFF


def offer(major: int = 7, minor: int = 45, flags: int = EVERYTHING) -> bytes:
    return INIT_IN.pack(major, minor, 131072, flags & 0xFFFFFFFF, flags >> 32)


def test_the_kernel_is_told_only_what_we_mean_to_use() -> None:
    agreed, _ = negotiate(offer())
    assert agreed.flags == handshake.WANTED
    for forbidden in (1 << 1, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 17, 1 << 19, 1 << 21, 1 << 24, 1 << 40):
        assert not agreed.flags & forbidden


def test_the_reply_says_what_was_agreed() -> None:
    agreed, reply = negotiate(offer())
    assert len(reply) == 64
    major, minor, readahead, low, _, _, max_write, granularity, max_pages, _, high, _, _ = INIT_OUT.unpack(reply)
    assert (major, minor, readahead, max_write, granularity, max_pages) == (7, 38, 131072, 1 << 20, 1, 256)
    assert low | high << 32 == agreed.flags


def test_an_older_kernel_gets_its_own_minor_and_no_flag_it_did_not_offer() -> None:
    known = handshake.REQUIRED | handshake.ASYNC_READ | handshake.INIT_EXT
    agreed, _ = negotiate(offer(minor=36, flags=known))
    assert agreed.minor == 36
    assert agreed.flags == known
    assert not agreed.can_resend


def test_flags2_count_only_if_the_kernel_says_that_they_are_there() -> None:
    agreed, _ = negotiate(offer(flags=EVERYTHING & ~handshake.INIT_EXT))
    assert agreed.flags >> 32 == 0


def test_a_short_init_of_an_old_kernel_is_read() -> None:
    agreed, _ = negotiate(offer(minor=31, flags=handshake.REQUIRED)[:16])
    assert agreed.minor == 31


@pytest.mark.parametrize("bad", [offer(major=8), offer(minor=12), offer(flags=handshake.ASYNC_READ)])
def test_a_kernel_that_cannot_do_is_refused_by_name(bad: bytes) -> None:
    with pytest.raises(OSError, match="too old"):
        negotiate(bad)


def test_a_libfuse_that_concludes_something_else_is_refused() -> None:
    agreed = Agreement(38, 131072, handshake.WANTED)
    head = OUT_HEADER.pack(OUT_HEADER.size + INIT_OUT.size, 0, 0)

    def reply(flags: int, max_write: int, readahead: int = 131072) -> bytes:
        low, high = flags & 0xFFFFFFFF, flags >> 32
        return head + INIT_OUT.pack(7, 38, readahead, low, 0, 0, max_write, 1, 256, 0, high, 0, 0)

    agreed.check(reply(handshake.REQUIRED, handshake.MAX_WRITE))
    for other in (
        reply(handshake.WANTED | 1 << 16, handshake.MAX_WRITE),
        reply(handshake.WANTED, 1 << 17),
        reply(handshake.WANTED, handshake.MAX_WRITE, 1 << 20),
    ):
        with pytest.raises(OSError, match="the kernel was told"):
            agreed.check(other)
    with pytest.raises(OSError, match="refused the replayed INIT"):
        agreed.check(OUT_HEADER.pack(OUT_HEADER.size, -71, 0))


LIBFUSE = """
import os, socket, sys
import pyfuse3, trio
from mount.handshake import Agreement, WANTED, INIT_OUT, OUT_HEADER, MAX_WRITE, MAX_PAGES

class Operations(pyfuse3.Operations):
    pass

agreed = Agreement(38, 131072, WANTED)
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
ours.send(agreed.request())
pyfuse3.init(Operations(), f"/dev/fd/{theirs.fileno()}")
ours.shutdown(socket.SHUT_WR)  # libfuse reads the end after INIT

async def run():
    with trio.move_on_after(5):
        await pyfuse3.main()

try:
    trio.run(run)
except* OSError:
    pass
reply = ours.recv(4096)
agreed.check(reply)
fields = INIT_OUT.unpack_from(reply, OUT_HEADER.size)
assert fields[6] == MAX_WRITE, fields
assert fields[8] == MAX_PAGES, fields
print("agreed")
"""


def test_libfuse_concludes_from_the_replayed_init_what_the_kernel_was_told() -> None:
    done = subprocess.run([sys.executable, "-c", LIBFUSE], capture_output=True, text=True, timeout=60)
    assert done.stdout == "agreed\n", done.stderr


def test_init_is_answered_and_the_agreement_can_be_replayed() -> None:
    """Over a socket in place of /dev/fuse: the bytes are what the kernel would send and get."""
    import socket

    kernel, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with kernel, ours:
        body = offer()
        kernel.send(HEADER.pack(HEADER.size + len(body), handshake.FUSE_INIT, 77, 0, 0, 0, 0, 0, 0) + body)
        agreed = handshake.answer(ours.fileno())
        length, error, unique = OUT_HEADER.unpack_from(answer := kernel.recv(4096))
    assert (length, error, unique) == (len(answer), 0, 77)
    assert negotiate(agreed.request()[HEADER.size :])[0] == agreed


def test_a_silent_kernel_is_not_waited_for_for_ever() -> None:
    read_end, write_end = os.pipe()
    with pytest.raises(TimeoutError, match="FUSE_INIT"):
        handshake.answer(read_end, timeout=0.01)
    os.close(read_end)
    os.close(write_end)
