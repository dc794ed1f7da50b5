"""Where tests get the real broker, database and cache from.

`KB_TEST_KAFKA`, `KB_TEST_POSTGRES` and `KB_TEST_REDIS` name ones that run (`make test` starts one stack for the whole session and
says so there); otherwise a local stack is started, once a session. Nothing is shared between tests: each has its own topic prefix,
and its own database, cloned from a migrated template. A part that cannot be started is a failure, never a skip.
"""

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import pytest

from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.postgres import migrate, pool
from kalshibook_tools.stack import Addresses, External, local_stack


@pytest.fixture(scope="session")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """Return where the real parts answer."""
    given = External(*(os.getenv(f"KB_TEST_{name}") for name in ("KAFKA", "POSTGRES", "REDIS")))
    with asyncio.Runner() as runner:
        stack = local_stack(tmp_path_factory.mktemp("stack"), external=given, kafka_heap="512m")
        yield runner.run(stack.__aenter__()).addresses
        runner.run(stack.__aexit__(None, None, None))


@pytest.fixture
def cluster(addresses: Addresses) -> Cluster:
    """Return a Kafka of one's own: the broker, under a topic prefix that nobody else has."""
    return Cluster(addresses.kafka, f"t{uuid.uuid4().hex[:10]}.", 4)


@pytest.fixture(scope="session")
def template(addresses: Addresses) -> str:
    """Return the name of a migrated database to clone; it is the session's own, so that workers do not wait for each other."""
    name = f"template_{uuid.uuid4().hex[:10]}"

    async def make() -> None:
        await _execute(addresses.postgres, f"CREATE DATABASE {name}")
        await migrate.migrate(_database(addresses.postgres, name))

    asyncio.run(make())
    return name


@pytest.fixture
async def postgres_dsn(addresses: Addresses, template: str) -> AsyncIterator[str]:
    """Return a migrated, empty database of one's own."""
    name = f"test_{uuid.uuid4().hex[:10]}"
    await _execute(addresses.postgres, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield _database(addresses.postgres, name)
    await _execute(addresses.postgres, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def redis_url(addresses: Addresses) -> str:
    """Return the cache; keys carry the test's topic prefix, so they do not meet."""
    return addresses.redis


def _database(dsn: str, name: str) -> str:
    return urlsplit(dsn)._replace(path=f"/{name}").geturl()


async def _execute(dsn: str, sql: str) -> None:
    connection = await pool.connect(dsn)
    try:
        await connection.execute(sql)
    finally:
        await connection.close()
