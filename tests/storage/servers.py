"""Real S3 servers for the tests, each a process of its own on a free port of 127.0.0.1, stopped with the test run.

`moto` honours conditional writes and versions; `rclone serve s3` and the JuiceFS gateway (MinIO's code) are the two
other families of servers that users run. Each is a context manager that yields a `Server` when it answers."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

__all__ = ["ACCESS", "SECRET", "Server", "juicefs", "moto", "rclone"]

ACCESS, SECRET = "test-access", "test-secret-1234567890"
STARTS_WITHIN = 60.0
BIN = Path(sys.executable).parent


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. `conditional`: whether it honours If-Match on writes; `versions`: whether buckets can have
    them."""

    name: str
    url: str
    conditional: bool
    versions: bool
    ca: Path | None = None

    def client(self) -> S3Client:
        """A boto3 client, to look at the bucket as another tool would."""
        client: S3Client = boto3.client(
            "s3",
            endpoint_url=self.url,
            verify=None if self.ca is None else str(self.ca),
            region_name="us-east-1",
            aws_access_key_id=ACCESS,
            aws_secret_access_key=SECRET,
            config=Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )
        return client

    def new_bucket(self) -> str:
        name = f"bucket-{secrets.token_hex(6)}"
        self.client().create_bucket(Bucket=name)
        return name


@contextmanager
def moto(folder: Path) -> Iterator[Server]:
    port = _free_port()
    command = [str(BIN / "moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    with _running(command, folder / "moto.log", Server("moto", f"http://127.0.0.1:{port}", True, True)) as server:
        yield server


@contextmanager
def rclone(folder: Path, certificate: tuple[Path, Path, Path] | None = None) -> Iterator[Server]:
    """`certificate`: CA, certificate and key, to serve with TLS."""
    port, root = _free_port(), folder / "rclone"
    root.mkdir()
    command = [str(BIN / "rclone"), "serve", "s3", str(root), "--addr", f"127.0.0.1:{port}"]
    command += ["--auth-key", f"{ACCESS},{SECRET}", "--vfs-cache-mode", "off", "--config", str(folder / "none.conf")]
    url, ca = f"http://127.0.0.1:{port}", None
    if certificate is not None:
        ca, cert, key = certificate
        url = f"https://127.0.0.1:{port}"
        command += ["--cert", str(cert), "--key", str(key)]
    server = Server("rclone", url, False, False, ca)
    with _running(command, folder / "rclone.log", server) as running:
        yield running


@contextmanager
def juicefs(folder: Path) -> Iterator[Server]:
    port, meta = _free_port(), f"sqlite3://{folder}/juicefs.db"
    bucket = f"{folder}/juicefs/"
    subprocess.run(
        [BIN / "juicefs", "format", "--storage", "file", "--bucket", bucket, "--trash-days", "0", meta, "volume"],
        check=True,
        capture_output=True,
        timeout=STARTS_WITHIN,
    )
    command = [str(BIN / "juicefs"), "gateway", meta, f"127.0.0.1:{port}", "--multi-buckets", "--keep-etag"]
    command += ["--object-meta", "--no-banner", "--log", str(folder / "juicefs-gateway.log")]
    command += ["--cache-dir", str(folder / "juicefs-cache"), "--no-usage-report"]
    environment = {"MINIO_ROOT_USER": ACCESS, "MINIO_ROOT_PASSWORD": SECRET, "MINIO_UPDATE": "off"}
    server = Server("juicefs", f"http://127.0.0.1:{port}", False, False)
    with _running(command, folder / "juicefs.log", server, environment) as running:
        yield running


@contextmanager
def _running(
    command: Sequence[str], log: Path, server: Server, environment: Mapping[str, str] | None = None
) -> Iterator[Server]:
    with log.open("wb") as output, _started(command, output, environment) as process:
        _wait_until_it_answers(server, process, log)
        yield server


@contextmanager
def _started(
    command: Sequence[str], output: IO[bytes], environment: Mapping[str, str] | None
) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_it_answers(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    client = server.client()
    while True:
        try:
            client.list_buckets()
            return
        except (ClientError, BotoCoreError) as e:
            if _ended(process) or time.monotonic() > deadline:
                raise RuntimeError(f"{server.name} does not answer: {e}\n{log.read_text(errors='replace')}") from e


def _ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether the process has ended; waits a moment for that."""
    try:
        process.wait(timeout=0.1)
    except subprocess.TimeoutExpired:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
