"""The ways to a bucket: credentials, region, endpoint, addressing, TLS."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tests.storage import servers
from tests.storage.conftest import Open
from tests.storage.faults import FaultProxy
from tests.storage.servers import Server
from vfs.storage.endpoint import Endpoint, connect
from vfs.storage.failures import AccessDenied, Unavailable
from vfs.storage.plain import is_plain
from vfs.storage.tigris import TigrisStorage

WITH_KEYS = Endpoint(bucket="bucket", access_key_id="a", secret_access_key="s")
VARIABLES = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION"]
VARIABLES += ["AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "BUCKET_NAME"]


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def test_the_environment_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "t")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    clients = connect(Endpoint(bucket="b"))
    assert clients.credentials[:3] == ("a", "s", "t")
    assert clients.url == "https://s3.eu-central-1.amazonaws.com"
    assert clients.store.config["region"] == "eu-central-1"
    assert clients.store.config["endpoint"] == "https://b.s3.eu-central-1.amazonaws.com"


def test_credentials_in_the_environments_endpoint_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://key:hush@127.0.0.1:9000")
    with pytest.raises(OSError, match="do not belong in an endpoint's URL") as caught:
        connect(WITH_KEYS)
    assert "hush" not in str(caught.value)


def test_a_profile_says_region_endpoint_and_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text(
        "[profile work]\nregion = nl-ams\nservices = ours\n"
        "[services ours]\ns3 =\n  endpoint_url = https://s3.example.org\n"
    )
    (tmp_path / "credentials").write_text("[work]\naws_access_key_id = k\naws_secret_access_key = s\n")
    clients = connect(Endpoint(bucket="b", profile="work"))
    assert (clients.url, clients.credentials[:2]) == ("https://s3.example.org", ("k", "s"))
    assert clients.store.config["region"] == "nl-ams"
    assert clients.store.config["endpoint"] == "https://s3.example.org"
    monkeypatch.setenv("AWS_PROFILE", "work")
    assert connect(Endpoint(bucket="b")).credentials[:2] == ("k", "s")


def test_what_is_given_goes_before_what_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "https://elsewhere.example.org")
    assert connect(Endpoint(bucket="b")).url == "https://elsewhere.example.org"
    given = Endpoint(bucket="b", url="http://127.0.0.1:1", region="r", access_key_id="x", secret_access_key="y")
    clients = connect(given)
    assert (clients.url, clients.credentials[:2]) == ("http://127.0.0.1:1", ("x", "y"))


def test_without_credentials_the_message_says_what_to_set() -> None:
    with pytest.raises(AccessDenied, match="AWS_ACCESS_KEY_ID"):
        connect(Endpoint(bucket="b", url="http://127.0.0.1:1"))


def test_a_profile_that_does_not_exist_is_named() -> None:
    with pytest.raises(OSError, match="nowhere"):
        connect(Endpoint(bucket="b", profile="nowhere"))


@pytest.mark.parametrize(
    ("url", "bucket", "addressing", "endpoint"),
    [
        ("https://fly.storage.tigris.dev", "bucket", "auto", "https://bucket.fly.storage.tigris.dev"),
        ("https://t3.storage.dev", "bucket", "auto", "https://bucket.t3.storage.dev"),
        ("https://t3.storage.dev", "dotted.name", "auto", "https://t3.storage.dev"),
        ("http://127.0.0.1:9000", "b", "auto", "http://127.0.0.1:9000"),
        ("https://minio.example.org", "b", "auto", "https://minio.example.org"),
        ("https://minio.example.org", "bucket", "virtual", "https://bucket.minio.example.org"),
        ("https://t3.storage.dev", "b", "path", "https://t3.storage.dev"),
    ],
)
def test_the_bucket_is_in_the_hosts_name_where_that_is_wanted(
    url: str, bucket: str, addressing: str, endpoint: str
) -> None:
    clients = connect(
        Endpoint(bucket=bucket, url=url, addressing=addressing, access_key_id="a", secret_access_key="s")  # type: ignore[arg-type]
    )
    assert clients.store.config["endpoint"] == endpoint
    signed = clients.boto.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"})
    expected = endpoint if endpoint != url else f"{url}/{bucket}"
    assert signed.startswith(f"{expected}/k?")


def test_checksums_are_asked_for_on_aws_only() -> None:
    aws = connect(msgspec.structs.replace(WITH_KEYS, region="eu-west-1"))
    assert aws.boto.meta.config.request_checksum_calculation == "when_supported"  # type: ignore[attr-defined]
    assert "checksum_algorithm" in aws.store.config
    other = connect(msgspec.structs.replace(WITH_KEYS, url="https://t3.storage.dev"))
    assert other.boto.meta.config.request_checksum_calculation == "when_required"  # type: ignore[attr-defined]
    assert "checksum_algorithm" not in other.store.config


@pytest.mark.s3
async def test_tigris_works_with_nothing_but_flys_environment(
    moto: Server, monkeypatch: pytest.MonkeyPatch, open_s3: Open
) -> None:
    monkeypatch.setenv("BUCKET_NAME", moto.new_bucket())
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", moto.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tid_x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "tsec_x")
    monkeypatch.setenv("AWS_REGION", "auto")
    async with TigrisStorage() as tigris:
        await tigris.init("Xt7kB9mP2Qw5nL3j")
        ref = await tigris.write("report.pdf", b"%PDF")
        assert [one.version async for one in tigris.list()] == [ref.version]
        assert await tigris.read("report.pdf") == b"%PDF"
        await tigris.cleanup()
        assert not await tigris.exists("report.pdf")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A CA of our own, and a certificate for 127.0.0.1 from it: (ca, certificate, key)."""
    folder = tmp_path_factory.mktemp("tls")
    ca, ca_key, cert, key = (folder / name for name in ("ca.pem", "ca.key", "cert.pem", "key.pem"))
    new = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    as_ca = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"]
    leaf = ["-addext", "subjectAltName=IP:127.0.0.1", "-addext", "basicConstraints=critical,CA:FALSE"]
    commands: list[list[str | Path]] = [
        [*new, "-subj", "/CN=test CA", *as_ca, "-keyout", ca_key, "-out", ca],
        [*new, "-subj", "/CN=127.0.0.1", *leaf, "-CA", ca, "-CAkey", ca_key, "-keyout", key, "-out", cert],
    ]
    for command in commands:
        subprocess.run(command, check=True, capture_output=True)
    return ca, cert, key


@pytest.fixture
def tls(certificate: tuple[Path, Path, Path], tmp_path: Path) -> Iterator[Server]:
    with servers.rclone(tmp_path, certificate=certificate) as server:
        yield server


@pytest.mark.s3
async def test_a_ca_of_ones_own_is_trusted_where_it_is_named(
    tls: Server, certificate: tuple[Path, Path, Path], open_s3: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = tls.new_bucket()
    s3 = await open_s3(tls, bucket, ca_file=str(certificate[0]))
    await s3.write("f", b"over TLS")
    assert await s3.read("f") == b"over TLS"
    assert bytes(await s3.on_read_range(None, "/f", 5, 3, {})) == b"TLS"
    assert [one.path for one in await s3.on_list(None, {})] == ["f"]
    # One attempt each, which has time to end: httpcore leaves a socket open when a handshake is cancelled.
    monkeypatch.setattr("vfs.storage.bucket.FIRST_DELAY", 100.0)
    stranger = await open_s3(tls, bucket, read_patience=1.4, write_patience=1.4)
    for attempt in (stranger.read("f"), stranger.on_list(None, {})):
        with pytest.raises(Unavailable):
            await attempt


@pytest.mark.parametrize(
    ("url", "environment", "plain"),
    [
        ("http://minio:9000", {}, True),
        ("https://minio:9000", {}, False),
        ("http://minio:9000", {"http_proxy": "http://proxy:3128"}, False),
        ("http://minio:9000", {"http_proxy": "http://proxy:3128", "no_proxy": "minio"}, True),
        ("http://minio:9000", {"https_proxy": "http://proxy:3128"}, True),
        ("http://minio:9000", {"all_proxy": "http://proxy:3128"}, False),
    ],
)
def test_sockets_of_our_own_are_for_http_without_a_proxy(
    monkeypatch: pytest.MonkeyPatch, url: str, environment: dict[str, str], plain: bool
) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_plain(url) is plain


@pytest.mark.s3
async def test_nothing_is_asked_before_the_first_need(open_s3: Open, proxy: FaultProxy) -> None:
    proxy.down()
    await open_s3(proxy.url, "b")
    assert proxy.seen == []


def test_addresses_cannot_carry_the_bucket() -> None:
    with pytest.raises(ValueError, match="addressing=path"):
        connect(
            Endpoint(
                bucket="b", url="http://127.0.0.1:1", addressing="virtual", access_key_id="a", secret_access_key="s"
            )
        )
