"""How long the book at an instant takes over HTTP, warm, beside fetching the same rows by SQL and doing nothing with them.

One connection kept alive, one request after the other, 2,000 random instants over 20 markets of 10,000 events with a checkpoint
every 1,000: about 500 events folded an answer, the key checked and the call metered each time.
"""

import asyncio
import http.client
import random
import tempfile
import uuid
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks import Row, database
from kalshibook_core.kafka import admin
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.postgres.pool import connect
from kalshibook_core.runtime import clock
from services.gateway.history.store import CHUNK, POINT, yesterday
from tests.support import gateway
from tests.support.canonical import Market

NAME = "gateway"
MARKETS, EVENTS, ASKED, WARM = 20, 10_000, 2_000, 300
T0 = 1_762_041_600_000_000


def run(addresses: Any) -> list[Row]:
    """Measure on the broker, database and cache at `addresses`."""
    ours, bare = asyncio.run(_measure(addresses))
    rows = []
    for name, part in (("p50", 0.5), ("p99", 0.99)):
        mine, theirs = (sorted(times)[int(len(times) * part)] * 1000 for times in (ours, bare))
        rows.append(
            Row(
                f"gateway: book at an instant, {name} warm over HTTP",
                round(mine, 2),
                "ms",
                round(theirs, 2),
                round(mine / theirs, 2),
            )
        )
    return rows


async def _measure(addresses: Any) -> tuple[list[float], list[float]]:
    cluster = Cluster(addresses.kafka, f"bench-{uuid.uuid4().hex[:8]}.")
    await admin.ensure_topics(cluster)
    async with database.fresh(addresses.postgres) as dsn:
        return await _timed(cluster, dsn, addresses.redis)


async def _timed(cluster: Cluster, dsn: str, redis: str) -> tuple[list[float], list[float]]:
    dice, connection = random.Random(1), await connect(dsn)
    ids = []
    for number in range(MARKETS):
        market = Market(f"KXBENCH-{number}", T0)
        rolls = [roll for roll in range(1, 200) if roll % 11 and roll % 13]
        events = [market.event(dice.choice(rolls), 100_000) for _ in range(EVENTS)]
        ids.append(await gateway.add_market(connection, market.ticker))
        await gateway.write(connection, ids[-1], events, 1_000)
    await connection.execute("ANALYZE")
    asked = [(dice.randrange(MARKETS), T0 + dice.randrange(200_000, EVENTS * 100_000)) for _ in range(ASKED + WARM)]
    statement = await connection.prepare(POINT)
    bare = []
    for number, at in asked:
        began = clock.monotonic()
        await statement.fetch(ids[number], at, CHUNK, yesterday(at))
        bare.append(clock.monotonic() - began)
    await connection.close()
    with tempfile.TemporaryDirectory() as folder:
        async with gateway.running(cluster, dsn, redis, Path(folder)) as process:
            headers = {"X-API-Key": await gateway.key(dsn)}
            ours = await asyncio.to_thread(_ask, process.url, headers, asked)
    return ours[WARM:], bare[WARM:]


def _ask(url: str, headers: dict[str, str], asked: list[tuple[int, int]]) -> list[float]:
    client, times = http.client.HTTPConnection(urlsplit(url).netloc), []
    for number, at in asked:
        began = clock.monotonic()
        client.request("GET", f"/v1/orderbook/KXBENCH-{number}?at={at}", headers=headers)
        answer = client.getresponse()
        content = answer.read()
        times.append(clock.monotonic() - began)
        if answer.status != 200:
            raise RuntimeError(content.decode())
    client.close()
    return times
