from __future__ import annotations

import re
from datetime import UTC, timedelta

import msgspec
import pytest

from vfs.fileref import (
    build_file_ref,
    compute_checksum,
    generate_session_id,
    guess_content_type,
    validate_session_id,
)


def test_a_file_ref_says_what_the_content_is() -> None:
    ref = build_file_ref("output.xlsx", b"hello")
    assert (ref.path, ref.size, ref.storage_url) == ("output.xlsx", 5, None)
    assert ref.content_type == "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
    assert ref.checksum == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert ref.created_at.tzinfo is UTC and ref.created_at.utcoffset() == timedelta(0)
    given = build_file_ref("a", b"", content_type="x/y", checksum="c", storage_url="s3://b/a")
    assert (given.content_type, given.checksum, given.storage_url) == ("x/y", "c", "s3://b/a")


def test_a_file_ref_cannot_be_changed_and_survives_encoding() -> None:
    ref = build_file_ref("a.md", b"x")
    with pytest.raises(AttributeError):
        ref.size = 3  # type: ignore[misc]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(ref), type=type(ref)) == ref


def test_the_checksum_of_text_is_that_of_its_utf8() -> None:
    assert compute_checksum("é") == compute_checksum("é".encode()) == compute_checksum(memoryview("é".encode()))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("report.pdf", "application/pdf"),
        ("a/b.PNG", "image/png"),
        ("notes.md", "text/markdown"),
        ("main.py", "text/x-python"),
        ("x.svg", "image/svg+xml"),
        ("x.docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
        ("x.pptx", "application/vnd.openxmlformats-officedocument.presentationml.presentation"),
        ("x.parquet", "application/vnd.apache.parquet"),
        ("x.webp", "image/webp"),
        ("a.tar.gz", "application/gzip"),
        ("dir.md/file", "application/octet-stream"),
        ("noext", "application/octet-stream"),
        (".md", "application/octet-stream"),
        ("x.", "application/octet-stream"),
        ("Makefile", "text/x-makefile"),
        ("x.unknown", "application/octet-stream"),
    ],
)
def test_the_type_comes_from_the_extension(name: str, kind: str) -> None:
    assert guess_content_type(name) == kind


CONTRACT_EXTENSIONS = [
    "xlsx",
    "xls",
    "pdf",
    "json",
    "txt",
    "csv",
    "html",
    "xml",
    "png",
    "jpg",
    "jpeg",
    "gif",
    "zip",
    "tar",
    "gz",
]


@pytest.mark.parametrize("ext", CONTRACT_EXTENSIONS)
def test_every_type_of_the_contract_is_known(ext: str) -> None:
    assert guess_content_type(f"f.{ext}") != "application/octet-stream"


def test_generated_ids_are_16_urlsafe_characters_and_valid() -> None:
    ids = {generate_session_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{16}", i) and validate_session_id(i) == i for i in ids)


@pytest.mark.parametrize("bad", ["", ".", "..", "a/b", "a\0", "a b", ".hidden", "é", "a" * 129, "a\n"])
def test_an_id_that_could_leave_its_place_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="session id"):
        validate_session_id(bad)


@pytest.mark.parametrize("good", ["-abc", "_", "user.42", "Xt7kB9mP2Qw5nL3j"])
def test_ids_of_others_are_welcome(good: str) -> None:
    assert validate_session_id(good) == good
