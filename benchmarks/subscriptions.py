"""150 connections with 7,500 markets each in one gatherer: all subscribed, what it holds, and what it costs when nothing happens.

A server in a process of its own is the exchange: it lists the markets, acknowledges every subscription and sends each market's
first book, then nothing. The process under measure is the gatherer alone (registry, plan, sessions, outbox, spool).
"""

import asyncio
import itertools
import time
from collections import Counter
from typing import Any

import orjson
from websockets.asyncio.server import ServerConnection

from benchmarks import Row, exchange, registry
from kalshibook_core.runtime import clock
from kalshibook_tools.stack import Addresses

NAME = "subscriptions"
CONNECTIONS = 150
EACH = 7500
IDLE_SECONDS = 15


def run(addresses: Addresses) -> list[Row]:
    """Measure in a process of its own, so that its memory is the gatherer's."""
    with (
        exchange.apart(_stream) as sockets,
        exchange.apart(registry.markets, CONNECTIONS * EACH) as pages,
        exchange.apart(_gather, sockets, pages, addresses.kafka) as rows,
    ):
        return list(rows)


async def _gather(announce: exchange.Announce, ws_url: str, rest_url: str, brokers: str) -> None:
    wanted, most = CONNECTIONS * EACH, {"connections": CONNECTIONS, "subscriptions_per_connection": EACH}
    async with exchange.desk(brokers, ws_url, rest_url, statuses=("open",), **most) as desk:
        counts, began = desk.counts, clock.monotonic()
        async with exchange.gatherer(desk) as gatherer:
            while not (gatherer.captured == wanted and gatherer.ready and counts["book_frames"] >= wanted):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
            took = clock.monotonic() - began
            while desk.outbox.state != "direct" or desk.outbox.buffered:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
            await asyncio.sleep(5)  # what is left to be saved
            cpu = time.process_time()
            await asyncio.sleep(IDLE_SECONDS)
            idle = (time.process_time() - cpu) / IDLE_SECONDS
            resident = exchange.resident()
            connections = sum(connection.connected for connection in gatherer.connections.values())
            assert connections == CONNECTIONS and not counts["breaks"] and not counts["reconnects"]
    of = f"{CONNECTIONS} connections x {EACH:,} markets"
    announce(
        [
            Row(f"{of}: listed, subscribed, every book received", took, "s", None, None),  # type: ignore[arg-type]
            Row(f"{of}: peak resident memory", resident / 1e6, "MB", None, None),  # type: ignore[arg-type]
            Row(f"{of}: CPU of a core when nothing happens", 100 * idle, "%", None, None),  # type: ignore[arg-type]
        ]
    )


async def _stream(announce: exchange.Announce) -> None:
    """Acknowledge whatever is subscribed, and send its first book."""

    async def connected(socket: ServerConnection) -> None:
        seqs: Counter[int] = Counter()
        channels: dict[int, str] = {}
        sids = itertools.count(1)
        async for text in socket:
            command: dict[str, Any] = orjson.loads(text)
            params = command["params"]
            if command["cmd"] == "subscribe":
                for channel, sid in zip(params["channels"], sids, strict=False):
                    channels[sid] = channel
                    ack = {"channel": channel, "sid": sid}
                    await exchange.say(socket, {"type": "subscribed", "id": command["id"], "msg": ack})
                    await _books(socket, sid, channel, params.get("market_tickers", []), seqs)
            else:
                (sid,) = params["sids"]
                seqs[sid] += 1
                await exchange.say(socket, {"type": "ok", "id": command["id"], "sid": sid, "seq": seqs[sid], "msg": {}})
                await _books(socket, sid, channels[sid], params["market_tickers"], seqs)

    await exchange.listen(announce, connected, ping_interval=10, ping_timeout=None)


async def _books(socket: ServerConnection, sid: int, channel: str, tickers: list[str], seqs: Counter[int]) -> None:
    rows = [["0.4800", "12.00"], ["0.4900", "7.00"]]
    for ticker in tickers if channel == "orderbook_delta" else ():
        seqs[sid] += 1
        msg = {"market_ticker": ticker, "yes_dollars_fp": rows, "no_dollars_fp": rows}
        await exchange.say(socket, {"type": "orderbook_snapshot", "sid": sid, "seq": seqs[sid], "msg": msg})
