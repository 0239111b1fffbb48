"""Jobs that an agent's session really runs, timed on any directory: `python bench/jobs.py DIRECTORY TREE.tar [--json
FILE]`.

Each figure is the wall time of the job in seconds. Nothing is averaged here: machines drift, so `compare.py` runs the
subjects
in turn and gives medians and ratios of one run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

FILES = 2000
BIG = 512 << 20
PAGE = 4096

Job = Callable[[Path, Path], float]
JOBS: dict[str, Job] = {}


def job(function: Job) -> Job:
    JOBS[function.__name__] = function
    return function


def timed(*command: str | Path) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def drop_caches() -> None:
    """So that the next read comes from the file system under test; needs root."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


@job
def create_small(root: Path, tar: Path) -> float:
    """2,000 files of 4 KiB: create, write, close"""
    (root / "small").mkdir()
    block = os.urandom(PAGE)
    start = time.perf_counter()
    for i in range(FILES):
        with open(root / "small" / str(i), "wb", buffering=0) as file:
            file.write(block)
    return time.perf_counter() - start


@job
def read_small(root: Path, tar: Path) -> float:
    """read them"""
    start = time.perf_counter()
    for i in range(FILES):
        with open(root / "small" / str(i), "rb", buffering=0) as file:
            file.read()
    return time.perf_counter() - start


@job
def remove_small(root: Path, tar: Path) -> float:
    """rm -r them"""
    return timed("rm", "-r", root / "small")


@job
def untar(root: Path, tar: Path) -> float:
    """tar x of a source tree of thousands of files"""
    (root / "tree").mkdir()
    return timed("tar", "xf", tar, "--no-same-owner", "-C", root / "tree")


@job
def find(root: Path, tar: Path) -> float:
    """find with a stat of each, the second time"""
    timed("find", root / "tree", "-type", "f", "-printf", "%s\\n")
    return timed("find", root / "tree", "-type", "f", "-printf", "%s\\n")


@job
def grep_cold(root: Path, tar: Path) -> float:
    """grep -r after the kernel's caches were dropped"""
    drop_caches()
    return timed("grep", "-rc", "import", root / "tree")


@job
def grep_warm(root: Path, tar: Path) -> float:
    """the same again"""
    return timed("grep", "-rc", "import", root / "tree")


@job
def copy_tree(root: Path, tar: Path) -> float:
    """cp -a of the tree"""
    return timed("cp", "-a", root / "tree", root / "copy")


@job
def remove_tree(root: Path, tar: Path) -> float:
    """rm -rf of the copy"""
    return timed("rm", "-rf", root / "copy")


@job
def git(root: Path, tar: Path) -> float:
    """git init, add and commit of the tree, then status"""
    tree = root / "tree"
    start = time.perf_counter()
    configuration = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "safe.directory=*")
    for command in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "all"), ("status", "--porcelain")):
        timed("git", "-C", tree, *configuration, *command)
    return time.perf_counter() - start


@job
def sqlite(root: Path, tar: Path) -> float:
    """300 SQLite transactions, synchronous=FULL"""
    database = sqlite3.connect(root / "database", isolation_level=None)
    database.execute("create table t(a integer primary key, b text)")
    start = time.perf_counter()
    for _ in range(300):
        database.execute("begin")
        database.execute("insert into t(b) values (?)", ("x" * 200,))
        database.execute("commit")
    elapsed = time.perf_counter() - start
    database.close()
    return elapsed


@job
def write_big(root: Path, tar: Path) -> float:
    """512 MiB in writes of 1 MiB"""
    block = os.urandom(1 << 20)
    start = time.perf_counter()
    with open(root / "big", "wb", buffering=0) as file:
        for _ in range(BIG >> 20):
            file.write(block)
    return time.perf_counter() - start


def _read_big(root: Path) -> float:
    start = time.perf_counter()
    with open(root / "big", "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass
    return time.perf_counter() - start


@job
def read_big_cold(root: Path, tar: Path) -> float:
    """512 MiB read after the kernel's caches were dropped"""
    drop_caches()
    return _read_big(root)


@job
def read_big_warm(root: Path, tar: Path) -> float:
    """the same again"""
    return _read_big(root)


def _random_pages(root: Path, access: Callable[[int, int], object], flags: int) -> float:
    places = random.Random(1)
    fd = os.open(root / "big", flags)
    start = time.perf_counter()
    for _ in range(4000):
        access(fd, places.randrange(BIG // PAGE) * PAGE)
    os.fsync(fd)
    elapsed = time.perf_counter() - start
    os.close(fd)
    return elapsed


@job
def read_random(root: Path, tar: Path) -> float:
    """4,000 reads of 4 KiB at random, caches dropped"""
    drop_caches()
    return _random_pages(root, lambda fd, offset: os.pread(fd, PAGE, offset), os.O_RDONLY)


@job
def write_random(root: Path, tar: Path) -> float:
    """4,000 writes of 4 KiB at random, then fsync"""
    page = os.urandom(PAGE)
    return _random_pages(root, lambda fd, offset: os.pwrite(fd, page, offset), os.O_WRONLY)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("tar", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", help="names of jobs, with commas")
    arguments = parser.parse_args()
    names = arguments.only.split(",") if arguments.only else list(JOBS)
    root = arguments.directory / "jobs"
    root.mkdir()
    seconds: dict[str, float] = {}
    for name in names:
        seconds[name] = JOBS[name](root, arguments.tar)
        print(f"{name:14} {seconds[name]:9.4f}  {JOBS[name].__doc__}", file=sys.stderr, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(seconds))
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
