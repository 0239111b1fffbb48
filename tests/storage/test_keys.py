from __future__ import annotations

import errno

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfs.storage.keys import KEY_MAX, Keys, Misfit, decode, directories_of, encode, misfit

KEYS = Keys("sessions/", "work")

names = st.binary(min_size=1, max_size=40).filter(
    lambda raw: b"/" not in raw and b"\0" not in raw and raw not in (b".", b"..")
)
paths = st.lists(names, min_size=1, max_size=4).map(lambda raw: b"/".join(raw).decode("utf-8", "surrogateescape"))


@given(paths)
def test_every_path_has_a_key_of_its_own_and_comes_back(path: str) -> None:
    key = KEYS.key_of(path)
    assert KEYS.path_of(key) == path
    assert key.encode("utf-8")  # no lone surrogates: S3 keys are UTF-8
    assert all(ord(c) >= 32 and c not in "\x7f\ufffe\uffff" for c in key)


@given(st.text(max_size=30))
def test_no_two_keys_are_the_same_path(name: str) -> None:
    path = KEYS.path_of(KEYS.prefix + name)
    if isinstance(path, str) and not name.endswith("/"):
        assert KEYS.key_of(path) == KEYS.prefix + name


@given(st.lists(st.sampled_from(["\u201b", "\udcff", "F", "2E", "\udce2\udc80", "é", "\n"]), min_size=1).map("".join))
def test_quotes_among_quotes_come_back(path: str) -> None:
    assert decode(encode(path)) == path


def test_ordinary_names_are_their_own_keys() -> None:
    assert KEYS.key_of("src/main.py") == "sessions/work/src/main.py"
    assert encode("Übung #1 100%.md") == "Übung #1 100%.md"


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("a//b", "empty segment"),
        ("/a", "empty segment"),
        ("a//", "empty segment"),
        ("a/../b", "segment '.' or '..'"),
        ("..", "segment '.' or '..'"),
        ("./a", "segment '.' or '..'"),
        ("a\0b", "NUL"),
        ("a\u201b00b", "NUL"),
        ("n" * 256, "over 255 bytes"),
        ("é" * 128, "over 255 bytes"),
        ("a\u201b2Fb", "spells otherwise"),
        ("lone\u201b", "spells otherwise"),
        ("tab\there", "spells otherwise"),
        ("\u201b2E.", "segment '.' or '..'"),
    ],
)
def test_a_key_that_cannot_be_a_file_is_a_misfit(name: str, why: str) -> None:
    found = KEYS.path_of(KEYS.prefix + name)
    assert isinstance(found, Misfit)
    assert found.key == KEYS.prefix + name
    assert why in found.why


def test_our_own_objects_are_no_files_and_no_path_reaches_them() -> None:
    assert KEYS.path_of("sessions/work/.mount-session/image") is None
    assert KEYS.path_of("sessions/work/") is None
    for path in (".mount-session", ".mount-session/image"):
        assert not KEYS.key_of(path).startswith(KEYS.own.rstrip("/"))
        assert KEYS.path_of(KEYS.key_of(path)) == path
    assert KEYS.key_of("a/.mount-session") == "sessions/work/a/.mount-session"


def test_a_session_never_sees_the_keys_of_another() -> None:
    assert isinstance(KEYS.path_of("sessions/work2/f"), Misfit)
    assert not Keys("sessions/", "work2").prefix.startswith(KEYS.prefix)
    for bad in ("../x", "a/b", "", "."):
        with pytest.raises(ValueError, match="session id"):
            Keys("sessions/", bad)


@pytest.mark.parametrize("prefix", ["team/a", "team/a/", "/team/a/"])
def test_a_prefix_ends_with_one_slash(prefix: str) -> None:
    assert Keys(prefix, "work").prefix == "team/a/work/"
    assert Keys("", "work").prefix == "work/"


def test_a_path_that_no_key_can_be_is_refused_with_its_errno() -> None:
    with pytest.raises(OSError) as caught:
        KEYS.key_of("/".join(["d" * 200] * 6))
    assert caught.value.errno == errno.ENAMETOOLONG
    longest = "/".join(["a" * 252, "b" * 252, "c" * 252, "d" * (KEY_MAX - len(KEYS.prefix) - 759)])
    assert len(KEYS.key_of(longest)) == KEY_MAX
    for bad in ("a//b", "../x", ""):
        with pytest.raises(OSError) as caught:
            KEYS.key_of(bad)
        assert caught.value.errno == errno.EINVAL


def test_directories_are_all_that_paths_imply() -> None:
    assert directories_of(["a/b/c", "a/d", "e"]) == {"a", "a/b"}
    assert misfit("a/b") is None
