"""The keeper goes on whatever happens to it: the mounts of all sessions hang on this one process."""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from mount import keeper, rendezvous
from mount.channel import Call, Reply
from mount.config import Connection, MountConfig, Start
from mount.handshake import HAS_RESEND
from mount.keeper import Keeper, Kept

WORKER = 4242


class Keeping:
    """A keeper of one mount, in a thread. Its workers are told of, not forked; each ends with the mount."""

    def __init__(self, directory: Path, fork: Callable[[Keeping], int]) -> None:
        self.directory = directory / "work"
        self.directory.mkdir()
        config = MountConfig(session="work", mountpoint=b"/nowhere", state=os.fsencode(directory))
        connection = Connection(device="0:1", minor=41, max_readahead=0, flags=HAS_RESEND)
        self.request, mount = socket.socketpair()
        self.kept = Kept(Start(config=config, connection=connection, adopted=True), mount.detach(), None)
        self.tries = 0
        self._deaths, self._dying = os.pipe()
        self._adoptions, self._adopting = socket.socketpair()
        self._fork = fork
        self.keeper = Keeper({"work": self.kept}, self._employ, lambda: [(WORKER, 0)])
        self._thread = threading.Thread(target=lambda: self.keeper.run(self._deaths, self._adoptions), daemon=True)

    def _employ(self, kept: Kept, others: set[int]) -> int:
        self.tries += 1
        pid = self._fork(self)
        os.write(self._dying, b".")
        return pid

    def start(self) -> None:
        self._thread.start()

    def ends(self) -> bool:
        """Does it do so by itself, with nothing left to keep?"""
        self._thread.join(30)
        ended = not self._thread.is_alive() and not self.keeper._kept
        for end in (self._deaths, self._dying):
            os.close(end)
        connections = [key.fileobj for key in self.keeper._selector.get_map().values()]
        for sock in (*connections, self._adopting, self.request):
            if isinstance(sock, socket.socket):
                sock.close()
        self.keeper._selector.close()
        return ended

    def connect(self) -> socket.socket:
        while (sock := rendezvous.connect(self.directory)) is None:
            pass
        return sock


def test_a_worker_that_cannot_be_started_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "FIRST_DELAY", 0.0)

    def fork(keeping: Keeping) -> int:
        if keeping.tries < 4:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return WORKER

    keeping = Keeping(tmp_path, fork)
    keeping.kept.due = 0.0
    keeping.start()
    assert keeping.ends()
    assert keeping.tries == 4


@pytest.mark.parametrize("message", [b"\xc1", b"\xa2\xff\xff", b"\x91" * 9999, msgspec.msgpack.encode(Reply(1))])
def test_what_is_no_supervisor_s_message_is_not_listened_to(message: bytes, tmp_path: Path) -> None:
    keeping = Keeping(tmp_path, lambda _: WORKER)
    keeping.start()
    with keeping.connect() as strange:
        strange.send(message)
        assert strange.recv(100) == b""
    with keeping.connect() as supervisor:
        supervisor.send(msgspec.msgpack.encode(Call(1, "adopt", {})))
        assert msgspec.msgpack.decode(supervisor.recv(1000), type=Reply) == Reply(1)
        assert keeping.ends()


def test_who_connects_while_no_descriptor_is_left_is_answered_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeping = Keeping(tmp_path, lambda _: WORKER)
    accept, refusals = socket.socket.accept, [OSError(errno.EMFILE, "Too many open files")]

    def scarce(sock: socket.socket) -> tuple[socket.socket, object]:
        if refusals:
            raise refusals.pop()
        return accept(sock)

    monkeypatch.setattr(socket.socket, "accept", scarce)
    keeping.start()
    with keeping.connect() as supervisor:
        supervisor.send(msgspec.msgpack.encode(Call(1, "adopt", {})))
        assert msgspec.msgpack.decode(supervisor.recv(1000), type=Reply) == Reply(1)
        assert keeping.ends()
    assert not refusals
