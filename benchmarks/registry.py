"""A gatherer's list of a million markets: read whole over HTTP, planned, changed, saved and loaded again.

A server in a process of its own answers GET /markets page by page with made-up markets of the exchange's own form and size. The
gatherer's own loop reads them (`services.ingest.gatherer`), without a limit on requests; its connections are never opened. The
resident memory is the process's, everything included.
"""

import asyncio
import gc
import random
import tempfile
import time
from array import array
from pathlib import Path

import httpx
import orjson

from benchmarks import Row, exchange
from kalshibook_core.kalshi.messages import Lifecycle
from kalshibook_core.runtime import clock
from kalshibook_tools.stack import Addresses
from services.ingest import catalogue
from services.ingest.gatherer import PAGE

NAME = "registry"
MARKETS = 1_000_000
CHANGES = 20_000
_NO_FAMILIES = b'{"cursor":"","events":[],"series":[]}'
_NO_MARKETS = b'{"cursor":"","markets":[]}'


def run(addresses: Addresses) -> list[Row]:
    """Measure in a process of its own, so that its memory is the registry's."""
    with exchange.apart(markets, MARKETS) as url, exchange.apart(_gather, url, addresses.kafka) as rows:
        return list(rows)


async def _bare(url: str) -> float:
    """Read the same pages and parse their JSON, nothing else."""
    began, cursor = clock.monotonic(), ""
    async with httpx.AsyncClient(trust_env=False) as client:
        while True:
            body = orjson.loads((await client.get(f"{url}/markets", params={"cursor": cursor, "status": "open"})).content)
            cursor = body["cursor"]
            if not cursor:
                return clock.monotonic() - began


async def _gather(announce: exchange.Announce, url: str, brokers: str) -> None:
    bare = await _bare(url)
    before = exchange.resident()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "registry"
        async with exchange.desk(brokers, "ws://127.0.0.1:1", url, statuses=("open",), registry=file) as desk:
            began = clock.monotonic()
            async with exchange.gatherer(desk) as gatherer:
                while gatherer.captured < MARKETS:  # noqa: ASYNC110  (nothing announces that the last one is planned)
                    await asyncio.sleep(0.05)
                planned = clock.monotonic() - began
                while not file.exists():  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            resident = exchange.resident()
            tickers, took = desk.rng.sample(list(gatherer.registry.markets), CHANGES), array("d")
            gc.freeze()  # else the collector walks over this sample, within some change: a millisecond that is not the registry's
            changed = clock.monotonic()
            for ticker in tickers:  # each by CPU time: what else the machine does is not the registry's either
                each = time.thread_time()
                gatherer.registry.hear(Lifecycle(ticker, "determined", {}), clock.now_us())
                for stirred in gatherer.registry.stirred(clock.now_us()):
                    rank = gatherer.registry.rank(stirred, clock.now_us())
                    gatherer._plan.drop(stirred) if rank is None else gatherer._plan.want(stirred, rank)
                gatherer._plan.changes()
                took.append(time.thread_time() - each)
            change = (clock.monotonic() - changed) / CHANGES
        began = clock.monotonic()
        found = catalogue.load(file, url, desk.settings.statuses)
        assert found is not None and len(found[0].markets) == MARKETS
        loaded = clock.monotonic() - began
        size, slowest = file.stat().st_size, sorted(took)
    announce(
        [
            Row.of("registry: a million markets read, published and planned", planned, "s", bare),
            Row.of("registry: resident memory of the process", resident / 1e6, "MB", before / 1e6),
            Row("registry: one lifecycle change applied, mean", change * 1e6, "us", None, None),  # type: ignore[arg-type]
            Row("registry: one lifecycle change applied, p99.9, CPU", slowest[-CHANGES // 1000] * 1e6, "us", None, None),  # type: ignore[arg-type]
            Row("registry: one lifecycle change applied, worst of 20,000, CPU", slowest[-1] * 1e6, "us", None, None),  # type: ignore[arg-type]
            Row("registry: loaded again after a restart", loaded, "s", None, None),  # type: ignore[arg-type]
            Row("registry: size on disk", size / 1e6, "MB", None, None),  # type: ignore[arg-type]
        ]
    )


async def markets(announce: exchange.Announce, count: int) -> None:
    """Serve REST's list of so many markets: answer each request with the page its cursor names. None of them ever changes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.readline():
            while (await reader.readline()).strip():
                pass
            url = httpx.URL(request.split()[1].decode())
            if not url.path.endswith("/markets"):
                page = _NO_FAMILIES
            elif "min_updated_ts" in url.params:
                page = _NO_MARKETS
            else:
                page = _page(int(url.params.get("cursor") or 0), count)
            date = b"Date: Sat, 21 Nov 2026 10:00:00 GMT"
            writer.write(b"HTTP/1.1 200 OK\r\n%b\r\nContent-Length: %d\r\n\r\n%b" % (date, len(page), page))
            await writer.drain()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    announce(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v2")
    await server.serve_forever()


def _page(number: int, count: int) -> bytes:
    rng = random.Random(number)
    rows = [_market(number * PAGE + n, rng) for n in range(PAGE)]
    cursor = str(number + 1) if (number + 1) * PAGE < count else ""
    return orjson.dumps({"cursor": cursor, "markets": rows})


def _market(n: int, rng: random.Random) -> dict[str, object]:
    bid = rng.randrange(1, 98)
    return {
        "can_close_early": True,
        "close_time": "2026-12-24T15:00:00Z",
        "created_time": "2026-11-10T14:00:00.123456Z",
        "event_ticker": f"KXBENCH{n // 5000}-26DEC24",
        "expected_expiration_time": "2026-12-24T15:00:00Z",
        "exchange_index": 0,
        "expiration_value": "",
        "floor_strike": n,
        "last_price_dollars": f"0.{bid:02d}00",
        "latest_expiration_time": "2027-01-02T15:00:00Z",
        "liquidity_dollars": "0.0000",
        "market_type": "binary",
        "no_ask_dollars": f"0.{100 - bid:02d}00",
        "no_bid_dollars": "0.0100",
        "no_sub_title": f"{n} or above",
        "notional_value_dollars": "1.0000",
        "occurrence_datetime": f"2026-12-{1 + n % 28:02d}T15:00:00Z",
        "open_interest_fp": f"{rng.randrange(10**6)}.00",
        "open_time": "2026-11-10T14:00:00Z",
        "previous_price_dollars": "0.0000",
        "previous_yes_ask_dollars": "0.0000",
        "previous_yes_bid_dollars": "0.0000",
        "price_level_structure": "linear_cent",
        "price_ranges": [{"end": "1.0000", "start": "0.0000", "step": "0.0100"}],
        "result": "",
        "rules_primary": f"If the made-up value is at least {n} on Dec 24, 2026, then the market resolves to Yes.",
        "rules_secondary": "Made-up values differ; the first one counts, as published by nobody at all.",
        "settlement_timer_seconds": 60,
        "status": ("active", "initialized")[n % 10 == 0],
        "strike_type": "greater",
        "ticker": f"KXBENCH{n // 5000}-26DEC24-T{n}.99",
        "updated_time": "2026-11-10T14:00:00.123456Z",
        "volume_24h_fp": f"{rng.randrange(10**5)}.00",
        "volume_fp": f"{rng.randrange(10**7)}.00",
        "yes_ask_dollars": f"0.{bid + 1:02d}00",
        "yes_ask_size_fp": "120.00",
        "yes_bid_dollars": f"0.{bid:02d}00",
        "yes_bid_size_fp": "80.00",
        "yes_sub_title": f"{n} or above",
    }
