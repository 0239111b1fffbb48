"""What agents' tools do with files (list by pattern, read a range, replace, find, create, move, delete) is plain POSIX
through the mount: the shell's own programs do it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.container import Container
from tests.mounted import Mounted
from tests.storage import servers

Mount = Callable[..., Mounted]
Start = Callable[..., Container]


def shell(directory: Path, script: str) -> str:
    """The script's standard output; one that fails fails the test."""
    done = subprocess.run(["bash", "-ec", script], cwd=directory, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_list_read_range_replace_and_find_are_the_shells_own(mounted: Mount) -> None:
    work = mounted().path
    shell(
        work,
        "mkdir -p docs/deep; seq 1 1000 > numbers; for f in a.md docs/b.md docs/deep/c.md d.txt; do echo $f > $f; done",
    )
    assert shell(work, "shopt -s globstar; ls -1 **/*.md") == "a.md\ndocs/b.md\ndocs/deep/c.md\n"
    assert shell(work, "find . -name '*.md' | sort") == "./a.md\n./docs/b.md\n./docs/deep/c.md\n"
    assert shell(work, "sed -n 250,252p numbers; tail -n +999 numbers | head -n 1") == "250\n251\n252\n999\n"
    assert shell(work, "sed -i 's/^500$/five hundred/' numbers; grep -n five numbers; wc -l < numbers") == (
        "500:five hundred\n1000\n"
    )
    assert (
        shell(work, "grep -rn --include='*.md' docs . | sort")
        == "./docs/b.md:1:docs/b.md\n./docs/deep/c.md:1:docs/deep/c.md\n"
    )
    assert (
        shell(work, "set -C; echo x 2> /dev/null > a.md || echo exists; echo new > e.md; cat e.md") == "exists\nnew\n"
    )
    refused = "mv -n a.md d.txt 2> /dev/null || true"  # newer coreutils count that as a failure
    assert shell(work, f"{refused}; cat a.md d.txt; mv docs papers; ls papers") == "a.md\nd.txt\nb.md\ndeep\n"
    assert shell(work, "rm a.md; rm -r papers; rm -f a.md; ls") == "d.txt\ne.md\nnumbers\n"
    assert shell(work, "printf 'a\\0b\\xff' > bytes; : > empty; od -An -c bytes; stat -c %s empty") == (
        "   a  \\0   b 377\n0\n"
    )


def test_what_a_container_writes_is_in_the_bucket(
    mounted: Mount, container: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", servers.ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", servers.SECRET)
    with servers.moto(tmp_path) as server:
        bucket = server.new_bucket()
        storage = f"s3://{bucket}/sessions?endpoint={server.url}&region=us-east-1"
        session = mounted("work", "--storage", storage, "--uid", "1001", "--gid", "1001")
        assert container(session.path, "mkdir out; echo answer > out/result; cat out/result").finish() == "answer\n"
        assert container(session.path, "echo more >> out/result; echo b > b").finish() == ""
        assert session.stop()["pending"] == 0
        client = server.client()
        assert client.get_object(Bucket=bucket, Key="sessions/work/out/result")["Body"].read() == b"answer\nmore\n"
        assert client.get_object(Bucket=bucket, Key="sessions/work/b")["Body"].read() == b"b\n"
