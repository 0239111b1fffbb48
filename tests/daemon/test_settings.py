"""The configuration file is taken whole or refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from mount.settings import Webhook, Workers, load
from vfs.policy import Policy

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
