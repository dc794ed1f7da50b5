"""An exchange that misbehaves: memory stays bounded, it is asked ever more slowly, that is told, and it ends when it ends."""

import asyncio
import itertools
import json
import resource
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from kalshibook_core.kafka import topics
from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.kafka.consumer import Consumer
from kalshibook_core.kalshi.signing import Credentials
from kalshibook_core.runtime.settings import Health
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import RawFrame
from services.ingest import families
from services.ingest import serve as ingest
from services.ingest.settings import Settings, SpoolSettings
from tests.unit.kalshi import frames

pytestmark = pytest.mark.stack

MARKETS = ["KXDOG-26AUG1-A", "KXDOG-26AUG1-B", "KXCAT-26AUG1-T0.5"]
MEGABYTE = 1024 * 1024


@dataclass
class Hostile:
    """One server that is REST and websocket; `mood` says what it does to whoever comes, "good" what a real one would."""

    mood: str = "good"
    handshakes: int = 0
    pages: int = 0
    ahead: timedelta = timedelta()  # of the true clock is its own
    sockets: list[ServerConnection] = field(default_factory=list)

    def request(self, socket: ServerConnection, request: Request) -> Response | None:
        if "/ws/" not in request.path:
            return self._rest(request)
        self.handshakes += 1
        if self.mood == "refuses":
            return socket.respond(401, '{"error":{"code":"authentication_error","details":"NOT_FOUND"}}')
        return None

    def response(self, socket: ServerConnection, request: Request, response: Response) -> None:
        response.headers.pop("Date", None)
        response.headers["Date"] = self._date()

    def _rest(self, request: Request) -> Response:
        self.pages += 1
        headers = Headers({"Date": self._date()})
        rows: list[Any] = [{"ticker": ticker, "status": "active"} for ticker in MARKETS]
        events = [{"event_ticker": "KXDOG-26AUG1"}]
        endless = self.mood == "lists without end"
        if self.mood == "tells of ever more events" and "/events" in request.path:
            events, endless = [{"event_ticker": f"KXDOG-{self.pages}"}], True
        if self.mood == "tells what no record holds":
            rows += [{"ticker": f"KXDEEP-{self.pages}", "rules": orjson.loads(b"[" * 500 + b"]" * 500)}]
        cursor = f"page {self.pages}" if endless else ""
        body = json.dumps({"cursor": cursor, "markets": rows, "events": events, "series": [7]}).encode()
        if self.mood == "answers a bomb":
            packer = zlib.compressobj(wbits=31)
            body = b"".join([packer.compress(b" " * MEGABYTE) for _ in range(400)] + [packer.flush()])
            headers["Content-Encoding"] = "gzip"
        headers["Content-Length"] = str(len(body))
        return Response(200, "OK", headers, body)

    def _date(self) -> str:
        return (datetime.now(UTC) + self.ahead).strftime("%a, %d %b %Y %H:%M:%S GMT")

    def cut(self) -> None:
        for socket in self.sockets:
            socket.transport.abort()

    async def talk(self, socket: ServerConnection) -> None:
        self.sockets.append(socket)
        try:
            match self.mood:
                case "frame without end":
                    socket.transport.write(b"\x01\x7e\xff\xff" + b"x" * 65535)
                    while not socket.transport.is_closing():
                        socket.transport.write(b"\x00\x7e\xff\xff" + b"x" * 65535)
                        await asyncio.sleep(0.001)
                case "frame that never ends":
                    socket.transport.write(b"\x81\x7f" + (2**20).to_bytes(8))
                    while not socket.transport.is_closing():
                        socket.transport.write(b"x")
                        await asyncio.sleep(0.1)
                case "frame of a terabyte":
                    socket.transport.write(b"\x81\x7f" + (2**40).to_bytes(8))
                    await socket.wait_closed()
                case "compressed bomb":
                    socket.transport.write(b"\xc1\x7e\xff\xff" + b"\x00" * 65535)
                    await socket.wait_closed()
                case "never acknowledges":
                    await socket.wait_closed()
                case _:
                    await self._talk_sense(socket)
        except ConnectionClosed:
            return

    async def _talk_sense(self, socket: ServerConnection) -> None:
        sids = itertools.count(1)
        async for text in socket:
            command = orjson.loads(text)
            params = command["params"]
            for channel in params.get("channels", []):
                sid = next(sids)
                await socket.send(frames.subscribed(command["id"], channel, sid), text=True)
                for seq, ticker in enumerate(params.get("market_tickers", []), 1):
                    if channel == "orderbook_delta":
                        await socket.send(frames.snapshot(ticker, sid, seq, [["0.4800", "5.00"]]), text=True)
                if self.mood == "goes backwards" and channel == "orderbook_delta":
                    for seq in range(10**6):
                        await socket.send(frames.delta(MARKETS[0], sid, max(1, 3 - seq)), text=True)
                if self.mood == "sends the unasked" and channel == "orderbook_delta":
                    for seq in range(20_000):
                        await socket.send(frames.snapshot(f"KXMANY-{seq}", sid, 4 + seq, [["0.4800", "5.00"]]), text=True)


@dataclass
class Scene:
    exchange: Hostile
    status: Callable[[], Any]
    cluster: Cluster

    async def until(self, seen: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        last: dict[str, Any] = {}
        try:
            async with asyncio.timeout(60):
                while not last or not seen(last):
                    await asyncio.sleep(0.05)
                    last = await self.status()
        except TimeoutError:
            raise AssertionError(f"never came: {what}; has {last}") from None
        return last

    async def behaves(self) -> None:
        """The exchange is good from now on: every market is captured."""
        self.exchange.mood = "good"
        self.exchange.ahead = timedelta()
        self.exchange.cut()
        await self.until(
            lambda c: c["subscriptions"] == 3 and c["connections"] == 1 and not c["trouble"] and c["clock_skew_seconds"] < 2,
            "capturing",
        )
        await self.read(lambda raw: raw.market_ticker in MARKETS and b"_snapshot" in raw.payload)

    async def read(self, wanted: Callable[[RawFrame], bool]) -> None:
        """Wait until such a record of every market is in the topic."""
        seen: set[str] = set()
        async with Consumer(self.cluster, [topics.RAW]) as consumer, asyncio.timeout(60):
            while seen != set(MARKETS):
                for records in (await consumer.poll(5000, 200)).values():
                    raws: list[RawFrame] = [codec.decode(record.value) for record in records if record.value is not None]
                    seen |= {raw.market_ticker for raw in raws if wanted(raw)}


@asynccontextmanager
async def gathering(cluster: Cluster, folder: Path, health_port: int, mood: str, **settings: Any) -> AsyncIterator[Scene]:
    exchange = Hostile(mood, ahead=timedelta(hours=mood == "an hour off"))
    server: Server
    async with serve(
        exchange.talk, "127.0.0.1", 0, process_request=exchange.request, process_response=exchange.response, compression=None
    ) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        stop = asyncio.Event()
        told = Settings(
            cluster,
            Credentials("none", rsa.generate_private_key(public_exponent=65537, key_size=2048)),
            f"ws://127.0.0.1:{port}/trade-api/ws/v2",
            f"http://127.0.0.1:{port}/trade-api/v2",
            requests_per_second=1000,
            spool=SpoolSettings(folder),
            health=Health(health_port),
            **settings,
        )
        async with (
            asyncio.TaskGroup() as tasks,
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{health_port}", trust_env=False, timeout=60) as client,
        ):
            running = tasks.create_task(ingest.serve(told, stop))

            async def status() -> dict[str, Any]:
                try:
                    counters: dict[str, Any] = (await client.get("/status")).json()["counters"]
                except httpx.ConnectError:
                    return {}
                return counters

            yield Scene(exchange, status, cluster)
            stop.set()
            await running


@pytest.mark.parametrize(
    ("mood", "settings", "told"),
    [
        ("frame without end", {}, lambda c: c["reconnects_total"] > 2 and "disconnect" in c["trouble"]),
        ("frame of a terabyte", {}, lambda c: c["reconnects_total"] > 2 and "disconnect" in c["trouble"]),
        ("compressed bomb", {}, lambda c: c["reconnects_total"] > 2 and "disconnect" in c["trouble"]),
        ("frame that never ends", {"silence_seconds": 1}, lambda c: "silent_socket" in c["trouble"]),
        ("never acknowledges", {}, lambda c: "terminal_subscription_error" in c["trouble"]),
        ("goes backwards", {}, lambda c: c["stale_total"] >= 128 and c["failed_total"] >= 2),
        ("sends the unasked", {}, lambda c: c["unasked_total"] >= 20_000),
        ("refuses", {}, lambda c: c["handshakes_failed_total"] > 3 and "KALSHI_API_KEY_ID is unknown" in c["trouble"]),
        ("an hour off", {}, lambda c: abs(c["clock_skew_seconds"] - 3600) < 2),
        ("lists without end", {"reconcile_seconds": 1}, lambda c: c["rest_endless_total"] > 2),
        ("tells of ever more events", {}, lambda c: c["rest_endless_total"] > 0),
        ("tells what no record holds", {"reconcile_seconds": 1}, lambda c: c["rest_unparsable_total"] > 2),
        ("answers a bomb", {}, lambda c: c["rest_retries_total"] > 2 and "the answer has more than" in c["trouble"]),
    ],
)
async def test_it_is_survived_told_and_over_when_it_is_over(
    cluster: Cluster, tmp_path: Path, free_tcp_port: int, monkeypatch: pytest.MonkeyPatch,
    mood: str, settings: dict[str, Any], told: Callable[[Any], bool],
) -> None:  # fmt: skip
    monkeypatch.setattr(families, "MOST", 50)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    async with gathering(cluster, tmp_path, free_tcp_port, mood, **settings) as scene:
        began = asyncio.get_running_loop().time()
        await scene.until(told, f"what {mood} looks like")
        took = asyncio.get_running_loop().time() - began
        assert scene.exchange.handshakes < 12 + took  # not again and again at once
        await scene.behaves()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


async def test_a_cut_in_the_weekly_pause_is_no_fault(cluster: Cluster, tmp_path: Path, free_tcp_port: int) -> None:
    """By the exchange's own clock, on a Thursday at half past three in New York."""
    async with gathering(cluster, tmp_path, free_tcp_port, "good") as scene:
        await scene.until(lambda c: c["connections"] == 1 and c["book_frames_total"] >= 3, "capturing")
        scene.exchange.ahead = datetime(2026, 12, 3, 8, 30, tzinfo=UTC) - datetime.now(UTC)
        scene.exchange.cut()
        await scene.until(lambda c: c["connections"] == 1 and c["book_frames_total"] >= 6, "capturing again")
        scene.exchange.cut()
        await scene.read(lambda raw: (raw.kind, raw.channel, raw.detail) == ("BREAK", "orderbook_delta", "exchange_maintenance"))
