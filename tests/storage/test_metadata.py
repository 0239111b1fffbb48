from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfs.storage.metadata import LIMIT, attributes_of, parse, user_metadata


@given(st.integers(-(2**62), 2**62), st.integers(0, 0o7777))
def test_times_and_modes_come_back_to_the_nanosecond(mtime_ns: int, mode: int) -> None:
    found = parse(user_metadata({"mtime_ns": mtime_ns, "mode": mode}))
    assert (found.mtime_ns, found.mode, found.rest) == (mtime_ns, mode, {})


def test_it_is_what_rclone_writes_and_reads() -> None:
    written = user_metadata({"mtime_ns": 1_600_000_000_123_456_789, "mode": 0o755, "uid": 1001, "gid": 1001})
    assert written == {"mtime": "1600000000.123456789", "mode": "100755", "uid": "1001", "gid": "1001"}
    assert parse({"Mtime": "1600000000.5", "Mode": "100644"})[:2] == (1_600_000_000_500_000_000, 0o644)


@pytest.mark.parametrize(
    ("mode", "meaning"),
    [("33188", 0o644), ("100644", 0o644), ("0100600", 0o600), ("755", 0o755), ("99", None), ("x", None), ("", None)],
)
def test_modes_of_other_programs_are_understood(mode: str, meaning: int | None) -> None:
    assert parse({"mode": mode}).mode == meaning


@pytest.mark.parametrize("mtime", ["", "yesterday", "nan", "inf", "1e400", "1e999999", "2020-01-01"])
def test_a_time_that_is_none_is_left_out(mtime: str) -> None:
    assert parse({"mtime": mtime}).mtime_ns is None


def test_what_others_left_with_the_file_goes_back_as_far_as_headers_allow() -> None:
    others = {"author": "ann", "Title": "A b", "bad name": "x", "snow": "☃", "mode": "777", "sp": " x"}
    others["content-type"] = "x"
    assert user_metadata({"metadata": others, "mode": 0o600}) == {"mode": "100600", "author": "ann", "title": "A b"}
    assert parse({"Author": "ann", "Content-Type": "a/b"}).rest == {"author": "ann"}


def test_metadata_stays_within_what_s3_takes() -> None:
    found = user_metadata({"mtime_ns": 1, "metadata": {f"k{i}": "v" * 300 for i in range(20)}})
    assert sum(len(name) + len(value) for name, value in found.items()) <= LIMIT
    assert len(found) == 7


def test_the_content_type_is_the_contexts_or_the_names() -> None:
    assert attributes_of("a.py", {})["Content-Type"] == "text/x-python"
    assert attributes_of("a.py", {"content_type": "x/y"})["Content-Type"] == "x/y"
