"""`mount-session up`: one line when real I/O works, a receipt at the end, and refusals that say what to do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mounted import COMMAND, Mounted, detach

Mount = Callable[..., Mounted]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become someone else")
CONF = Path("/etc/fuse.conf")


def up(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """An `up` that is expected to end by itself."""
    return subprocess.run([str(COMMAND), "up", *map(str, arguments)], capture_output=True, text=True, timeout=30)


def titles(pids: list[int]) -> list[str]:
    done = subprocess.run(
        ["ps", "-o", "args=", "-p", ",".join(map(str, pids))], capture_output=True, text=True, check=True
    )
    return [line.strip() for line in done.stdout.splitlines()]


def test_one_line_says_that_it_is_mounted_and_a_receipt_ends_it(mounted: Mount) -> None:
    session = mounted("work")
    assert session.line == f"work is mounted on {session.path}"
    (session.path / "a").write_bytes(b"12345")
    (session.path / "d").mkdir()
    (session.path / "d" / "b").write_bytes(b"678")
    assert session.stop() == {"session": "work", "files": 2, "bytes": 8, "pending": 0}


def test_ctrl_c_ends_it_like_sigterm(mounted: Mount) -> None:
    session = mounted("work")
    (session.path / "a").write_bytes(b"1")
    assert session.stop(signal.SIGINT)["files"] == 1


REFUSING = """
class Down:
    def on_write(self, scope, path, content, context):
        raise OSError(5, "the storage is down")

storage = Down()
"""


def test_a_second_signal_ends_the_waiting_for_a_storage_that_is_down(
    mounted: Mount, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "refusing.py").write_text(REFUSING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    session = mounted("work", "--callbacks", "refusing:storage")
    (session.path / "a").write_bytes(b"kept")
    session.process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        session.process.wait(1.5)
    session.process.terminate()
    output, _ = session.process.communicate(timeout=30)
    assert session.process.returncode == 1
    assert json.loads(output)["pending"] == 1
    assert (mounted("work").path / "a").read_bytes() == b"kept"


def test_everything_is_there_again_at_the_next_up(mounted: Mount) -> None:
    first = mounted("work")
    (first.path / "a").write_bytes(b"1")
    first.stop()
    assert not list(first.path.iterdir())
    second = mounted("work")
    assert (second.path / "a").read_bytes() == b"1"


def test_a_ctrl_c_of_the_terminal_that_reaches_every_process_ends_it_cleanly(mounted: Mount) -> None:
    session = mounted("work")
    (session.path / "a").write_bytes(b"1")
    for pid in reversed(session.processes()):
        os.kill(pid, signal.SIGINT)
    output, _ = session.process.communicate(timeout=30)
    assert session.process.returncode == 0
    assert json.loads(output)["files"] == 1


def test_the_probe_leaves_no_trace(mounted: Mount) -> None:
    session = mounted("work")
    before = session.path.stat()
    assert list(session.path.iterdir()) == []
    session.stop()
    again = mounted("work")
    after = again.path.stat()
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)
    kept = [path for path in (again.state / "work").rglob("*") if path.is_file()]
    assert not [path for path in kept if path.name.startswith("tmp")]
    assert not [path for path in kept if b".mount-session-" in path.read_bytes()]


def test_ps_says_who_is_who(mounted: Mount) -> None:
    session = mounted("a-session")
    assert sorted(titles(session.processes())) == [
        "mount-session: supervisor",
        "mount-session: worker a-session",
        "mount-session: zygote",
    ]


def test_a_read_only_session_can_be_read_and_nothing_else(mounted: Mount) -> None:
    first = mounted("work")
    (first.path / "a").write_bytes(b"1")
    first.stop()
    session = mounted("work", "--read-only")
    assert (session.path / "a").read_bytes() == b"1"
    with pytest.raises(OSError, match="Read-only"):
        (session.path / "a").write_bytes(b"2")
    assert session.stop()["bytes"] == 1


@needs_root
def test_uid_and_gid_own_everything_in_the_session(mounted: Mount) -> None:
    session = mounted("work", "--uid", "1001", "--gid", "1002")
    (session.path / "a").write_bytes(b"1")
    for path in (session.path, session.path / "a"):
        assert (path.stat().st_uid, path.stat().st_gid) == (1001, 1002)


def test_a_session_id_may_begin_with_a_dash(tmp_path: Path) -> None:
    for arguments in (
        ["-abc", "MNT"],
        ["--", "-abc", "MNT"],
        ["-abc", "MNT", "--gid=5"],
        ["--gid", "5", "-abc", "MNT"],
    ):
        path = tmp_path / "mnt"
        path.mkdir(exist_ok=True)
        command = [str(COMMAND), "up", *(str(path) if a == "MNT" else a for a in arguments)]
        environment = {**os.environ, "MOUNT_SESSION_STATE": str(tmp_path / "state")}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True)
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == f"-abc is mounted on {path}\n"
            process.terminate()
            assert json.loads(process.communicate(timeout=30)[0])["session"] == "-abc"
        finally:
            process.kill()
            detach(path)
    assert (tmp_path / "state" / "-abc" / "session.json").exists()


def test_many_files_at_once_do_with_few_descriptors(tmp_path: Path) -> None:
    """As under a hard limit that cannot be raised."""
    path = tmp_path / "mnt"
    path.mkdir()
    command = ["prlimit", "--nofile=256:256", str(COMMAND), "up", "few", str(path), "--state", str(tmp_path / "state")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None

    def work(part: int) -> None:
        files = [(path / f"{part}-{n}").open("w+b", buffering=0) for n in range(100)]
        for n, file in enumerate(files):
            file.write(b"%d" % n)
            if n % 10 == 0:
                os.fsync(file.fileno())
        for n, file in enumerate(files):
            assert os.pread(file.fileno(), 10, 0) == b"%d" % n
            file.close()

    try:
        assert "is mounted on" in process.stdout.readline()
        with ThreadPoolExecutor(10) as pool:
            list(pool.map(work, range(10)))
        process.terminate()
        assert json.loads(process.communicate(timeout=30)[0])["files"] == 1000
    finally:
        process.kill()
        detach(path)


def test_help_is_enough_to_learn_it() -> None:
    done = up("--help")
    assert done.returncode == 0
    for word in ("SESSION", "MOUNTPOINT", "--state", "--uid", "--gid", "--read-only", "SIGTERM", "receipt", "Example"):
        assert word in done.stdout
    assert "  up " in subprocess.run([str(COMMAND), "--help"], capture_output=True, text=True, check=True).stdout


def refused(tmp_path: Path, session: str, mountpoint: Path, says: str) -> None:
    done = up("--state", tmp_path / "state", "--", session, mountpoint)
    assert done.returncode == 1
    assert done.stdout == ""
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_mountpoint_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "work", tmp_path / "nowhere", "create the directory first")


def test_a_mountpoint_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused(tmp_path, "work", tmp_path / "file", "not a directory")


def test_a_directory_that_is_a_mount_is_refused(mounted: Mount, tmp_path: Path) -> None:
    session = mounted("one")
    refused(tmp_path, "two", session.path, "unmount it first")


@pytest.mark.parametrize("session", ["a/b", ".", "..", "", "../x", "a\nb"])
def test_an_id_that_is_no_name_is_refused(tmp_path: Path, session: str) -> None:
    (tmp_path / "mnt").mkdir()
    refused(tmp_path, session, tmp_path / "mnt", "session id")
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("number", ["-1", "4294967295", "root"])
def test_what_is_no_user_id_is_refused_with_the_option_s_name(tmp_path: Path, number: str) -> None:
    done = up("--state", tmp_path / "state", f"--uid={number}", "--", "work", tmp_path)
    assert done.returncode == 2
    assert "'--uid'" in done.stderr


def test_a_state_directory_in_use_is_refused(mounted: Mount, tmp_path: Path) -> None:
    mounted("work")
    (tmp_path / "other").mkdir()
    refused(tmp_path, "work", tmp_path / "other", "in use by another process")


def test_a_state_directory_of_an_unknown_version_is_refused(mounted: Mount, tmp_path: Path) -> None:
    session = mounted("work")
    session.stop()
    about = tmp_path / "state" / "work" / "session.json"
    about.write_text(about.read_text().replace('"version":1', '"version":99'))
    refused(tmp_path, "work", session.path, "unknown version 99")
    about.write_text(about.read_text().replace('"version":99', '"version":1'))


@needs_root
def test_a_state_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "mnt").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", tmp_path / "state"], check=True)
    try:
        refused(tmp_path, "work", tmp_path / "mnt", "Read-only file system; let this user write here, or choose")
        assert not os.path.ismount(tmp_path / "mnt")
    finally:
        detach(tmp_path / "state")


@needs_root
def test_no_fuse_device_is_refused_with_what_to_do(tmp_path: Path) -> None:
    """In a mount namespace with an empty /dev of its own."""
    (tmp_path / "mnt").mkdir()
    script = 'mount --make-rprivate / && mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", script, "sh", str(COMMAND), "up", "--state", str(tmp_path / "state")]
    done = subprocess.run([*command, "work", str(tmp_path / "mnt")], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "modprobe fuse" in done.stderr


def test_unmounting_from_outside_ends_it_with_the_receipt(mounted: Mount) -> None:
    session = mounted("work")
    (session.path / "a").write_bytes(b"1")
    subprocess.run(["umount" if os.geteuid() == 0 else "fusermount3 -u", session.path], check=True)
    output, _ = session.process.communicate(timeout=30)
    assert session.process.returncode == 0
    assert json.loads(output) == {"session": "work", "files": 1, "bytes": 1, "pending": 0}


def test_what_still_holds_the_mount_is_named_and_nothing_is_lost(mounted: Mount) -> None:
    session = mounted("work")
    with (session.path / "open").open("wb", buffering=0) as file:
        file.write(b"acknowledged")
        holder = subprocess.Popen(["sleep", "1000"], cwd=session.path)
        assert session.stop()["bytes"] == 12
        holder.kill()
        holder.wait()
        with pytest.raises(OSError):
            file.write(b"too late")
    log = session.log.read_text()
    assert f"still in use by process {holder.pid} (sleep): its cwd is in it" in log
    assert f"process {os.getpid()}" in log
    assert (mounted("work").path / "open").read_bytes() == b"acknowledged"


def test_a_write_through_a_mapping_is_kept_when_it_stops(mounted: Mount) -> None:
    import mmap

    session = mounted("work")
    path = session.path / "mapped"
    path.write_bytes(bytes(8192))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 8192) as area:
        area[4096:4100] = b"kept"
        assert session.stop()["bytes"] == 8192
    assert (mounted("work").path / "mapped").read_bytes()[4096:4100] == b"kept"


def test_the_supervisor_knows_neither_pyfuse3_nor_a_storage_client() -> None:
    script = (
        "import sys, mount.supervisor, mount.commands.up\n"
        "print([m for m in ('pyfuse3', 'boto3', 'botocore', 'obstore', 's3transfer') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_the_zygote_has_one_thread_when_it_forks(mounted: Mount) -> None:
    session = mounted("work")
    (zygote,) = [p for p in session.processes() if "zygote" in Path(f"/proc/{p}/cmdline").read_text()]
    assert len(os.listdir(f"/proc/{zygote}/task")) == 1


def test_up_is_ready_soon(mounted: Mount) -> None:
    began = time.monotonic()
    mounted("work")
    assert time.monotonic() - began < 10
