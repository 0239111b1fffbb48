"""One service for many sessions: they come and go by command and by API, and come back with it."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from mount import durable
from mount.address import short_path
from mount.client import Refused
from mount.config import Receipt
from mount.daemon import Daemon
from mount.listener import CONNECTIONS
from mount.messages import NewSession
from mount.registry import Definition, Registry
from mount.settings import Settings
from tests.daemon.serving import Serving, until

Serve = Callable[..., Serving]


def test_a_sessions_whole_life_by_command(daemon: Serving) -> None:
    made = daemon.json("new", "desk", "--label", "team=a")
    assert (made["session"], made["state"], made["mountpoint"]) == ("desk", "mounted", str(daemon.root / "desk"))
    (daemon.root / "desk/file").write_text("content")
    assert daemon.json("sync", "desk") == {"session": "desk", "files": 1, "bytes": 7, "pending": 0}
    assert daemon.json("wait", "desk")["healthy"] is True
    assert daemon.run("ls", "-q").stdout == b"desk\n"
    assert daemon.run("ls", "-q", "--label", "team=b").stdout == b""
    assert daemon.json("unmount", "desk")["files"] == 1
    assert daemon.mounts() == [] and daemon.json("status", "desk")["state"] == "unmounted"
    assert daemon.json("mount", "desk")["state"] == "mounted"
    assert (daemon.root / "desk/file").read_text() == "content"
    daemon.run("rm", "desk", status=5)
    assert (daemon.root / "desk/file").read_text() == "content", "a refused rm harms nothing"
    daemon.run("rm", "desk", "nope", "--purge", status=4)
    assert (daemon.root / "desk/file").read_text() == "content", "nor one that names another that is not there"
    assert daemon.json("rm", "desk", "--purge") == {"session": "desk", "removed": True, "purged": True}
    assert daemon.run("ls", "-q").stdout == b"" and not (daemon.state / "desk").exists()
    assert not (daemon.root / "desk").exists()


def test_exit_statuses_tell_scripts_what_happened(serving: Serve, tmp_path: Path) -> None:
    daemon = serving()
    assert daemon.shell("new", "a").status == 0
    assert daemon.shell("new", "a").status == 5
    daemon.run("status", "nope", status=4)
    daemon.run("status", "../x", status=4)
    daemon.run("status", ".x", status=1)
    daemon.run("new", "b", "--quota-bytes", "lots", status=1)
    daemon.run("new", "b", "--no-such-option", status=2)
    daemon.run("unmount", "a")
    daemon.run("wait", "a", "--timeout", "0.2", status=6)
    daemon.stop()
    daemon.run("ls", status=3)


def test_generated_ids_and_ids_that_begin_with_a_dash(daemon: Serving) -> None:
    generated = daemon.run("new").stdout.decode().strip()
    assert len(generated) == 16
    assert daemon.run("new", "-dashed-").stdout == b"-dashed-\n"
    assert daemon.json("status", "-dashed-")["state"] == "mounted"
    (daemon.root / "-dashed-/x").write_text("x")
    daemon.run("rm", "--purge", "-dashed-")
    daemon.run("rm", "--purge", "--", generated)
    assert daemon.mounts() == []


def test_sessions_come_back_after_a_restart_and_after_a_power_cut(serving: Serve, tmp_path: Path) -> None:
    first = serving()
    for name in ("a", "b", "c"):
        first.run("new", name, "--uid", "1001")
        (first.root / name / "file").write_text(name)
    first.run("unmount", "c")
    first.stop()
    second = serving()
    until(lambda: len(second.mounts()) == 2)
    assert [(second.root / name / "file").read_text() for name in ("a", "b")] == ["a", "b"]
    assert (second.root / "a/file").stat().st_uid == 1001
    second.kill9()
    third = serving()
    until(lambda: len(third.mounts()) == 2)
    assert [(third.root / name / "file").read_text() for name in ("a", "b")] == ["a", "b"]
    assert third.json("status", "c")["state"] == "unmounted"


def test_a_second_signal_ends_the_waiting_for_a_storage_that_does_not_answer(serving: Serve, tmp_path: Path) -> None:
    daemon = serving()
    gate = tmp_path / "gate"
    daemon.run("new", "work", "--callbacks", "tests.daemon.slow:STORE", "--scope", json.dumps(str(gate)))
    (daemon.root / "work" / "file").write_bytes(b"kept")
    daemon.process.terminate()
    until(lambda: not daemon.mounts())
    daemon.stop()
    again = serving()
    again.run("wait", "work")
    assert (again.root / "work" / "file").read_bytes() == b"kept"
    gate.touch()


def test_one_session_that_cannot_be_mounted_holds_up_no_other_and_is_tried_again(serving: Serve) -> None:
    first = serving()
    for name in ("a", "b"):
        first.run("new", name)
    first.stop()
    (first.root / "a").mkdir(exist_ok=True)
    (first.root / "a").rmdir()
    (first.root / "a").write_text("in the way")
    second = serving()
    until(lambda: second.json("status", "b")["state"] == "mounted")
    assert "not a directory" in until(lambda: second.json("status", "a")["error"])
    health = second.json("health", status=1)
    assert not health["ready"] and [failing["session"] for failing in health["failing"]] == ["a"]
    (second.root / "a").unlink()
    until(lambda: second.json("status", "a")["state"] == "mounted")
    assert second.json("health")["ready"]


def test_a_policy_change_takes_effect_without_a_remount(serving: Serve) -> None:
    daemon = serving(policy={"quota_bytes": "1MB"})
    daemon.run("new", "a", "--uid", "1001", "--umask", "027")
    file = daemon.root / "a/file"
    file.write_bytes(b"x" * 1000)
    assert (file.stat().st_uid, file.stat().st_mode & 0o777) == (1001, 0o640)
    assert os.statvfs(daemon.root / "a").f_blocks * os.statvfs(daemon.root / "a").f_frsize <= 10**6
    worker = daemon.worker("a")
    daemon.run("policy", "a", "--uid", "1002", "--quota-bytes", "2000", "--read-only")
    assert file.stat().st_uid == 1002, "also what the kernel had cached"
    with pytest.raises(OSError, match="Read-only"):
        file.write_bytes(b"y")
    daemon.run("policy", "a", "--read-write")
    with pytest.raises(OSError, match="quota"), file.open("ab") as grown:
        grown.write(b"x" * 2000)
        grown.flush()
    daemon.run("policy", "a", "--unset", "quota_bytes")
    file.write_bytes(b"z" * 4000)
    assert daemon.worker("a") == worker
    assert daemon.json("status", "a")["policy"] == {"uid": 1002, "umask": 0o27}
    daemon.run("policy", "a", "--quota-bytes=-1", status=1)


def test_what_is_hidden_can_be_changed_while_it_is_used(daemon: Serving) -> None:
    daemon.run("new", "a")
    secret, plain = daemon.root / "a/.env", daemon.root / "a/plain"
    secret.write_text("hush")
    plain.write_text("x")
    with plain.open() as held:
        for _ in range(2):
            daemon.run("policy", "a", "--hidden", ".env")
            assert not secret.exists() and sorted(os.listdir(daemon.root / "a")) == ["plain"]
            daemon.run("policy", "a", "--unset", "hidden")
            assert secret.read_text() == "hush"
        assert held.read() == "x"


def test_refresh_and_flush_reach_the_storage(daemon: Serving, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    daemon.run("new", "a", "--storage", f"file://{store}")
    (daemon.root / "a/mine").write_text("mine")
    daemon.run("flush", "a")
    daemon.run("sync", "a")
    (tree,) = {path.parent for path in store.rglob("mine")}
    (tree / "theirs").write_text("theirs")
    assert daemon.json("refresh", "a")["new"] == 1
    assert (daemon.root / "a/theirs").read_text() == "theirs"
    daemon.run("new", "b")
    assert daemon.json("refresh", "b") == {"new": 0, "changed": 0, "gone": 0}


def test_a_policy_survives_the_death_of_the_worker(daemon: Serving) -> None:
    daemon.run("new", "a")
    daemon.run("policy", "a", "--quota-inodes", "1")
    (daemon.root / "a/one").write_text("1")
    os.kill(daemon.worker("a"), signal.SIGKILL)
    with pytest.raises(OSError, match="quota"):
        (daemon.root / "a/two").write_text("2")


def test_umount_by_hand_is_a_stop_whose_receipt_is_in_the_status(daemon: Serving) -> None:
    daemon.run("new", "a")
    (daemon.root / "a/f").write_text("1")
    subprocess.run(["umount", str(daemon.root / "a")], check=True)
    until(lambda: daemon.json("status", "a")["state"] == "unmounted")
    assert daemon.json("status", "a")["receipt"] == {"session": "a", "files": 1, "bytes": 1, "pending": 0}
    daemon.run("mount", "a")
    assert (daemon.root / "a/f").read_text() == "1"


async def test_on_a_full_disk_an_umount_by_hand_is_remembered_later(
    autojump_clock: MockClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(root=str(tmp_path / "root"), state=str(tmp_path))
    (settings.own / "registry").mkdir(parents=True)
    Registry(settings.own / "registry").put(Definition(session="a", storage="local"))
    stub: Any = None
    daemon = Daemon(settings, stub, stub, stub, stub)
    hosted, write = daemon.hosted["a"], durable.write
    mounted: Any = SimpleNamespace(gone=trio.Event(), receipt=Receipt("a", 1, 1, 0))
    hosted.mounted, failures = mounted, [OSError(errno.ENOSPC, "No space left on device")] * 2

    def scarce(path: Path, content: bytes) -> None:
        if failures:
            raise failures.pop()
        write(path, content)

    monkeypatch.setattr(durable, "write", scarce)
    mounted.gone.set()
    await daemon._watch(hosted, mounted)
    assert not failures and hosted.state == "unmounted"
    remembered = Registry(settings.own / "registry").get("a")
    assert not remembered.mounted and remembered.receipt is not None


def test_clients_that_are_gone_take_up_no_connection(daemon: Serving) -> None:
    with short_path(daemon.socket) as path:
        for _ in range(CONNECTIONS + 50):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
    began = time.monotonic()
    assert daemon.run("ls", "-q").stdout == b""
    assert time.monotonic() - began < 20


def test_a_second_daemon_on_the_same_state_is_refused(daemon: Serving) -> None:
    done = subprocess.run(
        [*(sys.executable, "-m", "mount.cli", "serve"), "--root", str(daemon.root), "--state", str(daemon.state)],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 1 and "another `mount-session serve`" in done.stderr
    daemon.run("new", "still-works")


def test_a_template_is_copied_in_or_nothing_is_made(daemon: Serving, tmp_path: Path) -> None:
    template = tmp_path / "template"
    (template / "dir/empty").mkdir(parents=True)
    (template / "dir/file").write_text("from the template")
    (template / "link").symlink_to("dir/file")
    daemon.run("new", "a", "--template", str(template))
    assert (daemon.root / "a/link").read_text() == "from the template"
    assert (daemon.root / "a/dir/empty").is_dir()
    daemon.run("new", "b", "--template", str(template), "--quota-bytes", "3", status=7)
    assert daemon.run("ls", "-q").stdout == b"a\n" and not (daemon.state / "b").exists()


def test_new_leaves_nothing_behind_when_it_fails(daemon: Serving) -> None:
    daemon.run("new", "a", "--storage", "nonsense://x", status=1)
    assert daemon.run("ls", "-q").stdout == b""
    assert not (daemon.state / "a").exists() and not (daemon.root / "a").exists()
    daemon.run("new", "a")


def test_requests_for_different_sessions_do_not_wait_for_each_other(daemon: Serving) -> None:
    daemon.run("new", "a")
    daemon.run("new", "b")
    os.kill(daemon.worker("a"), signal.SIGSTOP)
    try:
        assert daemon.json("wait", "b", "--timeout", "2")["healthy"]
        status = daemon.json("status", "a")
        assert status["worker"]["answers"] is False and "files" not in (k for k, v in status.items() if v is not None)
        assert len(daemon.run("ls", "-q").stdout.split()) == 2
    finally:
        os.kill(daemon.worker("a"), signal.SIGCONT)


def test_the_api_tells_itself(daemon: Serving) -> None:
    with daemon.client() as client:
        document = client.openapi()
        assert document["openapi"].startswith("3.1")
        assert {"get", "post"} <= document["paths"]["/v1/sessions"].keys()
        named = json.dumps(document)
        for reference in {part.split('"')[0] for part in named.split('"$ref": "#/components/schemas/')[1:]}:
            assert reference in document["components"]["schemas"]
        status = client.new(NewSession(session="a"))
        required = document["components"]["schemas"]["SessionStatus"]["required"]
        assert all(hasattr(status, name) for name in required)
        with pytest.raises(Refused) as caught:
            client.new(NewSession(session="a"))
        assert (caught.value.status, caught.value.problem.errno) == (409, "EEXIST")


def test_what_was_done_is_in_an_audit_log_that_verifies(serving: Serve) -> None:
    daemon = serving()
    daemon.run("new", "a")
    daemon.run("policy", "a", "--quota-bytes", "5")
    daemon.run("rm", "a", "--purge")
    assert daemon.json("verify")["seq"] == 3
    log = daemon.state / ".daemon/registry/audit.log"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["action"], line["session"], line["actor"]["uid"]) for line in lines] == [
        ("session.new", "a", os.getuid()),
        ("session.policy", "a", os.getuid()),
        ("session.remove", "a", os.getuid()),
    ]
    log.write_text(log.read_text().replace('"quota_bytes":"5"', '"quota_bytes":"6"'))
    assert b"line 2" in daemon.run("verify", status=5).stderr


def test_sessions_are_limited_by_the_hosts_hard_limit_of_open_files_alone(serving: Serve) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(512, hard), hard))
    try:
        daemon = serving()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE) == (hard, hard)
