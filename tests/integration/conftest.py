"""A gateway over a database of the test's own, for the tests that write its tables and ask over HTTP."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.postgres.pool import connect
from tests.support import gateway


@pytest.fixture
async def served(cluster: Cluster, database: str, redis_url: str, tmp_path: Path) -> AsyncIterator[tuple[httpx.AsyncClient, Any]]:
    """A client with a key, and a connection to the database."""
    connection = await connect(database)
    async with gateway.running(cluster, database, redis_url, tmp_path) as process:
        headers = {"X-API-Key": await gateway.key(database)}
        async with httpx.AsyncClient(base_url=process.url, headers=headers, timeout=30) as client:
            yield client, connection
    await connection.close()
