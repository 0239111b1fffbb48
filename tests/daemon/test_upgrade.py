"""SIGHUP makes the daemon the program that is installed now; its sessions and their programs do not notice."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

from tests.daemon.serving import Serving, until


def test_the_daemon_upgrades_itself_under_live_sessions(serving: Callable[..., Serving]) -> None:
    daemon = serving()
    daemon.run("new", "work")
    daemon.run("mount", "work")
    before = daemon.worker("work")
    with (daemon.root / "work" / "file").open("wb", buffering=0) as file:
        file.write(b"before ")
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: "goes on under this supervisor" in daemon.log())
        file.write(b"and after")
    until(daemon._answers)
    until(lambda: daemon.worker("work") != before)
    assert (daemon.root / "work" / "file").read_bytes() == b"before and after"
    assert daemon.process.poll() is None
    assert os.path.ismount(daemon.root / "work")
