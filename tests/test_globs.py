"""Globs mean what git says they mean."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vfs.globs import Globs


@pytest.mark.parametrize(
    ("pattern", "path", "matched"),
    [
        ("node_modules", "node_modules", True),
        ("node_modules", "web/node_modules/left-pad/index.js", True),
        ("node_modules", "node_modules2", False),
        ("*.pyc", "a/b/c.pyc", True),
        ("*.pyc", "c.pyc.txt", False),
        ("/build", "build/x", True),
        ("/build", "sub/build/x", False),
        ("a/b", "a/b", True),
        ("a/b", "x/a/b", False),
        ("a/*", "a/b/c", True),
        ("a/*/c", "a/b/b/c", False),
        ("a/**/c", "a/c", True),
        ("a/**/c", "a/b/b/c", True),
        ("**/c", "a/b/c", True),
        ("a/**", "a", False),
        ("a/**", "a/b/c", True),
        ("cache/", "cache/x", True),
        ("cache/", "cache", False),
        ("[!a]?", "bc", True),
        ("[!a]?", "ac", False),
        ("[]-]x", "]x", True),
        ("[a-c]", "b", True),
        (r"\*", "*", True),
        (r"\*", "a", False),
        (r"\!x", "!x", True),
        ("#x", "#x", True),
        ("?", "é", True),
        ("?", os.fsdecode(b"\xff"), True),
        ("x*y", "x\ny", True),
        (".env*", ".env.local", True),
        ("*", "a", True),
    ],
)
def test_a_pattern(pattern: str, path: str, matched: bool) -> None:
    assert Globs([pattern]).matches(path.split("/")) is matched


def test_the_last_pattern_decides_but_nothing_comes_back_below_a_matched_directory() -> None:
    globs = Globs(["*.log", "!keep.log", "tmp"])
    assert globs.matches(["a.log"])
    assert not globs.matches(["x", "keep.log"])
    assert globs.matches(["tmp", "keep.log"])


@pytest.mark.parametrize("pattern", ["", "/", "!", "a//b", "../a", "./a", "a\0", "[", "[]", "[z-a]", "x\\"])
def test_what_cannot_be_a_glob_is_refused_by_name(pattern: str) -> None:
    with pytest.raises(ValueError, match="glob") as caught:
        Globs([pattern])
    assert repr(pattern) in str(caught.value)


@pytest.mark.timeout(20)
def test_a_hostile_name_cannot_make_matching_slow() -> None:
    assert not Globs(["*a" * 60 + "b"]).matches(["a" * 255])


NAMES = st.text("abA.", min_size=1, max_size=4).filter(lambda name: name not in (".", ".."))
PATHS = st.lists(NAMES, min_size=1, max_size=4)
PIECES = st.sampled_from(["a", "b", "A", ".", "*", "?", "[ab]", "[!a]", "[a-b]", "\\a", "\\*"])
# Git's answer for `a**/**` and the path `a` comes from how it cuts the literal prefix off, against its own manual.
SEGMENTS = st.one_of(st.just("**"), st.lists(PIECES, min_size=1, max_size=3).map("".join)).filter(
    lambda segment: segment == "**" or (segment not in (".", "..") and "**" not in segment)
)
PATTERNS = st.builds(
    lambda takes_back, root, segments, directory: takes_back + root + "/".join(segments) + directory,
    st.sampled_from(["", "", "", "!"]),
    st.sampled_from(["", "", "/"]),
    st.lists(SEGMENTS, min_size=1, max_size=3),
    st.sampled_from(["", "", "/"]),
)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("repository")
    subprocess.run(["git", "init", "-q", directory], check=True)
    yield directory


@given(st.lists(PATTERNS, min_size=1, max_size=4), st.lists(PATHS, min_size=1, max_size=8))
@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_globs_agree_with_git(repository: Path, patterns: list[str], paths: list[list[str]]) -> None:
    (repository / ".git/info/exclude").write_text("".join(f"{pattern}\n" for pattern in patterns))
    for made in repository.iterdir():
        if made.name != ".git":
            shutil.rmtree(made)
    for path in paths:
        repository.joinpath(*path).mkdir(parents=True, exist_ok=True)
    directories = {"/".join(path) for path in paths}
    asked = directories | {f"{path}/ab" for path in directories}
    asked -= {path for path in asked - directories if (repository / path).is_dir()}
    answer = subprocess.run(
        ["git", "-C", repository, "check-ignore", "--no-index", "--stdin", "-z"],
        input="".join(f"{path}\0" for path in asked).encode(),
        stdout=subprocess.PIPE,
        check=False,
    )
    assert answer.returncode in (0, 1)
    ignored = set(answer.stdout.decode().split("\0")[:-1])
    globs = Globs(patterns)
    assert {path for path in asked if globs.matches(path.split("/"), path in directories)} == ignored
