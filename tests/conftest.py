"""Real parts for every test that asks for them, each test with topics, database and cache of its own.

The parts are shared by all xdist workers of the session (see support.parts); nothing else is.
"""

import os
import shutil
import signal
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
import redis.asyncio
from aiokafka.admin import AIOKafkaAdminClient
from hypothesis import HealthCheck, settings

from kalshibook_core.kafka import admin, topics
from kalshibook_core.kafka.cluster import Cluster
from tests.support.parts import Parts, Session, new_session

# The workers, a broker and a database share the cores: how long an example takes says nothing about it.
# The same examples each time: what passed here passes elsewhere. New ones are looked for by `pytest --hypothesis-profile=search`.
settings.register_profile("loaded", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("search", settings.get_profile("loaded"), derandomize=False)
settings.load_profile("loaded")

# A shell's background job is born with SIGINT ignored, and so would be every process a test starts and interrupts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_SESSION = pytest.StashKey[Session]()


def pytest_configure(config: pytest.Config) -> None:
    shared = getattr(config, "workerinput", {}).get("kb_parts")
    config.stash[_SESSION] = Session(Path(shared[0]), shared[1]) if shared else new_session()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node) -> None:  # type: ignore[no-untyped-def]
    session = node.config.stash[_SESSION]
    node.workerinput["kb_parts"] = (str(session.folder), session.owner)


def pytest_unconfigure(config: pytest.Config) -> None:
    session = config.stash.get(_SESSION, None)
    if session is None or session.owner != os.getpid():
        return
    session.end()
    shutil.rmtree(session.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def session(pytestconfig: pytest.Config) -> Session:
    """What the workers of this run share."""
    return pytestconfig.stash[_SESSION]


@pytest.fixture(scope="session")
def parts(session: Session) -> Parts:
    """Addresses of a real Kafka, Postgres and Redis."""
    return session.parts()


@pytest.fixture
async def cluster(parts: Parts) -> AsyncIterator[Cluster]:
    """A cluster whose topics, under a prefix of this test's own, exist and are empty; four partitions each."""
    cluster = Cluster(parts.kafka, f"t{uuid.uuid4().hex[:8]}.", 4)
    await admin.ensure_topics(cluster)
    yield cluster
    client = AIOKafkaAdminClient(bootstrap_servers=parts.kafka)
    await client.start()
    try:
        await client.delete_topics([cluster.topic(topic) for topic in topics.ALL])
    finally:
        await client.close()


@pytest.fixture
async def database(session: Session, parts: Parts) -> AsyncIterator[str]:
    """The DSN of a migrated, empty database of this test's own."""
    dsn = await session.fresh_database()
    yield dsn
    await session.drop_database(dsn)


@pytest.fixture
async def redis_url(parts: Parts, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """The URL of an empty Redis database of this worker's own (1 to 15)."""
    worker = getattr(request.config, "workerinput", {}).get("workerid", "gw0")
    number = 1 + int(worker.removeprefix("gw")) % 15
    url = urlunsplit(urlsplit(parts.redis)._replace(path=f"/{number}"))
    client = redis.asyncio.from_url(url)
    await client.flushdb()
    yield url
    await client.flushdb()
    await client.aclose()
