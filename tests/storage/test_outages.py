"""A mounted session whose endpoint fails, in every way that networks, servers and people have.

Programs that write notice nothing, readers get an error in time, and afterwards the bucket holds what the session does,
each content once."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.daemon.serving import until
from tests.mount.test_real_use import tree
from tests.mounted import Mounted
from tests.storage.faults import Fault, FaultProxy, Seen
from tests.storage.servers import SECRET, Server
from tests.storage.test_mounted import ask, url

pytestmark = [pytest.mark.s3, pytest.mark.mount]

PATIENCE = "&read_patience=0.5&write_patience=0.5&request_timeout=3&lease_seconds=6"
PREFIX = "kept/work/"


@dataclass
class Stage:
    """A mount, the proxy before its server, and the bucket behind that, which keeps all versions."""

    mounted: Mounted
    storage: str
    proxy: FaultProxy
    server: Server
    bucket: str
    credentials: Path
    key: str = "key-0"

    @property
    def path(self) -> Path:
        return self.mounted.path

    def use_key(self, key: str) -> None:
        self.credentials.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {SECRET}\n")
        self.key = key

    def signed_with(self, key: str) -> Callable[[Seen], bool]:
        return lambda seen: key in seen.target or key in seen.headers.get("authorization", "")

    def put(self, name: str, content: bytes) -> None:
        """As another tool does."""
        self.server.client().put_object(Bucket=self.bucket, Key=PREFIX + name, Body=content)

    def held(self, name: str = "") -> dict[str, bytes]:
        """What the bucket holds at names that begin so, but for what is mount-session's own."""
        client = self.server.client()
        found = client.list_objects_v2(Bucket=self.bucket, Prefix=PREFIX + name).get("Contents", [])
        keys = [one["Key"] for one in found if "/.mount-session/" not in one["Key"]]
        return {key.removeprefix(PREFIX): client.get_object(Bucket=self.bucket, Key=key)["Body"].read() for key in keys}

    def versions(self, name: str) -> list[str]:
        """The ETags of everything that was ever stored under the name."""
        found = self.server.client().list_object_versions(Bucket=self.bucket, Prefix=PREFIX + name)
        return [one["ETag"].strip('"') for one in found.get("Versions", []) if one["Key"] == PREFIX + name]

    def refresh(self) -> None:
        """What is in the bucket now is in the mount, however slow this machine is today."""

        def refreshed() -> bool:
            try:
                return ask(self.mounted, "refresh") is not None
            except AssertionError:  # its patience is that of these tests
                return False

        until(refreshed)

    def settle(self) -> None:
        """All is in the bucket. Refused credentials are looked for anew every two seconds: a sync that comes too soon
        says what is pending."""

        def settled() -> bool:
            return ask(self.mounted, "sync")["pending"] == 0 or threading.Event().wait(0.5)

        until(settled, 60)

    def make_bucket(self) -> None:
        client = self.server.client()
        client.create_bucket(Bucket=self.bucket)
        client.put_bucket_versioning(Bucket=self.bucket, VersioningConfiguration={"Status": "Enabled"})

    def delete_bucket(self) -> None:
        client = self.server.client()
        self.proxy.down()  # else a renewal of the lease comes in between
        for page in client.get_paginator("list_object_versions").paginate(Bucket=self.bucket):
            for one in (*page.get("Versions", []), *page.get("DeleteMarkers", [])):
                client.delete_object(Bucket=self.bucket, Key=one["Key"], VersionId=one["VersionId"])
        client.delete_bucket(Bucket=self.bucket)
        self.proxy.up()


@pytest.fixture(scope="module")
def stage(moto: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("outages")
    (folder / "mnt").mkdir()
    with pytest.MonkeyPatch.context() as patch, FaultProxy(moto.url) as proxy:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "credentials"))
        bucket = f"outages-{os.getpid()}"
        storage = url(proxy.url, bucket, PATIENCE)
        stage = Stage(None, storage, proxy, moto, bucket, folder / "credentials")  # type: ignore[arg-type]
        stage.use_key("key-0")
        stage.make_bucket()
        stage.mounted = Mounted.up("work", folder / "mnt", folder / "state", ["--storage", storage], folder / "log")
        try:
            yield stage
            assert stage.mounted.stop()["pending"] == 0
        finally:
            stage.mounted.clean_up()


READS, WRITES = "GET|HEAD", "PUT|POST|DELETE"
FAULTS = {
    "refused": [],
    "resets": [Fault("reset body", READS), Fault("reset after", WRITES)],
    "truncated or 500": [Fault("truncate", READS), Fault("status", WRITES)],
    "slow down": [Fault("status", status=503, code="SlowDown")],
    "slow loris": [Fault("slow")],
    "wrong clock": [Fault("status", status=403, code="RequestTimeTooSkewed")],
    "rotated credentials": [Fault("status", status=403, code="ExpiredToken")],
}


def begin(stage: Stage, faults: list[Fault]) -> None:
    if not faults:
        stage.proxy.down()
    for fault in faults:
        if fault.code == "ExpiredToken":
            fault.when = stage.signed_with(stage.key)
        stage.proxy.add(fault)


def end(stage: Stage, faults: list[Fault]) -> None:
    if not faults:
        stage.proxy.up()
    elif faults[0].code == "ExpiredToken":
        stage.use_key("key-1")  # the old one is refused for good
    else:
        stage.proxy.clear()


@pytest.mark.parametrize("name", FAULTS)
def test_programs_go_on_readers_are_told_in_time_and_all_is_stored_once_it_is_over(stage: Stage, name: str) -> None:
    faults, here = FAULTS[name], stage.path / name
    here.mkdir()
    before = {"edited": b"1" * 5000, "moved": b"2" * 5000, "deleted": b"3" * 5000}
    for file, content in before.items():
        (here / file).write_bytes(content)
    stage.put(f"{name}/cold", b"cold" * 100_000)
    stage.settle()
    stage.refresh()
    begin(stage, faults)

    began = time.monotonic()
    fresh = {f"new{number}": os.urandom(3000) for number in range(20)}
    for file, content in fresh.items():
        (here / file).write_bytes(content)
    (here / "edited").write_bytes(b"edited")
    os.rename(here / "moved", here / "moved here")
    (here / "deleted").unlink()
    os.symlink("cold", here / "link")
    with (here / "new0").open("rb+") as opened:
        os.fsync(opened.fileno())
    assert {one.name: one.stat().st_size for one in here.iterdir()}["cold"] == 400_000
    assert time.monotonic() - began < 10

    began = time.monotonic()
    signal.alarm(60)
    with pytest.raises(OSError) as caught:
        (here / "cold").read_bytes()
    signal.alarm(0)
    assert caught.value.errno == errno.EIO
    assert time.monotonic() - began < 15
    assert all(fault.met for fault in faults)

    end(stage, faults)
    stage.settle()
    wanted = {**fresh, "edited": b"edited", "moved here": before["moved"], "cold": b"cold" * 100_000}
    assert stage.held(f"{name}/") == {f"{name}/{file}": content for file, content in wanted.items()}
    for file, content in wanted.items():
        once = {content, before[file]} if file in before else {content}
        assert set(stage.versions(f"{name}/{file}")) <= {hashlib.md5(one).hexdigest() for one in once}, file
    assert (here / "cold").read_bytes() == b"cold" * 100_000


def test_a_listing_that_changes_while_it_is_paged_loses_nothing_that_stays(stage: Stage) -> None:
    here = stage.path / "paged"
    here.mkdir()
    for number in range(40):
        (here / f"f{number:02d}").write_bytes(b"%d" % number)
    stage.settle()
    client, pages = stage.server.client(), 0

    def change(seen: Seen) -> bool:
        nonlocal pages
        pages += 1
        for number in (pages, 40 - pages):  # one before, one after the page that is asked for
            client.delete_object(Bucket=stage.bucket, Key=f"{PREFIX}paged/f{number:02d}")
            stage.put(f"paged/f{number:02d}-more", b"theirs")
        (here / f"mine{pages}").write_bytes(b"mine")
        return False

    stage.proxy.page = 7
    stage.proxy.add(Fault("reset", "GET", "list-type=2.*continuation-token", when=change))
    stage.refresh()
    stage.proxy.clear()
    assert pages > 4
    assert {f"f{number:02d}" for number in range(pages + 1, 40 - pages)} <= set(os.listdir(here))
    stage.refresh()
    stage.proxy.page = None
    stage.settle()
    held = {name.removeprefix("paged/"): content for name, content in stage.held("paged/").items()}
    assert {one.name: one.read_bytes() for one in here.iterdir()} == held
    assert {f"mine{number}" for number in range(1, pages + 1)} <= set(held)


def test_a_bucket_that_is_deleted_and_made_again_has_everything_again(stage: Stage, tmp_path: Path) -> None:
    here = stage.path / "deleted"
    here.mkdir()
    (here / "before").write_bytes(b"before")
    stage.put("deleted/cold", b"cold")
    stage.settle()
    stage.refresh()
    stage.delete_bucket()
    (here / "meanwhile").write_bytes(b"meanwhile")
    os.rename(here / "before", here / "renamed")
    with pytest.raises(OSError) as caught:
        (here / "cold").read_bytes()
    assert caught.value.errno == errno.EIO
    assert ask(stage.mounted, "status")["pending"] > 0
    stage.make_bucket()
    stage.refresh()
    stage.settle()
    stage.refresh()
    stage.settle()
    assert sorted(os.listdir(here)) == ["meanwhile", "renamed"]  # cold was nowhere else

    before = tree(stage.path)
    stage.mounted.clean_up()  # by SIGKILL
    options = ["--storage", stage.storage, "--steal"]
    stage.mounted = Mounted.up("work", stage.path, tmp_path / "elsewhere", options, tmp_path / "log")
    assert tree(stage.path) == before
    assert len(before) >= 3
