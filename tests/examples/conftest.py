"""The databases that the example is tested on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy

from examples.database import DatabaseFiles
from tests.conftest import unavailable
from tests.postgres import Postgres, installed, running


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    programs = installed()
    if programs is None:
        unavailable("PostgreSQL is not installed (apt install postgresql)")
    else:
        with running(programs) as server:
            yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/files.db"
    server: Postgres = request.getfixturevalue("postgres")
    engine = sqlalchemy.create_engine(server.url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("DROP TABLE IF EXISTS piece, file"))
    engine.dispose()
    return server.url


@pytest.fixture
def database(url: str) -> Iterator[DatabaseFiles]:
    files = DatabaseFiles(url)
    yield files
    files.engine.dispose()
