"""Servers are started once a run; each test has a bucket of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from tests.storage import servers
from tests.storage.faults import FaultProxy
from tests.storage.servers import ACCESS, SECRET, Server
from vfs.storage.s3 import S3Storage

Open = Callable[..., Awaitable[S3Storage]]


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers.moto(tmp_path_factory.mktemp("moto")) as server:
        yield server


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers.rclone(tmp_path_factory.mktemp("rclone")) as server:
        yield server


@pytest.fixture(scope="session")
def juicefs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers.juicefs(tmp_path_factory.mktemp("juicefs")) as server:
        yield server


@pytest.fixture(params=["moto", "rclone", "juicefs"])
def any_server(request: pytest.FixtureRequest) -> Server:
    server: Server = request.getfixturevalue(request.param)
    return server


@pytest.fixture
def proxy(moto: Server) -> Iterator[FaultProxy]:
    with FaultProxy(moto.url) as proxy:
        yield proxy


@pytest.fixture
async def open_s3() -> AsyncIterator[Open]:
    """open_s3(server or URL, bucket, session, **options): a storage that is closed at the test's end."""
    async with AsyncExitStack() as stack:

        async def open_(server: Server | str, bucket: str, session: str = "work", **options: Any) -> S3Storage:
            url = server if isinstance(server, str) else server.url
            quick = {"request_timeout": 20.0, "read_patience": 5.0, "write_patience": 5.0, "region": "us-east-1"}
            options = {**quick, "access_key_id": ACCESS, "secret_access_key": SECRET, **options}
            storage = await stack.enter_async_context(S3Storage(bucket, endpoint=url, **options))
            return await storage.init(session)

        yield open_


@pytest.fixture
async def s3(moto: Server, open_s3: Open) -> S3Storage:
    """A session in a new bucket of moto."""
    return await open_s3(moto, moto.new_bucket())
