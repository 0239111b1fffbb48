"""With a service manager that keeps descriptors, a mount outlives the death of all processes of ours."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mount.channel import unpack_descriptors
from tests.mount.killing import DEADLINE, other_worker
from tests.mounted import COMMAND, Mounted, detach

Mount = Callable[..., Mounted]

# As systemd does it: the descriptor becomes number 3, the variables name it and the process that it is for.
LISTENING = """
import os, sys
if int(sys.argv[1]) != 3:
    os.dup2(int(sys.argv[1]), 3)
    os.close(int(sys.argv[1]))
os.environ.update(LISTEN_FDS="1", LISTEN_FDNAMES=sys.argv[2], LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[3], sys.argv[3:])
"""


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(DEADLINE)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield sock


def test_a_mount_goes_on_after_every_process_was_killed(mounted: Mount, manager: socket.socket) -> None:
    first = mounted("kept")
    told, ancillary, _, _ = manager.recvmsg(1000, socket.CMSG_SPACE(4))
    assert told == b"FDSTORE=1\nFDNAME=kept"
    (kept,) = unpack_descriptors(ancillary)
    file = os.open(first.path / "file", os.O_CREAT | os.O_RDWR)
    os.write(file, b"before")
    processes = first.processes()
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in processes:
            os.kill(pid, number)
    first.process.wait(DEADLINE)

    writing = threading.Thread(target=os.write, args=(file, b" and after"))
    writing.start()  # nobody serves it yet, and it is not refused
    command = [str(COMMAND), "up", "kept", str(first.path), "--state", str(first.state)]
    second = subprocess.Popen(
        [sys.executable, "-c", LISTENING, str(kept), "kept", *command], pass_fds=[kept], stdout=subprocess.PIPE
    )
    try:
        assert second.stdout is not None
        assert second.stdout.readline() == f"kept is mounted on {first.path}\n".encode()
        writing.join()
        assert os.pread(file, 100, 0) == b"before and after"
        os.close(file)
        os.close(kept)
        assert other_worker("kept", None)
        second.terminate()
        assert b'"files":1' in second.communicate(timeout=DEADLINE)[0]
    finally:
        second.kill()
        second.wait()
        detach(first.path)
    assert manager.recv(1000) == b"FDSTOREREMOVE=1\nFDNAME=kept"
    assert not (first.state / "kept" / "connection").exists()
