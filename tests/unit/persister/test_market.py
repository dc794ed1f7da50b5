"""What lifecycle events say about a market, in the documented forms and in broken ones."""

import orjson
import pytest

from kalshibook_core.wire.events import Lifecycle
from services.persister import market

OPEN, CLOSE = 1_694_635_200, 1_694_721_600


def event(event_type: str, ticker: str = "INXD-23SEP14-B4487", at: int = 5, **body: object) -> Lifecycle:
    return Lifecycle(ticker, event_type, at, at, orjson.dumps(body), 0)


def test_created_describes_a_market():
    change = market.change(
        event(
            "created",
            open_ts=OPEN,
            close_ts=CLOSE,
            additional_metadata={"event_ticker": "INXD-23SEP14", "title": "S&P 500 up?", "name": "S&P"},
        )
    )
    assert change is not None
    assert change[1:11] == ("INXD-23SEP14", None, "S&P 500 up?", "initialized", None, OPEN * 10**6, CLOSE * 10**6, None, None, 5)
    assert change.body is None


def test_a_market_by_rest_keeps_its_object_as_sent():
    body = b'{"ticker": "X", "status":"active","result":"","open_time":"2026-06-11T06:38:42.5Z","title":"a\\u0000b"}'
    change = market.change(Lifecycle("X", "market", 9, 9, body, 0))
    assert change is not None
    assert (change.body, change.status, change.result, change.title) == (body.decode(), "active", None, "ab")
    assert change.open_us == 1_781_159_922_500_000


@pytest.mark.parametrize(
    ("event_type", "body", "status"),
    [
        ("activated", {}, "active"),
        ("activated", {"is_deactivated": True}, "inactive"),
        ("deactivated", {"is_deactivated": True}, "inactive"),
        ("determined", {"result": "yes"}, "determined"),
        ("settled", {"settled_ts": OPEN}, "finalized"),
        ("price_level_structure_updated", {}, None),
        ("a_word_we_do_not_know", {}, None),
    ],
)
def test_the_status_follows_the_frames(event_type, body, status):
    change = market.change(event(event_type, **body))
    assert change is not None and change.status == status


def test_events_are_no_markets():
    assert market.change(event("event_lifecycle", ticker="KXEVENT", event_ticker="KXEVENT")) is None
    assert market.change(event("created", ticker="@g1")) is None
    assert market.change(event("created", ticker="")) is None


@pytest.mark.parametrize("body", [b"", b"no json", b"[1]", b'"text"', b"\xff"])
def test_a_body_that_is_no_object_is_refused(body):
    with pytest.raises(ValueError):
        market.change(Lifecycle("X", "created", 1, 1, body, 0))


@pytest.mark.parametrize("value", ["", "tomorrow", "2026-06-11T06:38:42", 1.5, True, -1, 10**15, [], None])
def test_a_time_that_is_none_leaves_the_column(value):
    for kind, key in (("market", "close_time"), ("created", "close_ts")):
        change = market.change(event(kind, **{key: value}))
        assert change is not None and change.close_us is None


@pytest.mark.parametrize(("value", "paid"), [("0.5000", 5000), ("1", 10_000), ("", None), ("1.5", None), (1, None), (None, None)])
def test_what_a_settled_market_paid_is_told_by_frame_and_by_rest(value, paid):
    for kind, key in (("market", "settlement_value_dollars"), ("determined", "settlement_value")):
        change = market.change(event(kind, **{key: value}))
        assert change is not None and change.settlement_value == paid


def test_later_changes_win_and_silence_changes_nothing():
    first = market.change(event("created", open_ts=OPEN, at=1))
    second = market.change(event("determined", result="no", at=2))
    assert first is not None and second is not None
    merged = market.later(first, second)
    assert (merged.open_us, merged.status, merged.result, merged.updated_us) == (OPEN * 10**6, "determined", "no", 2)
