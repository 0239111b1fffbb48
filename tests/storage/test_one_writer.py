"""One writer, on real mounts: who is refused and told by whom, who may read, and what becomes of a holder that was
robbed or stood still."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from tests.daemon.serving import until
from tests.mount.test_events import events
from tests.mounted import Mounted
from tests.storage.servers import Server
from tests.storage.test_mounted import Mount, ask, credentials, synced, url

__all__ = ["credentials"]

pytestmark = pytest.mark.s3

QUICK = "&lease_seconds=3"


def refusal(mounted: Mount, storage: str, where: Path) -> str:
    """What a second mount of the session is told."""
    with pytest.raises(AssertionError) as caught:
        mounted("work", "--storage", storage, path=where / "mnt", state=where / "state")
    return str(caught.value)


def standing_still(mounted: Mounted) -> contextlib.ExitStack:
    """Its worker and its zygote do nothing until the block ends."""
    stack = contextlib.ExitStack()
    for pid in mounted.processes()[1:]:
        os.kill(pid, signal.SIGSTOP)
        stack.callback(os.kill, pid, signal.SIGCONT)
    return stack


@pytest.mark.parametrize("how", ["stolen", "expired"])
def test_who_lost_the_lease_stores_nothing_more_and_its_changes_are_kept_as_conflicts(
    mounted: Mount, moto: Server, tmp_path: Path, how: str
) -> None:
    storage = url(moto.url, moto.new_bucket(), QUICK)
    old = mounted("work", "--storage", storage)
    for name in ("both", "mine", "deleted there"):
        (old.path / name).write_bytes(b"first")
    synced(old)
    elsewhere = {"state": tmp_path / "elsewhere", "path": tmp_path / "new"}
    if how == "stolen":
        told = refusal(mounted, storage, tmp_path / "refused")
        assert f"is mounted by {os.uname().nodename}, process " in told and f"state {old.state}/work since 20" in told
        assert "--read-only" in told and "--steal" in told
        reader = mounted("work", "--storage", storage, "--read-only", state=tmp_path / "r", path=tmp_path / "reader")
        assert (reader.path / "both").read_bytes() == b"first"
        reader.stop()
        new = mounted("work", "--storage", storage, "--steal", **elsewhere)
    else:
        with standing_still(old):
            new = until(lambda: attempt(mounted, storage, elsewhere))
    (new.path / "both").write_bytes(b"of the new holder")
    (new.path / "deleted there").unlink()
    synced(new)
    until(lambda: "nothing more is written there" in old.log.read_text())
    (old.path / "both").write_bytes(b"of the old holder")
    (old.path / "mine").write_bytes(b"of the old holder too")
    (old.path / "deleted there").write_bytes(b"edited here")
    assert ask(old, "sync")["pending"] >= 3
    assert (old.path / "both").read_bytes() == b"of the old holder"
    old.process.terminate()
    assert old.process.wait(30) == 1  # something is pending
    assert (new.path / "both").read_bytes() == b"of the new holder"
    assert new.stop()["pending"] == 0

    again = mounted("work", "--storage", storage)
    synced(again)
    assert (again.path / "both").read_bytes() == b"of the new holder"
    assert (again.path / "both.conflict-work-1").read_bytes() == b"of the old holder"
    assert (again.path / "mine").read_bytes() == b"of the old holder too"
    assert (again.path / "deleted there").read_bytes() == b"edited here"
    assert ("conflict", "/both") in [(event["kind"], event["path"]) for event in events(again)]


def attempt(mounted: Mount, storage: str, elsewhere: dict[str, Path]) -> Mounted | None:
    try:
        return mounted("work", "--storage", storage, **elsewhere)
    except AssertionError as refused:
        assert "is mounted by" in str(refused)
        return None


def test_a_worker_killed_at_a_renewal_is_followed_by_one_with_the_same_lease(
    mounted: Mount, moto: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "died"
    storage = url(moto.url, moto.new_bucket(), QUICK)
    monkeypatch.setenv("MOUNT_SESSION_FAILPOINT", "s3.lease.renewed")
    monkeypatch.setenv("MOUNT_SESSION_FAILPOINT_MARK", str(mark))
    here = mounted("work", "--storage", storage)
    (here.path / "f").write_bytes(b"promised")
    synced(here)
    until(mark.exists)
    (here.path / "g").write_bytes(b"after the death")
    synced(here)
    assert "is mounted by" in refusal(mounted, storage, tmp_path / "refused")
    assert "taken over by" not in here.log.read_text()
    here.kill9()
    there = mounted("work", "--storage", storage, "--steal", state=tmp_path / "elsewhere", path=here.path)
    assert {one.name: one.read_bytes() for one in there.path.iterdir()} == {
        "f": b"promised",
        "g": b"after the death",
    }
