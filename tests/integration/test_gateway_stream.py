"""The gateway's websocket from a real process: snapshot, then every version, whatever comes when, and whoever is slow."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis.asyncio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from kalshibook_core.kafka import topics
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.producer import Producer
from kalshibook_core.kalshi.numbers import price, size
from kalshibook_core.orderbook import Book
from kalshibook_core.postgres import pool
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BookDelta, BookEvent, Checkpoint, Gap
from services.gateway import forms
from tests.support import gateway
from tests.support.canonical import Market

AT = 1_762_128_000_000_000
PATIENT: dict[str, Any] = {"open_timeout": 60, "ping_interval": None}


class Exchange:
    """Markets whose events go to Kafka, and whose books go to Redis as late as the test wants."""

    def __init__(self, cluster: Cluster, producer: Producer, cache: redis.asyncio.Redis, tickers: list[str]) -> None:
        self.cluster, self.producer, self.cache = cluster, producer, cache
        self.markets = {ticker: Market(ticker, AT) for ticker in tickers}

    def publish(self, ticker: str, roll: int) -> BookEvent:
        """Produce the market's next event."""
        event = self.markets[ticker].event(roll, roll % 3)
        self.producer.add(topics.BOOK, ticker.encode(), codec.encode(event))
        return event

    async def show(self, ticker: str) -> None:
        """Write the latest book as the reconstructor does."""
        market = self.markets[ticker]
        last = Book(market.book.yes, market.book.no)
        cause = None if market.gap is None else "disconnect"
        checksum = last.checksum - (1 << 64) if last.checksum >> 63 else last.checksum
        checkpoint = Checkpoint(
            ticker, market.version, market.at, list(last.yes), list(last.no), checksum, market.gap, cause, "g1", 0, 1, 0, 0
        )
        await self.cache.set(f"{self.cluster.prefix}kb:book:{ticker}", codec.encode(checkpoint))


@pytest.fixture
async def exchange(cluster: Cluster, database: str, redis_url: str) -> AsyncIterator[Exchange]:
    connection = await pool.connect(database)
    for ticker in ("KXA", "KXB", "KXC"):
        await gateway.add_market(connection, ticker)
    await connection.close()
    cache = redis.asyncio.from_url(redis_url)
    async with Producer(cluster) as producer:
        yield Exchange(cluster, producer, cache, ["KXA", "KXB", "KXC"])
    await cache.aclose()


class Client:
    """Follows markets and checks every message against the one before."""

    def __init__(self) -> None:
        self.books: dict[str, Book] = {}
        self.versions: dict[str, int] = {}
        self.messages = 0
        self.begun = 0
        self.gaps = 0

    def take(self, text: str | bytes) -> dict[str, Any]:
        message: dict[str, Any] = orjson.loads(text)
        if message["type"] not in ("snapshot", "delta", "gap"):
            return message
        self.messages += 1
        ticker = message["market_ticker"]
        if "quality" in message:
            self.begun += 1
            assert message["version"] >= self.versions.get(ticker, 0)
        else:
            assert message["version"] == self.versions.get(ticker, 0) + 1
        self.versions[ticker] = message["version"]
        if message["type"] == "snapshot":
            self.books[ticker] = Book(*([(price(p), size(s)) for p, s in message[side]] for side in ("yes", "no")))
        elif message["type"] == "delta":
            self.books[ticker].apply(("yes", "no").index(message["side"]), price(message["price"]), size(message["delta"]))
        else:
            self.gaps += 1
            assert message["cause"] == "disconnect"
        assert message["checksum"] == f"{self.books[ticker].checksum:016x}"
        return message

    async def follow(self, websocket: ClientConnection, until: dict[str, int]) -> None:
        while any(self.versions.get(ticker, 0) < version for ticker, version in until.items()):
            self.take(await websocket.recv())


def subscribe(*tickers: str) -> str:
    return orjson.dumps({"action": "subscribe", "tickers": tickers}).decode()


def address(process: gateway.Gateway) -> str:
    return process.url.replace("http", "ws") + "/v1/stream"


async def test_every_version_once_and_a_slow_client_cut_alone(
    exchange: Exchange, cluster: Cluster, database: str, redis_url: str, tmp_path: Path
) -> None:
    headers = {"X-API-Key": await gateway.key(database)}
    dice, total = random.Random(1), 12_000
    tickers = list(exchange.markets)
    following: list[Client] = []
    async with gateway.running(cluster, database, redis_url, tmp_path, KB_STREAM_QUEUE="2000") as process:

        async def heard() -> bool:
            """Whether those who read have less to read than the gateway keeps for one of them."""
            published = {ticker: market.version for ticker, market in exchange.markets.items()}
            return all(each.versions.get(t, now) > now - 400 for t, now in published.items() for each in following)

        async def publish() -> None:
            for number in range(total * len(tickers)):
                ticker = tickers[number % len(tickers)]
                exchange.publish(ticker, dice.randrange(1, 200))
                if number % 97 == 0:
                    await exchange.show(dice.choice(tickers))
                if number % 300 == 0:
                    await exchange.producer.flush()
                    await asyncio.sleep(0.02)  # 15,000 events/s at most: two cores run all of it
                    await gateway.eventually(heard, 200)  # and no more than this machine can do: slow is only who does not read

        async def fast(join_after: int) -> Client:
            client = Client()
            await gateway.eventually(lambda: published(join_after), 200)
            following.append(client)
            async with connect(address(process), additional_headers=headers, max_queue=1000, **PATIENT) as websocket:
                await websocket.send(subscribe(*tickers))
                await client.follow(websocket, dict.fromkeys(tickers, total))
            return client

        async def published(count: int) -> bool:
            return exchange.markets["KXA"].version >= count

        async def slow() -> int:
            narrow = socket.socket()
            narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            narrow.setblocking(False)
            host, port = process.url.removeprefix("http://").split(":")
            await asyncio.get_running_loop().sock_connect(narrow, (host, int(port)))
            client = Client()
            async with connect(address(process), additional_headers=headers, sock=narrow, max_queue=1, **PATIENT) as websocket:
                await websocket.send(subscribe(*tickers))
                await gateway.eventually(lambda: cut(process), 200)
                with pytest.raises(ConnectionClosed) as closed:
                    while True:
                        client.take(await websocket.recv())
            assert closed.value.rcvd is not None
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "too slow")
            return client.messages

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(publish())
            clients = [tasks.create_task(fast(each)) for each in (0, 1, 3000, 9000)]
            cut_client = tasks.create_task(slow())
        for client in (each.result() for each in clients):
            assert client.versions == dict.fromkeys(tickers, total)
            assert all(client.books[ticker] == exchange.markets[ticker].book for ticker in tickers)
        assert clients[0].result().gaps > 0
        assert 0 < cut_client.result() < 3 * total


async def cut(process: gateway.Gateway) -> bool:
    return '"too slow"' in process.log()


async def test_what_a_stream_says_of_the_unknown(
    exchange: Exchange, cluster: Cluster, database: str, redis_url: str, tmp_path: Path
) -> None:
    headers = {"Authorization": f"Bearer {await gateway.key(database)}"}
    for roll in (1, 2, 13):
        exchange.publish("KXA", roll)
    await exchange.producer.flush()
    await exchange.show("KXA")
    async with gateway.running(cluster, database, redis_url, tmp_path) as process:
        for bad in ({}, {"X-API-Key": "kb_live_" + "x" * 32}):
            with pytest.raises(InvalidStatus) as refused:
                await connect(address(process), additional_headers=bad)
            assert refused.value.response.status_code == 401
            assert orjson.loads(refused.value.response.body or b"")["error"]["code"] in ("missing_key", "unknown_key")
        async with connect(address(process), additional_headers=headers) as websocket:
            for wrong in ("{", "[]", "null", '{"action": "sing"}', subscribe(), '{"action": "subscribe", "tickers": [1]}'):
                await websocket.send(wrong)
                assert orjson.loads(await websocket.recv())["error"]["code"] == "invalid_command"
            await websocket.send(subscribe("KXNONE"))
            assert orjson.loads(await websocket.recv())["type"] == "subscribed"
            assert orjson.loads(await websocket.recv())["error"]["code"] == "unknown_market"
            client = Client()
            await websocket.send(subscribe("KXA", "KXB", "KXA"))
            client.take(await websocket.recv())
            begun = client.take(await websocket.recv())  # KXA lies in a gap; KXB has no book yet and stays silent
            gap = forms.gap(exchange.markets["KXA"].at, None, "disconnect")
            assert (begun["quality"]["state"], begun["quality"]["gap"], begun["quality"]["uncovered_us"]) == ("gap", gap, 1)
            told = client.take(await websocket.recv())
            assert (told["type"], told["version"], told["quality"]) == ("quality", begun["version"], begun["quality"])
            opened = exchange.markets["KXA"].at
            for ticker in ("KXB", "KXA"):
                made = exchange.publish(ticker, 1)
                await exchange.producer.flush()
                message = client.take(await websocket.recv())
                assert (message["type"], message["version"]) == ("snapshot", made.version)
                ended = None if ticker == "KXB" else forms.gap(opened, made.effective_us, "disconnect")
                assert message["gap"] == ended
                told = client.take(await websocket.recv())  # that a gap ended, or that the book begins
                assert (told["type"], told["version"], told["quality"]["state"]) == ("quality", made.version, "complete")
            await websocket.send(orjson.dumps({"action": "unsubscribe", "tickers": ["KXA"]}).decode())
            assert client.take(await websocket.recv())["type"] == "unsubscribed"
            exchange.publish("KXA", 1)
            exchange.publish("KXB", 2)
            await exchange.producer.flush()
            assert client.take(await websocket.recv())["market_ticker"] == "KXB"
            await asyncio.gather(process.stop(), end(websocket))


async def end(websocket: ClientConnection) -> None:
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            await websocket.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1001


async def test_a_book_in_redis_that_is_too_old_is_waited_for_not_bridged(
    exchange: Exchange, cluster: Cluster, database: str, redis_url: str, tmp_path: Path
) -> None:
    headers = {"X-API-Key": await gateway.key(database)}
    made = [exchange.publish("KXA", 1)]
    await exchange.show("KXA")  # version 1, and nothing newer for now
    made += [exchange.publish("KXA", 2 + number % 9) for number in range(100)]
    await exchange.producer.flush()
    assert all(isinstance(event, BookDelta) and not isinstance(event, Gap) for event in made[1:])
    async with gateway.running(cluster, database, redis_url, tmp_path, KB_STREAM_RING_EVENTS="10") as process:
        async with connect(address(process), additional_headers=headers) as websocket:
            client = Client()
            await websocket.send(subscribe("KXA"))
            assert client.take(await websocket.recv())["type"] == "subscribed"
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await websocket.recv()
            await exchange.show("KXA")
            assert client.take(await websocket.recv())["version"] == 101
            assert client.take(await websocket.recv())["type"] == "quality"
            exchange.publish("KXA", 3)
            await exchange.producer.flush()
            assert client.take(await websocket.recv())["version"] == 102
        answer = await ledger(database, 1)
        assert [(row["endpoint"], row["credits"], row["status"]) for row in answer] == [("stream", 1, 101)]


async def ledger(database: str, expected: int) -> list[Any]:
    connection = await pool.connect(database)

    async def there() -> bool:
        return bool(await connection.fetchval("SELECT count(*) FROM usage_ledger") >= expected)

    await gateway.eventually(there)
    rows = await connection.fetch("SELECT * FROM usage_ledger")
    await connection.close()
    return list(rows)
