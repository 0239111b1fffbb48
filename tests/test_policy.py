"""A policy is refused where it is odd, never later; it takes effect at once."""

from __future__ import annotations

import errno
import stat
from pathlib import Path
from typing import Any

import pytest

from vfs.namespace import ROOT
from vfs.policy import Policy, parse, parse_size
from vfs.session import KERNEL, Session


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("10MB", 10**7),
        ("10MiB", 10 << 20),
        ("10M", 10 << 20),
        ("1.5g", 3 << 29),
        ("2 TB", 2 * 10**12),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "10X", "MB", "1e9", "0x10", "10 10"])
def test_a_size_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(ValueError, match="size"):
        parse_size(text)


def test_a_policy_is_parsed_from_what_a_person_writes() -> None:
    policy = parse({"uid": 1001, "umask": "027", "quota_bytes": "10GiB", "hidden": [".env"], "idle_seconds": 60})
    assert policy == Policy(uid=1001, umask=0o27, quota_bytes=10 << 30, hidden=(".env",), idle_seconds=60.0)
    assert policy.changed({"read_only": True, "uid": None}) == Policy(
        read_only=True, umask=0o27, quota_bytes=10 << 30, hidden=(".env",), idle_seconds=60.0
    )


@pytest.mark.parametrize(
    "fields",
    [
        {"uid": -1},
        {"uid": 2**32 - 1},
        {"uid": "root"},
        {"umask": "999"},
        {"umask": 0o1000},
        {"quota_bytes": "much"},
        {"quota_bytes": -1},
        {"hidden": ["a//b"]},
        {"hidden": "abc"},
        {"durability": "maybe"},
        {"qouta_bytes": 1},
        {"quota_bytes": 10, "soft_bytes": 11},
        {"idle_seconds": -1},
        {"idle_seconds": float("nan")},
        {"refresh_seconds": float("inf")},
    ],
)
def test_an_odd_policy_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        parse(fields)


async def test_a_change_of_policy_takes_effect_at_the_next_request(tmp_path: Path) -> None:
    async with Session.open("s", tmp_path) as session:
        session.mkdir(ROOT, b"before", 0o777, KERNEL)
        session.apply(Policy(read_only=True))
        with pytest.raises(OSError) as caught:
            session.mkdir(ROOT, b"refused", 0o777, KERNEL)
        assert caught.value.errno == errno.EROFS
        session.apply(Policy(umask=0o027, uid=1001, gid=1002))
        made = session.mkdir(ROOT, b"after", 0o777, KERNEL)
        assert (stat.S_IMODE(made.mode), made.uid, made.gid) == (0o750, 1001, 1002)
        assert session.symlink(ROOT, b"link", b"x", KERNEL).mode == stat.S_IFLNK | 0o777
