"""What a client sees on the simulator's sockets, with a plain websocket client and plain HTTP that know nothing of ours."""

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import websockets
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding
from websockets.asyncio.client import ClientConnection, connect

from kalshibook_core.orderbook import Book
from kalshibook_core.runtime import clock
from kalshibook_tools import simulator
from kalshibook_tools.simulator import server
from tests.integration.test_ingest_capture import ALWAYS
from tests.support import recordings

CHANNELS = ["orderbook_delta", "trade"]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys")


def signed(
    exchange: simulator.Running, method: str = "GET", path: str = "/trade-api/ws/v2", off_ms: int = 0, client: int = 1
) -> dict[str, str]:
    """Sign as Kalshi's guide does, without our own signing."""
    timestamp = str(clock.now_us() // 1000 + off_ms)
    key: Any = serialization.load_pem_private_key(exchange.private_key_path.read_bytes(), None)
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=padding.PSS.DIGEST_LENGTH)
    signature = base64.b64encode(key.sign((timestamp + method + path).encode(), pss, hashes.SHA256())).decode()
    key_id = exchange.key_ids[client - 1]
    return {"KALSHI-ACCESS-KEY": key_id, "KALSHI-ACCESS-SIGNATURE": signature, "KALSHI-ACCESS-TIMESTAMP": timestamp}


@asynccontextmanager
async def a_client(exchange: simulator.Running, client: int = 1) -> AsyncIterator[ClientConnection]:
    headers = signed(exchange, client=client)
    async with connect(exchange.ws_url, additional_headers=headers, compression=None, max_queue=None, max_size=None) as socket:
        yield socket


async def subscribe(client: ClientConnection, tickers: list[str] | None, channels: list[str] = CHANNELS) -> None:
    params = {"channels": channels, **({"market_tickers": tickers} if tickers else {})}
    await client.send(orjson.dumps({"id": 1, "cmd": "subscribe", "params": params}).decode())


async def received(client: ClientConnection, enough: Callable[[list[dict[str, Any]]], Any]) -> list[dict[str, Any]]:
    """Collect frames until there are enough, at most a minute."""
    got: list[dict[str, Any]] = []
    async with asyncio.timeout(60):
        while not enough(got):
            got.append(orjson.loads(await client.recv()))
    return got


async def wait_for(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def quiet(keys: Path) -> simulator.Config:
    """An exchange of five markets where nothing happens but what a test does."""
    return simulator.Config(key_dir=keys, markets=5, rate=20.0, duration=0.05, window=ALWAYS)


# -- handshake ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "body"),
    [
        (
            {"KALSHI-ACCESS-KEY": ""},
            {"code": "signature_is_missing_from_headers", "message": "signature is missing from headers"},
        ),
        ({"off_ms": -30_000}, {"code": "header_timestamp_expired", "message": "header timestamp expired"}),
        ({"off_ms": 30_000}, {"code": "header_timestamp_expired", "message": "header timestamp expired"}),
        (
            {"KALSHI-ACCESS-KEY": "nobody"},
            {"code": "authentication_error", "message": "authentication_error", "details": "NOT_FOUND"},
        ),
        (
            {"path": "/trade-api/v2"},
            {"code": "authentication_error", "message": "authentication_error", "details": "INCORRECT_API_KEY_SIGNATURE"},
        ),
    ],
)
async def test_a_handshake_that_is_not_signed_right_is_401(keys: Path, change: dict[str, Any], body: dict[str, str]):
    async with simulator.serve(quiet(keys)) as exchange:
        options = {key: change.pop(key) for key in ("off_ms", "path") if key in change}
        headers = {**signed(exchange, **options), **change}
        with pytest.raises(websockets.InvalidStatus) as refusal:
            async with connect(exchange.ws_url, additional_headers=headers):
                pass
        assert refusal.value.response.status_code == 401
        assert orjson.loads(refusal.value.response.body or b"") == {"error": body}
        async with connect(exchange.ws_url, additional_headers=signed(exchange, off_ms=-4_000)):
            pass


async def test_the_server_pings_with_heartbeat(keys: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(server, "HEARTBEAT_SECONDS", 0.05)
    async with simulator.serve(quiet(keys)) as exchange:
        reader, writer = await asyncio.open_connection("127.0.0.1", exchange.port)
        head = [
            "GET /trade-api/ws/v2 HTTP/1.1",
            "Host: x",
            "Upgrade: websocket",
            "Connection: Upgrade",
            "Sec-WebSocket-Version: 13",
        ]
        head += ["Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="] + [f"{k}: {v}" for k, v in signed(exchange).items()]
        writer.write(("\r\n".join(head) + "\r\n\r\n").encode())
        async with asyncio.timeout(60):
            assert b"101" in await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(11) == b"\x89\x09heartbeat"
        writer.close()


async def test_clients_ping_is_answered_and_sids_begin_at_1_on_each_connection(keys: Path):
    async with simulator.serve(quiet(keys)) as exchange:
        await wait_for(lambda: len(exchange.exchange.markets) >= 5)
        for _ in range(2):
            async with a_client(exchange) as client:
                await asyncio.wait_for(await client.ping(), 60)
                await subscribe(client, list(exchange.exchange.markets))
                acks = await received(client, lambda got: len(got) == 7)
                assert [ack["msg"]["sid"] for ack in acks[:2]] == [1, 2]
                assert [frame["seq"] for frame in acks[2:]] == [1, 2, 3, 4, 5]


# -- recordings --------------------------------------------------------------------------------------------------


async def play(exchange: simulator.Running, number: int = 1) -> dict[str, list[bytes]]:
    """Follow a recording as a gatherer does: discover by lifecycle, subscribe, reconnect when cut. Return all frames."""
    frames: dict[str, list[bytes]] = {}
    status = exchange.exchange
    while not status.done:
        try:
            async with a_client(exchange, number) as client:
                await subscribe(client, None, ["market_lifecycle_v2", "multivariate_market_lifecycle"])
                open_markets = [ticker for ticker, market in status.markets.items() if market.body["status"] != "finalized"]
                await subscribe(client, open_markets)
                over = False
                while True:
                    try:
                        text = await asyncio.wait_for(client.recv(decode=False), 0.3)
                    except TimeoutError:
                        if over:
                            return frames
                        if status.done:
                            await (await client.ping())  # whose answer comes behind all that was sent
                            over = True
                        continue
                    assert text.endswith(b"}\n")
                    frame = orjson.loads(text)
                    if frame["type"] in ("orderbook_snapshot", "orderbook_delta", "trade"):
                        frames.setdefault(frame["msg"]["market_ticker"], []).append(text)
                    elif frame.get("msg", {}).get("event_type") == "created":
                        await subscribe(client, [frame["msg"]["market_ticker"]])
        except websockets.ConnectionClosedError:
            continue
    return frames


def bare(frame: bytes) -> bytes:
    """A frame without the two numbers that may change."""
    return re.sub(rb'"(sid|seq)":\d+', rb'"\1":0', frame.rstrip(b"\n"))


@pytest.mark.parametrize("speed", [None, 20.0])
@pytest.mark.parametrize("deaths", [(), (6.0, 13.0)])
async def test_a_recording_arrives_whole_and_verbatim_at_any_speed(
    tmp_path: Path, keys: Path, speed: float | None, deaths: tuple[float, ...]
):
    written = recordings.write(tmp_path, seconds=20, window=8, deaths=deaths)
    config = simulator.Config(key_dir=keys, recordings=(tmp_path,), speed=speed)
    async with simulator.serve(config) as exchange:
        frames = await play(exchange)
        assert exchange.exchange.status()["events"] == written.frames
        assert {t: m.gaps for t, m in exchange.exchange.markets.items()} == {
            ticker: sum(ticker in known for known in written.known_at_death) for ticker in written.lines
        }
        for ticker, lines in written.lines.items():
            assert [bare(frame) for frame in frames[ticker]] == [bare(event) for _, event in lines]
            status = exchange.exchange.markets[ticker].rest_object()["status"]
            assert status == ("finalized" if ticker in written.settled else "active")


async def test_the_clock_stands_until_somebody_subscribes_and_a_late_client_gets_the_book(tmp_path: Path, keys: Path):
    written = recordings.write(tmp_path, seconds=5, markets=2)
    ticker = next(iter(written.lines))
    config = simulator.Config(key_dir=keys, recordings=(written.events / ticker,), speed=None)
    async with simulator.serve(config) as exchange, httpx.AsyncClient(base_url=exchange.rest_url) as rest:
        first_ms = written.lines[ticker][0][0]
        await wait_for(lambda: exchange.exchange.waiting)
        assert exchange.exchange.frames == 1  # `created`
        answer = await rest.get(f"/markets/{ticker}")
        assert parsedate_to_datetime(answer.headers["date"]).timestamp() == first_ms // 1000
        assert answer.json()["market"]["status"] == "active"
        async with a_client(exchange) as client:
            await subscribe(client, [ticker])
            await received(client, lambda got: len(got) == 2 + len(written.lines[ticker]))
            await wait_for(lambda: exchange.exchange.done)
            async with a_client(exchange) as late:
                await subscribe(late, [ticker], ["orderbook_delta"])
                snapshot = (await received(late, lambda got: len(got) == 2))[1]["msg"]
        book = (await rest.get(f"/markets/{ticker}/orderbook")).json()["orderbook_fp"]
        assert book == {"yes_dollars": snapshot.get("yes_dollars_fp", []), "no_dollars": snapshot.get("no_dollars_fp", [])}
        truth = [orjson.loads(line) for line in (await rest.get(f"{exchange.control_url}/truth/{ticker}")).text.splitlines()]
        assert len(truth) == len(written.lines[ticker]) and all(row["sent"] == 1 for row in truth)


async def test_two_gatherers_each_get_everything(tmp_path: Path, keys: Path):
    written = recordings.write(tmp_path, seconds=5, markets=2)
    config = simulator.Config(key_dir=keys, recordings=(tmp_path,), speed=None, gatherers=2)
    async with simulator.serve(config) as exchange:
        both = await asyncio.gather(play(exchange), play(exchange, 2))
        for frames in both:
            assert {t: len(f) for t, f in frames.items()} == {t: len(lines) for t, lines in written.lines.items()}


# -- faults ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def trading(keys: Path, **config: Any) -> AsyncIterator[tuple[simulator.Running, ClientConnection]]:
    settings = {"markets": 5, "rate": 400.0, "window": ALWAYS, **config}
    async with simulator.serve(simulator.Config(key_dir=keys, **settings)) as exchange:
        await wait_for(lambda: len(exchange.exchange.markets) >= 5)
        async with a_client(exchange) as client:
            await subscribe(client, list(exchange.exchange.markets)[:5])  # a sixth may be announced already
            await received(client, lambda got: len(got) == 7)
            yield exchange, client


def seqs(frames: list[dict[str, Any]], sid: int = 1) -> list[int]:
    return [frame["seq"] for frame in frames if frame.get("sid") == sid and "seq" in frame]


def holes(frames: list[dict[str, Any]]) -> list[int]:
    """Return what is missing of a book's numbers behind the five snapshots."""
    return sorted(set(range(6, max(seqs(frames), default=6))) - set(seqs(frames)))


async def test_dropped_repeated_and_swapped_frames(keys: Path):
    async with trading(keys) as (exchange, client):
        exchange.inject(kind="drop", count=2)
        got = await received(client, lambda got: holes(got) and seqs(got)[-1] > holes(got)[0] + 3)
        assert holes(got) == [holes(got)[0], holes(got)[0] + 1]
        exchange.inject(kind="duplicate")
        got = seqs(await received(client, lambda got: len(seqs(got)) > len(set(seqs(got)))))
        assert got[-1] == got[-2]
        exchange.inject(kind="reorder")
        got = seqs(await received(client, lambda got: sorted(seqs(got)) != seqs(got)))
        assert got[-2] == got[-1] + 1
        assert exchange.exchange.faults.report() == {"drop": 2, "duplicate": 1, "reorder": 1}
        lost = [row for ticker in exchange.exchange.markets for row in exchange.truth(ticker) if row["lost"]]
        assert len(lost) == 2


async def test_a_frame_that_cannot_be_is_sent_and_is_not_true(keys: Path):
    async with trading(keys) as (exchange, client):
        for kind in ("unknown_type", "big_frame", "negative_level", "unparsable"):
            exchange.inject(kind=kind)
        got = await received(client, lambda got: any("many" in str(frame["msg"]) for frame in got))
        assert max(len(str(frame)) for frame in got) > 1_000_000
        assert any(frame["type"] == "quantum_update" for frame in got)
        assert any(frame["msg"].get("delta_fp") == "-10000000000.00" for frame in got)
        assert seqs(got) == list(range(seqs(got)[0], seqs(got)[0] + len(seqs(got))))
        assert exchange.exchange.corrupt == 0
        exchange.inject(kind="malformed")
        with pytest.raises(orjson.JSONDecodeError):
            await received(client, lambda got: False)


async def test_terminal_errors_end_the_subscription_and_others_go_on(keys: Path):
    async with trading(keys) as (exchange, client):
        exchange.inject(kind="error_25")
        got = await received(client, lambda got: any(frame["type"] == "error" for frame in got))
        assert got[-1]["msg"] == {"code": 25, "msg": "Subscription buffer overflow"} and got[-1]["sid"] == 1
        rest = await received(client, lambda got: len(got) > 3)
        assert not seqs(rest)
        await subscribe(client, list(exchange.exchange.markets))
        again = await received(client, lambda got: len(seqs(got, 3)) > 5)
        assert seqs(again, 3)[:6] == [1, 2, 3, 4, 5, 6]


async def test_a_reset_has_no_close_frame_and_the_next_handshake_can_be_502(keys: Path):
    async with trading(keys) as (exchange, client):
        exchange.inject(kind="http_502")
        exchange.inject(kind="reset")
        with pytest.raises(websockets.ConnectionClosedError) as cut:
            await received(client, lambda got: False)
        assert cut.value.rcvd is None
        with pytest.raises(websockets.InvalidStatus) as refusal:
            async with a_client(exchange):
                pass
        assert refusal.value.response.status_code == 502
        async with a_client(exchange):
            pass
        exchange.inject(kind="http_429")
        async with httpx.AsyncClient() as rest:
            answer = await rest.get(f"{exchange.rest_url}/markets")
            assert (answer.status_code, answer.json()) == (429, {"error": "too many requests"})


async def test_delay_silence_and_close(keys: Path):
    async with trading(keys) as (exchange, client):
        exchange.inject(kind="delay", seconds=0.3)
        got = await received(client, lambda got: got and _age_ms(got[-1]) >= 300)
        exchange.inject(kind="delay", seconds=0)
        got += await received(client, lambda got: got and 0 <= _age_ms(got[-1]) < 200)
        assert seqs(got) == list(range(seqs(got)[0], seqs(got)[0] + len(seqs(got))))
        exchange.inject(kind="close")
        with pytest.raises(websockets.ConnectionClosed) as closed:
            await received(client, lambda got: False)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1001
        async with a_client(exchange) as other:
            exchange.inject(kind="silence")
            await subscribe(other, None, ["trade"])
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(other.recv(), 0.3)


def _age_ms(frame: dict[str, Any]) -> float:
    ts_ms = frame["msg"].get("ts_ms")
    return clock.now_us() / 1000 - ts_ms if ts_ms else -1.0


async def test_faults_over_http_say_what_is_wrong_with_them(keys: Path):
    async with simulator.serve(quiet(keys)) as exchange, httpx.AsyncClient(base_url=exchange.control_url) as control:
        for body in ({"kind": "nothing"}, {"kind": "drop", "count": 0}, {"kind": "drop", "size": 1}, {"kind": "resnapshot"}, []):
            answer = await control.post("/faults", json=body)
            assert answer.status_code == 422 and answer.json()["error"]["message"]
        assert (await control.post("/faults", json={"kind": "drop", "count": 3})).json() == {
            "armed": [{"kind": "drop", "count": 3}]
        }
        assert (await control.post("/pause")).json() == {"paused": True}
        status = await control.get(f"{exchange.rest_url}/exchange/status")
        assert status.json() == {"exchange_active": True, "trading_active": False}
        assert (await control.get("/status")).json()["paused"] is True


# -- generated markets and REST ----------------------------------------------------------------------------------


async def test_books_a_client_keeps_equal_the_truth_and_rest(keys: Path):
    async with trading(keys, duration=1.0, window=1.2, rate=2_000.0) as (exchange, client):
        params = {"sids": [1], "market_tickers": [next(iter(exchange.exchange.markets))], "action": "get_snapshot"}
        await client.send(orjson.dumps({"id": 2, "cmd": "update_subscription", "params": params}).decode())
        await wait_for(lambda: exchange.exchange.done)
        exchange.pause()
        total = {t: len([r for r in exchange.truth(t) if r["sent"]]) for t in exchange.exchange.markets}
        got = await received(client, lambda got: len(got) - 1 >= sum(total.values()))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(client.recv(), 0.2)
        book_frames = [frame for frame in got if frame.get("sid") == 1]
        assert seqs(book_frames) == list(range(6, 6 + len(book_frames)))
        assert sum(frame.get("id") == 2 for frame in got) == 1
        assert len(got) - 1 == sum(total.values())
        for ticker, market in exchange.exchange.markets.items():
            book = Book()
            for row in exchange.truth(ticker):
                if row["type"] == "snapshot":
                    book = Book(row["yes"], row["no"])
                elif row["type"] == "delta":
                    book.apply(("yes", "no").index(row["side"]), row["price"], row["delta"])
            assert book == market.book


async def test_rest_pages_filters_and_refusals(keys: Path):
    async with simulator.serve(simulator.Config(key_dir=keys, markets=25, rate=300.0, window=ALWAYS)) as exchange:
        await wait_for(lambda: exchange.exchange.trades > 5)
        async with httpx.AsyncClient(base_url=exchange.rest_url) as rest:
            seen, cursor = [], ""
            while True:
                page = (await rest.get("/markets", params={"limit": 10, "cursor": cursor})).json()
                seen += [market["ticker"] for market in page["markets"]]
                cursor = page["cursor"]
                if not cursor:
                    break
            assert sorted(seen) == sorted(set(seen)) == sorted(exchange.exchange.markets)
            first = (await rest.get("/markets", params={"limit": 10})).json()["markets"]
            garbage = (await rest.get("/markets", params={"limit": 10, "cursor": "%%%"})).json()["markets"]
            assert [m["ticker"] for m in garbage] == [m["ticker"] for m in first]
            too_many = await rest.get("/markets", params={"limit": 1001})
            assert too_many.status_code == 400 and "failed on the 'lte' tag" in too_many.json()["msg"]
            assert {m["status"] for m in (await rest.get("/markets?status=open")).json()["markets"]} == {"active"}
            assert (await rest.get("/markets?status=settled")).json() == {"cursor": "", "markets": []}
            assert (await rest.get("/markets/NOBODY-1")).status_code == 404
            two = (await rest.get("/markets", params={"tickers": f"{seen[0]},{seen[3]}"})).json()["markets"]
            assert [m["ticker"] for m in two] == [seen[0], seen[3]]
            event = (await rest.get(f"/events/{first[0]['event_ticker']}")).json()
            assert seen[0] in [m["ticker"] for m in event["markets"]]
            events = (await rest.get("/events?with_nested_markets=true")).json()["events"]
            assert sum(len(event["markets"]) for event in events) == len(seen)
            assert (await rest.get("/series")).json()["series"]
            assert (await rest.get("/exchange/schedule")).json()["schedule"]["standard_hours"]
            both = (await rest.get("/markets/orderbooks", params={"tickers": seen[:2]})).json()["orderbooks"]
            assert [book["ticker"] for book in both] == seen[:2]
            trades = (await rest.get("/markets/trades", params={"limit": 5})).json()
            times = [trade["created_time"] for trade in trades["trades"]]
            assert len(times) == 5 and trades["cursor"]
            path = "/trade-api/v2/markets"
            assert (await rest.get("/markets", headers=signed(exchange, path=path))).status_code == 200
            assert (await rest.get("/markets", headers=signed(exchange, path="/other"))).status_code == 401
