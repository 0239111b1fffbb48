"""The configuration file is taken whole or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mount.commands.new import command as new
from mount.commands.policy import command as policy
from mount.commands.up import command as up
from mount.policyflags import policy_of
from mount.settings import Webhook, Workers, load
from vfs.policy import Policy, parse

FULL = """
root = "/srv/sessions"
state = "/var/lib/ms"
group = "agents"
docker = "/run/docker/plugins/mount-session.sock"
metrics = "127.0.0.1:9464"
at_once = 4
deadline = 5.0
storage = "s3://bucket/prefix"

[policy]
uid = 1001
umask = "022"
quota_bytes = "10GiB"
hidden = [".env"]

[workers]
uids = [200000, 65536]

[[webhooks]]
url = "https://example.org/hook"
secret_file = "/etc/mount-session/secret"
events = ["synced", "conflict"]
"""


def test_every_key_is_understood(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(FULL)
    settings = load(file, root="/other", state=None)
    assert (settings.root, settings.state, settings.at_once) == ("/other", "/var/lib/ms", 4)
    assert settings.policy == Policy(uid=1001, umask=0o22, quota_bytes=10 << 30, hidden=(".env",))
    assert settings.workers == Workers(uids=(200000, 65536))
    assert settings.webhooks[0].events == ("synced", "conflict")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("rooot = '/x'", "rooot"),
        ("root = 5", "root"),
        ("root = '/x'\n[policy]\nquota_bytes = 'lots'", "size"),
        ("root = '/x'\n[policy]\nqouta = 1", "qouta"),
        ("root = '/x'\nat_once = 0", "at_once"),
        ("root = '/x'\n[[webhooks]]\nurl = 'ftp://x'", "ftp://x"),
        ("root = '/x'\n[[webhooks]]\nurl = 'http://'", "http://"),
        ("root = '/x'\n[[webhooks]]\nurl = 'http://a..b/'", "http://a..b/"),
        ("root = '/x'\n[[webhooks]]\nurl = 'http://exa mple.org/'", "exa mple"),
        ("root = '/x'\n[[webhooks]]\nurl = 'http://[::1/'", "http://[::1/"),
        ("root = '/x'\n[[webhooks]]\nurl = 'http://xn--a/'", "xn--a"),
        ("root = '/x'\n[[webhooks]]\nurl = 'http://localhost:99999/'", "99999"),
        ("root = [", "document"),
        ("", "root"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(text: str, named: str, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    with pytest.raises(ValueError) as caught:
        load(file)
    assert named in str(caught.value) and str(file) in str(caught.value)


def test_a_webhook_reads_its_secret_without_the_newline(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hush\n")
    assert Webhook(url="http://x", secret_file=str(tmp_path / "secret")).secret() == b"hush"


def test_the_operators_guide_shows_every_key_and_is_taken(tmp_path: Path) -> None:
    guide = (Path(__file__).parent.parent.parent / "docs/operations.md").read_text()
    file = tmp_path / "config.toml"
    file.write_text(guide.split("```toml\n")[1].split("```")[0])
    settings = load(file)
    for struct in (settings, settings.policy, settings.workers, settings.webhooks[0]):
        for field in struct.__struct_fields__:
            assert f"{field} =" in file.read_text() or field in ("policy", "workers", "webhooks"), field
    assert settings.policy.quota_bytes == 10 << 30 and settings.webhooks[0].events == ("synced", "conflict", "error")


def test_a_policy_is_the_same_from_flags_from_toml_and_from_the_api(tmp_path: Path) -> None:
    wanted = Policy(
        uid=1001,
        gid=1002,
        umask=0o27,
        read_only=True,
        hidden=(".env", "*.key"),
        local_only=("node_modules",),
        quota_bytes=10 << 30,
        quota_inodes=1000,
        soft_bytes=8 << 30,
        soft_inodes=900,
        max_file_bytes=4 << 30,
        idle_seconds=60.0,
        durability="remote",
        cache_bytes=20 << 30,
        cache_wait=5.0,
        refresh_seconds=0.0,
    )
    assert all(getattr(wanted, field) != getattr(Policy(), field) for field in Policy.__struct_fields__)
    fields: dict[str, Any] = {"hidden": [".env", "*.key"], "local_only": ["node_modules"], "read_only": True}
    fields |= {"uid": 1001, "gid": 1002, "umask": "027", "quota_inodes": 1000, "soft_inodes": 900}
    fields |= {"quota_bytes": "10GiB", "soft_bytes": "8GiB", "max_file_bytes": "4GiB", "cache_bytes": "20GiB"}
    fields |= {"idle_seconds": 60.0, "durability": "remote", "cache_wait": 5.0, "refresh_seconds": 0.0}
    assert Policy().changed(fields) == wanted, "as the API takes it"

    lines = [f"{name} = {json.dumps(value)}" for name, value in fields.items()]
    (tmp_path / "config.toml").write_text("root = '/x'\n[policy]\n" + "\n".join(lines))
    assert load(tmp_path / "config.toml").policy == wanted

    flags: list[str] = []
    for name, value in fields.items():
        flag = f"--{name.replace('_', '-')}"
        for one in value if isinstance(value, list) else [value]:
            flags += [flag] if one is True else [flag, str(one)]
    for command, arguments in ((new, []), (policy, ["s"]), (up, ["s", str(tmp_path)])):
        given = command.make_context("x", [*arguments, *flags], resilient_parsing=True).params
        taken = {name: given[name] for name in Policy.__struct_fields__}
        assert parse(policy_of(taken)) == wanted, command.name
