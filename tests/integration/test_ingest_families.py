"""Events and series as the gatherer reads them from the simulator's REST: each definition once, and what changed in them."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pytest

from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kalshi import signing
from kalshibook_tools import simulator
from services.ingest import families
from services.ingest.families import Families
from services.ingest.registry import Registry
from services.ingest.rest import Answer, Rest
from services.ingest.settings import Settings
from tests.integration.test_ingest_capture import ALWAYS


@dataclass
class Read:
    """A reading of one exchange's families, with what was published of it."""

    families: Families
    exchange: simulator.Running
    rest: Rest
    published: list[tuple[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)

    async def until_read(self) -> None:
        async with asyncio.timeout(60):
            while len(self.families.since_s) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.01)


@asynccontextmanager
async def reading(
    folder: Path, registry: Registry, since_s: Mapping[str, int], running: simulator.Running | None = None
) -> AsyncIterator[Read]:
    counts: Counter[str] = Counter()
    async with simulator.serve(simulator.Config(folder, markets=30, window=ALWAYS)) as started:
        exchange = running or started
        credentials = signing.Credentials(exchange.key_id, signing.load_private_key(exchange.private_key_path.read_bytes()))
        settings = Settings(Cluster("nowhere"), credentials, exchange.ws_url, exchange.rest_url, reconcile_seconds=3600)
        async with Rest(exchange.rest_url, credentials, 1000, random.Random(1), counts) as rest, asyncio.TaskGroup() as tasks:

            def publish(answer: Answer, channel: str, ticker: str, payload: bytes) -> None:
                read.published.append((channel, ticker))
                read.bodies.append(payload)

            async def room() -> None:
                """Always."""

            def tell(kind: str, why: str) -> None:
                raise AssertionError(f"{kind}: {why}")

            read = Read(Families(settings, rest, registry, since_s, publish, room, tell), exchange, rest)
            task = tasks.create_task(read.families.run())
            yield read
            task.cancel()


async def test_each_is_published_once_and_again_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(families, "SOON_SECONDS", 0.0)
    registry = Registry()
    async with reading(tmp_path, registry, {}) as first:
        await first.until_read()
        markets = list(first.exchange.exchange.markets.values())
        events = {market.event["event_ticker"]: market.event for market in markets}
        wanted = {("event", ticker) for ticker in events} | {("series", e["series_ticker"]) for e in events.values()}
        assert Counter(first.published) == Counter(wanted) and wanted
        assert all(orjson.loads(body) in events.values() for body in first.bodies if b"event_ticker" in body)

        # A message about an event has the lists looked at again: only what changed comes.
        changed = min(events)
        events[changed]["title"] = "Another question?"
        first.families.stir()
        async with asyncio.timeout(60):
            while len(first.published) == len(wanted):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert first.published[len(wanted) :] == [("event", changed)] and b"Another question?" in first.bodies[-1]

        # After a restart nothing comes that was published, and it asks only for what is new.
        events[changed]["title"] = "A third one?"
        since_s = dict(first.families.since_s)
        async with reading(tmp_path, registry, since_s, first.exchange) as second:
            async with asyncio.timeout(60):
                while not second.published:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert second.published == [("event", changed)]


async def test_what_is_listed_no_more_is_forgotten(tmp_path: Path) -> None:
    registry = Registry()
    registry.families["event"]["KXGONE-26"] = 7
    async with reading(tmp_path, registry, {}) as read:
        await read.until_read()
    assert "KXGONE-26" not in registry.families["event"] and registry.families["event"]
