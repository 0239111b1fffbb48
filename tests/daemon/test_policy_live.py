"""Each field of a policy is in force when the change of it returns: on the same mount, with files open and cached."""

from __future__ import annotations

import errno
import json
import mmap
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.serving import Serving, until


@contextmanager
def same_mount(daemon: Serving) -> Iterator[Path]:
    """The session `a`, which is neither mounted anew nor loses an open file in the block."""
    root = daemon.root / "a"
    (root / "held").write_text("held")
    device = root.stat().st_dev
    with (root / "held").open() as held:
        yield root
        assert root.stat().st_dev == device
        assert held.read() == "held"


@pytest.fixture
def root(daemon: Serving) -> Iterator[Path]:
    daemon.run("new", "a")
    with same_mount(daemon) as root:
        yield root


@pytest.fixture
def store(daemon: Serving, tmp_path: Path) -> Path:
    """Where the session `a` is kept, a directory."""
    (tmp_path / "store").mkdir()
    daemon.run("new", "a", "--storage", f"file://{tmp_path}/store")
    return tmp_path / "store"


def kept(store: Path, name: str) -> bytes | None:
    """What the storage holds of the file."""
    found = [path for path in store.rglob(name) if path.is_file()]
    return found[0].read_bytes() if found else None


def refused(number: int, what: str, *arguments: Any) -> None:
    with pytest.raises(OSError) as caught:
        getattr(os, what)(*arguments)
    assert caught.value.errno == number


def soft_limits(daemon: Serving) -> list[dict[str, Any]]:
    lines = daemon.run("events", "a").stdout.splitlines()
    return [event["limit"] for event in map(json.loads, lines) if event["kind"] == "soft_limit"]


def test_owner_and_umask(daemon: Serving, root: Path) -> None:
    (root / "dir").mkdir()
    before = [path.stat().st_uid for path in (root, root / "dir", root / "held")]
    daemon.run("policy", "a", "--uid", "1001", "--gid", "1002", "--umask", "027")
    for path in (root, root / "dir", root / "held"):
        assert (path.stat().st_uid, path.stat().st_gid) == (1001, 1002)
    (root / "new").write_text("x")
    assert stat.S_IMODE((root / "new").stat().st_mode) == 0o640
    for field in ("uid", "gid", "umask"):
        daemon.run("policy", "a", "--unset", field)
    assert [path.stat().st_uid for path in (root, root / "dir", root / "held")] == before
    (root / "newer").write_text("x")
    assert stat.S_IMODE((root / "newer").stat().st_mode) == 0o644


def test_read_only_holds_for_open_files_and_loses_no_mapped_page(daemon: Serving, root: Path) -> None:
    file = root / "file"
    file.write_bytes(b"before" + bytes(8186))
    with file.open("r+b", buffering=0) as opened:
        with mmap.mmap(opened.fileno(), 8192) as mapped:
            mapped[:6] = b"mapped"
            daemon.run("policy", "a", "--read-only")
        fd = opened.fileno()
        for change in (("pwrite", fd, b"x", 0), ("ftruncate", fd, 0), ("unlink", file), ("mkdir", root / "dir")):
            refused(errno.EROFS, *change)
        refused(errno.EROFS, "open", file, os.O_WRONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fd, 6, 0) == b"mapped"
        daemon.run("policy", "a", "--read-write")
        assert os.pwrite(fd, b"after", 0) == 5
    assert file.read_bytes()[:6] == b"afterd"


def test_what_is_hidden_though_the_kernel_has_it_cached(daemon: Serving, store: Path) -> None:
    with same_mount(daemon) as root:
        (root / "secrets/deep").mkdir(parents=True)
        for name in ("secrets/deep/key", ".env", "plain"):
            (root / name).write_text(name)
        assert sorted(os.listdir(root)) == [".env", "held", "plain", "secrets"]
        worker = daemon.worker("a")
        daemon.run("policy", "a", "--hidden", ".env", "--hidden", "secrets")
        assert sorted(os.listdir(root)) == ["held", "plain"]
        for name in (".env", "secrets", "secrets/deep", "secrets/deep/key"):
            refused(errno.ENOENT, "stat", root / name)
        refused(errno.ENOENT, "mkdir", root / ".env")
        daemon.run("policy", "a", "--unset", "hidden")
        assert [(root / name).read_text() for name in (".env", "secrets/deep/key")] == [".env", "secrets/deep/key"]
        assert daemon.worker("a") == worker


def test_what_is_local_only_is_not_stored_and_is_once_it_is_not(daemon: Serving, store: Path) -> None:
    with same_mount(daemon) as root:
        daemon.run("policy", "a", "--local-only", "*.tmp")
        (root / "a.tmp").write_text("only here")
        (root / "file").write_text("stored")
        daemon.run("sync", "a")
        assert (kept(store, "a.tmp"), kept(store, "file")) == (None, b"stored")
        daemon.run("policy", "a", "--unset", "local_only")
        assert until(lambda: kept(store, "a.tmp")) == b"only here", "without being written again"


def test_limits(daemon: Serving, root: Path) -> None:
    with (root / "file").open("wb", buffering=0) as opened:
        opened.write(b"x" * 1000)
        daemon.run("policy", "a", "--quota-bytes", "2004", "--quota-inodes", "2")
        told = os.statvfs(root)
        assert (told.f_blocks, told.f_files, told.f_ffree) == (2004 // told.f_frsize, 2, 0)
        assert opened.write(b"x" * 4000) == 1000, "what fits beside the four bytes of the other file"
        refused(errno.EDQUOT, "write", opened.fileno(), b"x")
        refused(errno.EDQUOT, "mkdir", root / "dir")
        daemon.run("policy", "a", "--quota-bytes", "10", "--quota-inodes", "1", "--max-file-bytes", "100")
        (root / "held").rename(root / "file")
        (root / "file").unlink()
        refused(errno.EFBIG, "ftruncate", opened.fileno(), 3000)
        for field in ("quota_bytes", "quota_inodes"):
            daemon.run("policy", "a", "--unset", field)
        refused(errno.EFBIG, "write", opened.fileno(), b"x")
        daemon.run("policy", "a", "--unset", "max_file_bytes")
        assert opened.write(b"x" * 4000) == 4000
    assert os.statvfs(root).f_blocks > 2004
    (root / "held").write_text("held")


def test_a_soft_limit_that_is_passed_already_is_an_event_and_one_that_stays_is_not_told_again(
    daemon: Serving, root: Path
) -> None:
    (root / "file").write_bytes(b"x" * 100)
    daemon.run("policy", "a", "--soft-bytes", "50", "--soft-inodes", "1")
    first = [{"of": "bytes", "used": 104, "limit": 50}, {"of": "inodes", "used": 2, "limit": 1}]
    assert until(lambda: soft_limits(daemon)) == first
    daemon.run("policy", "a", "--soft-inodes", "3")
    with (root / "file").open("ab") as file:
        file.write(b"x" * 100)
    for name in ("third", "fourth"):
        (root / name).mkdir()
    last = {"of": "inodes", "used": 4, "limit": 3}
    assert until(lambda: (found := soft_limits(daemon))[-1] == last and found) == [*first, last]


def test_idle_time(daemon: Serving, root: Path) -> None:
    daemon.run("policy", "a", "--idle-seconds", "0.2")
    until(lambda: daemon.json("status", "a")["worker"]["phase"] == "idle")
    daemon.run("policy", "a", "--unset", "idle_seconds")
    assert daemon.json("status", "a")["worker"]["phase"] == "serving"


def test_durability(daemon: Serving, store: Path) -> None:
    with same_mount(daemon) as root, (root / "file").open("wb", buffering=0) as opened:
        daemon.run("policy", "a", "--durability", "remote")
        opened.write(b"safe")
        os.fsync(opened.fileno())
        assert kept(store, "file") == b"safe", "at once, though it is still open"


def test_cache_limit(daemon: Serving, store: Path) -> None:
    with same_mount(daemon) as root:
        for number in range(4):
            (root / f"{number}").write_bytes(b"%d" % number * 100_000)
        daemon.run("sync", "a")

        def here() -> int:
            content = daemon.state / "a/content"
            return sum(path.stat().st_size for path in content.iterdir() if path.name.isdecimal())

        assert here() > 400_000
        for limit in (250_000, 150_000, 0):
            daemon.run("policy", "a", "--cache-bytes", str(limit))
            assert here() <= limit
            daemon.run("policy", "a", "--unset", "cache_bytes")
            assert [(root / f"{number}").read_bytes()[:1] for number in range(4)] == [b"0", b"1", b"2", b"3"]
