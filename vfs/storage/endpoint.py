"""Endpoint: where a bucket is and how to get in.

boto3 finds the way: credentials (given ones, environment, profile, container, instance, assumed role), region,
endpoint. The same answer configures obstore, which carries the bytes: 4 KiB objects cost boto3 about 2 ms of CPU and
the GIL, obstore's synchronous calls in threads 0.15 to 0.2 ms without it (measured on `rclone serve s3`; its asyncio
calls through a second loop: 0.25 ms)."""

from __future__ import annotations

import errno
import ipaddress
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import boto3
import msgspec
from botocore.config import Config
from botocore.exceptions import BotoCoreError, NoCredentialsError
from obstore.store import S3Store

from vfs.errors import error
from vfs.storage.failures import AccessDenied, explain

if TYPE_CHECKING:
    from botocore.credentials import Credentials
    from obstore.store import ClientConfig, S3Config, S3Credential
    from types_boto3_s3 import S3Client

__all__ = ["Clients", "Endpoint", "connect"]

CREDENTIALS_LIVE = timedelta(minutes=5)


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """The options of S3 backends. What is None is found as boto3 finds it."""

    bucket: str
    url: str | None = None  # else AWS_ENDPOINT_URL_S3, AWS_ENDPOINT_URL, the profile's, AWS itself
    region: str | None = None  # else AWS_REGION, AWS_DEFAULT_REGION, the profile's, us-east-1
    access_key_id: str | None = None
    secret_access_key: str | None = None
    session_token: str | None = None
    profile: str | None = None
    addressing: Literal["auto", "path", "virtual"] = "auto"
    sse: str | None = None  # AES256, aws:kms or aws:kms:dsse
    sse_kms_key_id: str | None = None
    requester_pays: bool = False
    ca_file: str | None = None  # PEM; trusted beside the system's
    connect_timeout: float = 5.0
    request_timeout: float = 60.0  # one attempt, from connecting to the last byte of the answer
    read_patience: float = 25.0  # all attempts of a read together; then EIO
    write_patience: float = 10.0  # all attempts of a write; write-back itself tries again for ever

    def __repr__(self) -> str:
        return f"Endpoint(bucket={self.bucket!r}, url={self.url!r}, region={self.region!r})"

    def __post_init__(self) -> None:
        if not self.bucket or "/" in self.bucket:
            raise ValueError(f"bucket {self.bucket!r}: a bucket's name is needed")
        if self.url is not None:
            _refuse_credentials(self.url)
            if not self.url.startswith(("http://", "https://")):
                raise ValueError(f"endpoint {self.url!r}: http:// or https:// is needed")


@dataclass(frozen=True, slots=True)
class Clients:
    """What requests are made with. A new one is made when credentials were rotated."""

    boto: S3Client
    store: S3Store
    url: str
    credentials: tuple[str | None, ...]


def connect(endpoint: Endpoint) -> Clients:
    """Clients for the endpoint. Blocks: reads files, may ask a metadata service. OSError where no way is found."""
    try:
        session = boto3.Session(
            aws_access_key_id=endpoint.access_key_id,
            aws_secret_access_key=endpoint.secret_access_key,
            aws_session_token=endpoint.session_token,
            profile_name=endpoint.profile,
        )
        region = endpoint.region or os.environ.get("AWS_REGION") or session.region_name or "us-east-1"
        credentials: Credentials | None = session.get_credentials()
        if credentials is None:
            raise NoCredentialsError()
        frozen = credentials.get_frozen_credentials()
        client = _boto_client(endpoint, session, region)
    except NoCredentialsError as e:
        hint = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        raise AccessDenied(endpoint.bucket, f"no credentials found; {hint}") from e
    except BotoCoreError as e:
        raise explain(e, endpoint.bucket) from e
    url = client.meta.endpoint_url
    try:
        _refuse_credentials(url)
    except ValueError as e:
        raise error(errno.EINVAL, endpoint.bucket, str(e)) from None
    return Clients(client, _store(endpoint, url, region, credentials), url, tuple(frozen))


def _refuse_credentials(url: str) -> None:
    """They would be ignored, and told in storage URLs and in the log."""
    if "@" in url:
        raise ValueError("credentials do not belong in an endpoint's URL; use the environment or a profile")


def _boto_client(endpoint: Endpoint, session: Any, region: str) -> S3Client:
    # The endpoint that boto3 would choose is known only once a client exists, and the configuration depends on it.
    url = endpoint.url or session.client("s3", region_name=region).meta.endpoint_url
    config = Config(
        region_name=region,
        signature_version="s3v4",
        s3={"addressing_style": _addressing(endpoint, url)},
        retries={"total_max_attempts": 1},
        connect_timeout=endpoint.connect_timeout,
        read_timeout=endpoint.request_timeout,
        # The newer default, when_supported, breaks ranged GETs on `rclone serve s3` and DeleteObjects on older MinIO
        # code.
        request_checksum_calculation="when_supported" if is_aws(url) else "when_required",
        response_checksum_validation="when_supported" if is_aws(url) else "when_required",
    )
    client: S3Client = session.client(
        "s3", region_name=region, endpoint_url=None if is_aws(url) and endpoint.url is None else url, config=config
    )
    return client


def _store(endpoint: Endpoint, url: str, region: str, credentials: Credentials) -> S3Store:
    def provide() -> S3Credential:
        now = credentials.get_frozen_credentials()
        if now.access_key is None or now.secret_key is None:
            raise error(errno.EACCES, endpoint.bucket, "the credentials have no key")
        return {
            "access_key_id": now.access_key,
            "secret_access_key": now.secret_key,
            "token": now.token,
            "expires_at": datetime.now(UTC) + CREDENTIALS_LIVE,
        }

    virtual = _addressing(endpoint, url) == "virtual"
    config: S3Config = {
        "region": region,
        "endpoint": _with_bucket(url, endpoint.bucket) if virtual else url,
        "virtual_hosted_style_request": virtual,
        "request_payer": endpoint.requester_pays,
    }
    if endpoint.sse is not None:
        config["server_side_encryption"] = endpoint.sse
    if endpoint.sse_kms_key_id is not None:
        config["sse_kms_key_id"] = endpoint.sse_kms_key_id
    if is_aws(url):
        config["checksum_algorithm"] = "CRC64NVME"
    client: ClientConfig = {
        "allow_http": url.startswith("http://"),
        "connect_timeout": timedelta(seconds=endpoint.connect_timeout),
        "timeout": timedelta(seconds=endpoint.request_timeout),
    }
    if endpoint.ca_file is not None:
        client["root_certificate"] = Path(endpoint.ca_file).read_bytes()
    # `vfs.storage.bucket` retries: there it is counted, is bounded by one deadline, and can take new credentials.
    return S3Store(
        endpoint.bucket,
        config=config,
        client_options=client,
        retry_config={"max_retries": 0},
        credential_provider=provide,
    )


def is_aws(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))


def is_known_conditional(url: str) -> bool:
    """Whether the documentation of the endpoint's owner promises conditional writes: AWS, Tigris."""
    host = urlsplit(url).hostname or ""
    return is_aws(url) or host.endswith((".tigris.dev", ".storage.dev"))


def _addressing(endpoint: Endpoint, url: str) -> Literal["path", "virtual"]:
    """AWS and Tigris want the bucket in the host's name, where TLS allows it; others are known to serve paths."""
    if endpoint.addressing != "auto":
        return endpoint.addressing
    return "virtual" if is_known_conditional(url) and "." not in endpoint.bucket else "path"


def _with_bucket(url: str, bucket: str) -> str:
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return parts._replace(netloc=f"{bucket}.{parts.netloc}").geturl()
    raise ValueError(f"endpoint {url!r}: the bucket cannot be in the name of an address; use addressing=path")
