from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from vfs.storage.local import LocalStorage
from vfs.storage.s3 import S3Storage
from vfs.storage.tigris import TigrisStorage
from vfs.storage.url import open_storage


class Azure(LocalStorage):
    """A backend of a user's own."""

    def __init__(self, container: str = "default") -> None:
        super().__init__()
        self.container = container


@pytest.fixture(autouse=True)
def their_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("their_app")
    module.Azure = Azure  # type: ignore[attr-defined]
    module.NoStorage = dict  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "their_app", module)


def test_local_is_the_state_directory_alone() -> None:
    assert open_storage("local") is None


def test_a_file_url_is_a_directory_that_is_kept() -> None:
    storage = open_storage("file:///var/data%20x")
    assert isinstance(storage, LocalStorage)
    assert (storage.base_path, storage.prefix, storage.cleanup_on_exit) == (Path("/var/data x"), "", False)


def test_an_s3_url_names_bucket_prefix_and_options() -> None:
    storage = open_storage("s3://bucket/team/a?endpoint=http://127.0.0.1:9000&region=eu-west-1&requester_pays=true")
    assert isinstance(storage, S3Storage)
    assert (storage.endpoint.bucket, storage.prefix) == ("bucket", "team/a/")
    assert (storage.endpoint.url, storage.endpoint.region) == ("http://127.0.0.1:9000", "eu-west-1")
    assert storage.endpoint.requester_pays is True
    plain = open_storage("s3://bucket?read_patience=3")
    assert isinstance(plain, S3Storage)
    assert (plain.prefix, plain.endpoint.read_patience) == ("sessions/", 3.0)


def test_tigris_needs_no_configuration_on_fly(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("BUCKET_NAME", "from-fly")
    storage = open_storage("tigris")
    assert isinstance(storage, TigrisStorage)
    assert (storage.endpoint.bucket, storage.endpoint.url) == ("from-fly", "https://fly.storage.tigris.dev")
    assert storage.endpoint.region == "auto"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://t3.storage.dev")
    monkeypatch.setenv("AWS_REGION", "ams")
    named = open_storage("tigris://other/pre")
    assert isinstance(named, TigrisStorage)
    assert (named.endpoint.bucket, named.prefix) == ("other", "pre/")
    assert (named.endpoint.url, named.endpoint.region) == ("https://t3.storage.dev", "ams")
    monkeypatch.delenv("BUCKET_NAME")
    with pytest.raises(ValueError, match="set BUCKET_NAME"):
        open_storage("tigris")


def test_a_backend_of_ones_own_is_found_by_module_and_class() -> None:
    assert isinstance(open_storage("their_app:Azure"), Azure)
    storage: Any = open_storage("their_app:Azure?container=sessions")
    assert storage.container == "sessions"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("s3://", "s3://bucket/prefix is needed"),
        ("file://host/dir", "absolute"),
        ("nonsense", "module:Class is needed"),
        ("ftp://x/y", "module:Class is needed"),
        ("their_app:Missing", "Missing"),
        ("no_such_module_at_all:X", "no_such_module_at_all"),
        ("their_app:NoStorage", "is no storage: it lacks cleanup, delete"),
        ("s3://b?colour=red", "unknown option colour; the options are"),
        ("s3://b?requester_pays=perhaps", "true or false"),
        ("s3://b?endpoint=127.0.0.1", "http:// or https://"),
        ("s3://b?addressing=sideways", "sideways"),
        ("file:///d?colour=red", "colour"),
        ("s3://b?secret_access_key=hush", "do not belong in a URL"),
        ("s3://key:hush@b", "do not belong in a URL"),
        ("s3://b?aws_secret_access_key=hush", "unknown option aws_secret_access_key"),
        ("s3://b?hush", "name=value"),
        ("s3://b?endpoint=http://key:hush@host", "do not belong in an endpoint's URL; use the environment"),
        ("s3://b?endpoint=key:hush@host", "do not belong in an endpoint's URL; use the environment"),
    ],
)
def test_what_is_wrong_is_said_without_secrets(url: str, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        open_storage(url)
    assert why in str(caught.value)
    assert "hush" not in str(caught.value)
