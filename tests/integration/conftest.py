"""A gateway over a database of the test's own, for the tests that write its tables and ask over HTTP; places for archives."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kalshibook_core.archive.store import Folder, Store
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.postgres.pool import connect
from tests.support import gateway
from tests.support import s3 as servers
from tests.support.service import own_port


@pytest.fixture
async def served(cluster: Cluster, database: str, redis_url: str, tmp_path: Path) -> AsyncIterator[tuple[httpx.AsyncClient, Any]]:
    """A client with a key, and a connection to the database."""
    connection = await connect(database)
    async with gateway.running(cluster, database, redis_url, tmp_path) as process:
        headers = {"X-API-Key": await gateway.key(database)}
        async with httpx.AsyncClient(base_url=process.url, headers=headers, timeout=30) as client:
            yield client, connection
    await connection.close()


@pytest.fixture
def free_tcp_port() -> int:
    """A port that nobody else is given until its server starts."""
    return own_port()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.S3]:
    """An S3 server, with its keys in the environment."""
    with pytest.MonkeyPatch.context() as environment:
        for name, value in servers.KEYS.items():
            environment.setenv(name, value)
        with servers.running(tmp_path_factory.mktemp("s3")) as server:
            yield server


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Where an archive may be kept: nothing is there yet."""
    if request.param == "folder":
        return Folder(tmp_path / "archive")
    server: servers.S3 = request.getfixturevalue("s3")
    return server.bucket(tmp_path.name)
