"""The conformance list of a connection's commands, golden, and what must hold for any sequence of them."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kalshibook_core.orderbook import NO, YES, Book
from kalshibook_tools.simulator import frames
from kalshibook_tools.simulator.exchange import Exchange
from kalshibook_tools.simulator.market import Delta, definition
from kalshibook_tools.simulator.subscriptions import Subscriptions

A, B, C = "FED-23DEC-T3.00", "KXGOLD15M-26AUG050000-00", "KXNEVER-1"


class Client:
    """A connection without a socket: what it was sent, decoded."""

    def __init__(self, exchange: Exchange) -> None:
        self.alive, self.silent, self.number, self.client = True, False, 1, 1
        self.sent: list[bytes] = []
        self.subscriptions = Subscriptions(self, exchange)

    def enqueue(self, payload: bytes) -> None:
        self.sent.append(payload)

    def command(self, **body: Any) -> list[dict[str, Any]]:
        answers = self.subscriptions.receive(orjson.dumps(body))
        for answer in answers:
            self.enqueue(answer)
        return [orjson.loads(answer) for answer in answers]

    def subscribe(self, *channels: str, **params: Any) -> list[dict[str, Any]]:
        return self.command(id=1, cmd="subscribe", params={"channels": list(channels), **params})

    def update(self, sid: int, action: str, *tickers: str, number: int = 9) -> list[dict[str, Any]]:
        params = {"sids": [sid], "market_tickers": list(tickers), "action": action}
        return self.command(id=number, cmd="update_subscription", params=params)

    @property
    def frames(self) -> list[dict[str, Any]]:
        return [orjson.loads(payload) for payload in self.sent]


def an_exchange() -> Exchange:
    exchange = Exchange(clock_us=lambda: 1_786_000_000_000_000, source="test", truth_limit=10_000)
    for ticker, book in ((A, Book(((4700, 300), (4800, 1200)), ((1000, 5000), (5100, 54)))), (B, Book())):
        body, event = definition(ticker, open_us=0, close_us=10**15, status="active")
        exchange.list_market(body, event, "9b0f6b43-5b68-4f9f-9f02-9a2d1b8ac1a1").book = book
    return exchange


def delta(exchange: Exchange, ticker: str, side: int, price: int, size: int) -> None:
    frame = frames.delta(ticker, "9b0f6b43-5b68-4f9f-9f02-9a2d1b8ac1a1", side, price, size, 1_786_000_000_500_000)
    exchange.publish(Delta(ticker, frame, 1_786_000_000_500_000, side, price, size))


@pytest.fixture
def client() -> Client:
    return Client(an_exchange())


def codes(answers: list[dict[str, Any]]) -> list[int]:
    return [answer["msg"]["code"] for answer in answers]


def test_bytes_of_ack_snapshot_and_delta_are_the_exchanges():
    exchange = an_exchange()
    client = Client(exchange)
    client.subscribe("orderbook_delta", market_tickers=[A])
    delta(exchange, A, NO, 5100, -54)
    assert client.sent == [
        b'{"type":"subscribed","id":1,"msg":{"channel":"orderbook_delta","sid":1}}\n',
        b'{"type":"orderbook_snapshot","sid":1,"seq":1,"msg":{"market_ticker":"FED-23DEC-T3.00",'
        b'"market_id":"9b0f6b43-5b68-4f9f-9f02-9a2d1b8ac1a1","yes_dollars_fp":[["0.4700","3.00"],["0.4800","12.00"]],'
        b'"no_dollars_fp":[["0.1000","50.00"],["0.5100","0.54"]]}}\n',
        b'{"type":"orderbook_delta","sid":1,"seq":2,"msg":{"market_ticker":"FED-23DEC-T3.00",'
        b'"market_id":"9b0f6b43-5b68-4f9f-9f02-9a2d1b8ac1a1","price_dollars":"0.5100","delta_fp":"-0.54","side":"no",'
        b'"ts":"2026-08-06T07:06:40.5Z","ts_ms":1786000000500}}\n',
    ]


def test_each_channel_has_its_sid_and_its_own_ack(client: Client):
    answers = client.subscribe("orderbook_delta", "ticker", "trade", "market_lifecycle_v2", market_tickers=[B])
    acks = [(a["msg"]["channel"], a["msg"]["sid"]) for a in answers if a["type"] == "subscribed"]
    assert acks == [("orderbook_delta", 1), ("ticker", 2), ("trade", 3), ("market_lifecycle_v2", 4)]
    assert all("seq" not in answer for answer in answers[:4])
    rows = client.command(id=3, cmd="list_subscriptions")[0]
    assert rows == {"id": 3, "type": "ok", "msg": [{"channel": c, "sid": s} for c, s in acks]}


def test_empty_sides_are_left_out(client: Client):
    snapshot = client.subscribe("orderbook_delta", market_ticker=B)[1]
    assert set(snapshot["msg"]) == {"market_ticker", "market_id"}


def test_a_second_subscribe_merges_and_consumes_a_seq(client: Client):
    client.subscribe("orderbook_delta", market_tickers=[A])
    ok, snapshot = client.subscribe("orderbook_delta", market_tickers=[B, A])
    assert ok == {"id": 1, "sid": 1, "seq": 2, "type": "ok", "msg": {"market_tickers": [A, B]}}
    assert (snapshot["seq"], snapshot["msg"]["market_ticker"]) == (3, B)


def test_add_and_delete_markets():
    exchange = an_exchange()
    client = Client(exchange)
    client.subscribe("orderbook_delta", market_tickers=[A])
    ok, snapshot = client.update(1, "add_markets", B)
    assert (ok["seq"], ok["msg"]["market_tickers"], snapshot["seq"]) == (2, [A, B], 3)
    assert client.update(1, "delete_markets", A)[0] == {
        "id": 9,
        "sid": 1,
        "seq": 4,
        "type": "ok",
        "msg": {"market_tickers": [B]},
    }
    delta(exchange, A, YES, 4700, 100)
    delta(exchange, B, YES, 4700, 100)
    assert [(f["seq"], f["msg"]["market_ticker"]) for f in client.frames[5:]] == [(5, B)]


def test_get_snapshot_is_answered_by_snapshots_with_its_id_and_no_ok(client: Client):
    client.subscribe("orderbook_delta", market_tickers=[A, B])
    answers = client.update(1, "get_snapshot", B, A, number=77)
    assert [(a["type"], a["id"], a["seq"], a["msg"]["market_ticker"]) for a in answers] == [
        ("orderbook_snapshot", 77, 3, B),
        ("orderbook_snapshot", 77, 4, A),
    ]


def test_get_snapshot_on_a_trade_sid_is_error_13_and_consumes_a_seq(client: Client):
    client.subscribe("trade", market_tickers=[A])
    error = client.update(1, "get_snapshot", A)[0]
    assert (error["type"], error["sid"], error["seq"], error["msg"]) == ("error", 1, 1, {"code": 13, "msg": "Unsupported action"})


def test_unsubscribed_consumes_a_seq_and_sids_are_not_used_again(client: Client):
    client.subscribe("orderbook_delta", market_tickers=[A])
    assert client.command(id=2, cmd="unsubscribe", params={"sids": [1]}) == [
        {"id": 2, "sid": 1, "seq": 2, "type": "unsubscribed"}
    ]
    assert client.subscribe("orderbook_delta", market_tickers=[A])[0]["msg"]["sid"] == 2


def test_yes_price_complements_the_no_side_and_its_list_descends():
    exchange = an_exchange()
    client = Client(exchange)
    snapshot = client.subscribe("orderbook_delta", market_tickers=[A], use_yes_price=True)[1]
    assert snapshot["msg"]["no_dollars_fp"] == [["0.9000", "50.00"], ["0.4900", "0.54"]]
    assert snapshot["msg"]["yes_dollars_fp"] == [["0.4700", "3.00"], ["0.4800", "12.00"]]
    delta(exchange, A, NO, 5100, 100)
    delta(exchange, A, YES, 4700, 100)
    assert [f["msg"]["price_dollars"] for f in client.frames[2:]] == ["0.4900", "0.4700"]


def test_ticker_has_no_seq_and_can_begin_with_a_snapshot(client: Client):
    _, ticker = client.subscribe("ticker", market_tickers=[A], send_initial_snapshot=True)
    assert (ticker["type"], ticker["sid"], "seq" in ticker) == ("ticker", 1, False)
    assert (ticker["msg"]["yes_bid_dollars"], ticker["msg"]["yes_ask_dollars"]) == ("0.4800", "0.4900")
    assert "seq" not in client.update(1, "add_markets", B)[0]


def test_skip_ticker_ack_leaves_the_list_out(client: Client):
    client.subscribe("orderbook_delta", market_tickers=[A], skip_ticker_ack=True)
    assert "msg" not in client.update(1, "add_markets", B)[0]


def test_a_market_of_no_book_is_answered_later():
    exchange = an_exchange()
    client = Client(exchange)
    assert [a["type"] for a in client.subscribe("orderbook_delta", market_tickers=[C])] == ["subscribed"]
    assert len(exchange.audience("orderbook_delta", C)) == 1


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ({"cmd": "dance"}, 5),
        ({"cmd": "subscribe"}, 2),
        ({"cmd": "subscribe", "params": {}}, 3),
        ({"cmd": "subscribe", "params": {"channels": ["multivariate"]}}, 8),
        ({"cmd": "subscribe", "params": {"channels": ["orderbook_delta"]}}, 14),
        ({"cmd": "subscribe", "params": {"channels": ["trade"], "market_ticker": A, "market_tickers": [B]}}, 11),
        ({"cmd": "unsubscribe", "params": {}}, 4),
        ({"cmd": "unsubscribe", "params": {"sids": [99]}}, 7),
        ({"cmd": "update_subscription", "params": {"action": "add_markets"}}, 12),
        ({"cmd": "update_subscription", "params": {"sids": [1, 2], "action": "add_markets"}}, 12),
        ({"cmd": "update_subscription", "params": {"sid": 99, "action": "add_markets"}}, 7),
        ({"cmd": "update_subscription", "params": {"sid": 1, "market_tickers": [A]}}, 15),
        ({"cmd": "update_subscription", "params": {"sid": 1, "action": "explode"}}, 13),
        ({"cmd": "update_subscription", "params": {"sid": 1, "action": "add_markets"}}, 14),
    ],
)
def test_errors(client: Client, command: dict[str, Any], code: int):
    client.subscribe("orderbook_delta", market_tickers=[A])
    answers = client.command(id=5, **command)
    assert codes(answers) == [code] and answers[0]["id"] == 5


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'"subscribe"', b"\xff"])
def test_what_is_no_command_is_error_1(client: Client, text: bytes):
    assert codes([orjson.loads(answer) for answer in client.subscriptions.receive(text)]) == [1]


def test_a_terminal_error_ends_the_subscription_in_its_sequence():
    exchange = an_exchange()
    client = Client(exchange)
    client.subscribe("orderbook_delta", market_tickers=[A])
    ended = orjson.loads(client.subscriptions.end(client.subscriptions.by_sid[1], 25))
    assert ended == {"type": "error", "sid": 1, "seq": 2, "msg": {"code": 25, "msg": "Subscription buffer overflow"}}
    assert exchange.audience("orderbook_delta", A) == []
    assert not exchange.heard("orderbook_delta", A)  # it is waited for: the client did not ask to leave


TICKERS = st.lists(st.sampled_from([A, B, C]), min_size=1, max_size=3)
SIDS = st.integers(0, 6)
STEPS = st.one_of(
    st.tuples(
        st.just("subscribe"), st.lists(st.sampled_from(["orderbook_delta", "trade", "ticker"]), min_size=1, max_size=3), TICKERS
    ),
    st.tuples(st.just("unsubscribe"), st.lists(SIDS, max_size=3)),
    st.tuples(st.sampled_from(["add_markets", "delete_markets", "get_snapshot", "?"]), SIDS, TICKERS),
    st.tuples(
        st.just("delta"),
        st.sampled_from([A, B]),
        st.sampled_from([0, 1]),
        st.integers(1, 99),
        st.integers(-300, 300).filter(bool),
    ),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(STEPS, max_size=40))
def test_whatever_is_asked_sequences_have_no_hole_and_books_are_true(steps: list[Any]):
    exchange = an_exchange()
    client = Client(exchange)
    for step in steps:
        match step:
            case ("subscribe", channels, tickers):
                client.subscribe(*channels, market_tickers=tickers)
            case ("unsubscribe", sids):
                client.command(id=2, cmd="unsubscribe", params={"sids": sids})
            case ("delta", ticker, side, cents, size):
                book = exchange.markets[ticker].book
                if book is not None and book.sides[side].get(cents * 100, 0) + size >= 0:
                    delta(exchange, ticker, side, cents * 100, size)
            case (action, sid, tickers):
                client.update(sid, action, *tickers)
    last: dict[int, int] = {}
    books: dict[tuple[int, str], Book] = {}
    for frame in client.frames:
        if "seq" in frame:
            assert frame["seq"] == last.get(frame["sid"], 0) + 1
            last[frame["sid"]] = frame["seq"]
        _fold(books, frame)
    for subscription in client.subscriptions.by_sid.values():
        for ticker in subscription.tickers or ():
            if subscription.channel == "orderbook_delta" and ticker in exchange.markets:
                assert books[subscription.sid, ticker] == exchange.markets[ticker].book


def _fold(books: dict[tuple[int, str], Book], frame: dict[str, Any]) -> None:
    """Keep books as a client would, with arithmetic of this test's own."""
    if frame["type"] not in ("orderbook_snapshot", "orderbook_delta"):
        return
    key, msg = (frame["sid"], frame["msg"]["market_ticker"]), frame["msg"]
    if frame["type"] == "orderbook_snapshot":
        books[key] = Book(
            *(
                [(round(float(p) * 10_000), round(float(s) * 100)) for p, s in msg.get(f"{side}_dollars_fp", [])]
                for side in ("yes", "no")
            )
        )
    else:
        books[key].apply(
            ("yes", "no").index(msg["side"]), round(float(msg["price_dollars"]) * 10_000), round(float(msg["delta_fp"]) * 100)
        )
