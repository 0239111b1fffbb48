"""A session mounted by the real command in a process of its own, as a user has it.

A Mounted is one run of `mount-session up`, from its one line on standard output to its receipt. It can be killed with
everything that it started, and leaves no mount behind.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mount.mountpoint import parse_mountinfo

MOUNTS = Path("/proc/self/mountinfo")
COMMAND = Path(sys.executable).parent / "mount-session"
DEADLINE = 30.0  # seconds until a session is mounted, or stopped; both take well under one when the machine is idle


def run(*command: str | Path, cwd: Path | None = None, timeout: float = 120) -> str:
    """Runs a program that must succeed, and returns its standard output."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"{command}: {done.stderr[-4000:]}{done.stdout[-4000:]}"
    return done.stdout


@dataclass
class Mounted:
    session: str
    path: Path
    state: Path
    process: subprocess.Popen[bytes]
    log: Path
    line: str = ""

    @classmethod
    def up(cls, session: str, path: Path, state: Path, options: Sequence[str], log: Path) -> Mounted:
        """Mounts, and returns when the command has said that real I/O works."""
        command = [str(COMMAND), "up", "--state", str(state), *options, "--", session, str(path)]
        with log.open("ab") as stderr:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr)
        mounted = cls(session, path, state, process, log)
        try:
            mounted.line = mounted._read_line()
            assert os.path.ismount(path), mounted.line
        except BaseException:
            mounted.clean_up()
            raise
        return mounted

    def stop(self, how: signal.Signals = signal.SIGTERM) -> dict[str, Any]:
        """Asks it to end and returns the receipt; fails unless it ended with status 0 and nothing mounted."""
        self.process.send_signal(how)
        output, _ = self.process.communicate(timeout=DEADLINE)
        assert self.process.returncode == 0, f"status {self.process.returncode}: {self._tail()}"
        assert not os.path.ismount(self.path)
        receipt = json.loads(output)
        assert isinstance(receipt, dict)
        return receipt

    def processes(self) -> list[int]:
        """The command and everything that it has started, itself first."""
        children: dict[int, list[int]] = {}
        for entry in filter(str.isdigit, os.listdir("/proc")):
            try:
                stat = Path("/proc", entry, "stat").read_text()
            except (FileNotFoundError, ProcessLookupError):  # ended since the listing
                continue
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry))
        found = [self.process.pid]
        for pid in found:
            found.extend(children.get(pid, ()))
        return found

    def kill9(self) -> None:
        """SIGKILL to all of its processes at once; the dead mount is taken away, so that `up` can follow."""
        self._kill()
        detach(self.path)

    def clean_up(self) -> None:
        if self.process.poll() is None:
            self._kill()
        if self.process.stdout:
            self.process.stdout.close()
        detach(self.path)

    def _kill(self) -> None:
        # The supervisor restarts a worker that dies, so it goes first, and stopped ones cannot start another.
        processes = self.processes()
        for signal_number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in processes:
                try:
                    os.kill(pid, signal_number)
                except ProcessLookupError:  # ended by itself, which is what is wanted
                    continue
        self.process.wait(timeout=DEADLINE)

    def _read_line(self) -> str:
        assert self.process.stdout is not None
        end, line = time.monotonic() + DEADLINE, b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, end - time.monotonic()))
            assert ready, f"not mounted after {DEADLINE} s: {self._tail()}"
            byte = os.read(self.process.stdout.fileno(), 1)
            assert byte, f"ended with status {self.process.wait(DEADLINE)}: {self._tail()}"
            line += byte
        return line.decode().rstrip("\n")

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]


def detach(path: Path) -> None:
    """Takes a mount away, dead or alive, whoever still uses it."""
    if not any(entry.mountpoint == os.fsencode(path) for entry in parse_mountinfo(MOUNTS.read_bytes())):
        return
    if os.geteuid() == 0:
        lazily = 2  # MNT_DETACH, umount2(2)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.umount2(os.fsencode(path), lazily) != 0:
            raise OSError(ctypes.get_errno(), "umount2", str(path))
    else:
        subprocess.run(["fusermount3", "-u", "-z", path], check=True)
