"""Progress bars: on a terminal, and nowhere else."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.daemon.serving import COMMAND, PROJECT, Serving

BAR = "\N{BOX DRAWINGS HEAVY HORIZONTAL}"


@contextlib.contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    ends = pty.openpty()
    try:
        yield ends
    finally:
        for fd in ends:
            os.close(fd)


def shown(daemon: Serving, *arguments: str, begun: Callable[[], object] = lambda: None) -> str:
    """What a command, which must succeed, writes to a terminal; its standard output goes elsewhere. `begun` is called
    when there is something."""
    with terminal() as (ours, theirs):
        command = [*COMMAND, arguments[0], "--state", str(daemon.state), *arguments[1:]]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
        process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=theirs, env=environment)
        os.set_blocking(ours, False)
        text = b""
        while process.poll() is None:
            with contextlib.suppress(BlockingIOError):
                text += os.read(ours, 65536)
                begun()
        with contextlib.suppress(BlockingIOError):
            text += os.read(ours, 65536)
        assert process.returncode == 0, text
    return text.decode()


@pytest.mark.parametrize("command", [("sync",), ("rm", "--purge")])
def test_what_waits_for_the_storage_counts_what_is_done(
    command: tuple[str, ...], daemon: Serving, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    daemon.run("new", "a", "--callbacks", "tests.daemon.slow:STORE", "--scope", json.dumps(str(gate)))
    for n in range(80):
        (daemon.root / "a" / str(n)).write_text("x")
    told = shown(daemon, *command, "a", begun=gate.touch)
    counts = [(int(done), int(most)) for done, most in re.findall(r"(\d+)/(\d+)", told)]
    assert counts and counts == sorted(counts) and 0 < counts[-1][0] <= counts[-1][1] <= 81


def test_an_export_shows_its_bytes_on_a_terminal_alone(daemon: Serving) -> None:
    daemon.run("new", "a")
    (daemon.root / "a/file").write_bytes(os.urandom(20_000_000))
    bar = shown(daemon, "export", "a")
    assert BAR in bar and re.search(r"[\d.]+/20.0 MB", bar)
    for quiet in (daemon.run("export", "a"), daemon.run("sync", "a"), daemon.run("rm", "a", "--purge")):
        assert quiet.stderr == b""
