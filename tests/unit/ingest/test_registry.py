"""Which markets are captured, from when on, and until when."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kalshibook_core.kalshi.messages import Lifecycle, UnparsableFrame
from services.ingest.registry import FORGET_US, LARGEST_OBJECT, LINGER_US, PATIENCE_US, Registry

NOW = 1_785_901_540_000_000


def body(ticker: str = "KXDOG-1", status: str = "active", **more: object) -> dict[str, object]:
    return {"ticker": ticker, "status": status, **more}


def wanted(registry: Registry, now_us: int) -> list[str]:
    """What is to be captured, the best first, by asking about every market known."""
    ranks = {ticker: registry.rank(ticker, now_us) for ticker in registry.markets}
    return [
        ticker for ticker, _ in sorted((each for each in ranks.items() if each[1] is not None), key=lambda each: each[1] or ())
    ]


def test_a_market_is_published_when_it_says_anything_new() -> None:
    registry = Registry()
    assert registry.read(body(), 5, NOW) == ("KXDOG-1", orjson.dumps(body()))
    assert registry.read(body(), 5, NOW) is None
    assert registry.read(body(status="closed"), 5, NOW) is not None
    assert registry.read(body(), 5, NOW) is not None


def test_the_clock_is_that_of_the_first_answer() -> None:
    registry = Registry()
    registry.read(body(), 5, NOW)
    registry.read(body(), 9, NOW)
    assert registry.markets["KXDOG-1"].skew_us == 5


def test_a_created_market_waits_for_rest_but_not_for_long() -> None:
    registry = Registry()
    assert registry.hear(Lifecycle("KXDOG-1", "created", {}), NOW)
    assert not wanted(registry, NOW) and not registry.stirred(NOW)
    assert wanted(registry, NOW + PATIENCE_US) == registry.stirred(NOW + PATIENCE_US) == ["KXDOG-1"]
    registry.answered("KXDOG-1", 7)  # 404: not known to REST yet
    assert wanted(registry, NOW) == registry.stirred(NOW) == ["KXDOG-1"] and registry.markets["KXDOG-1"].skew_us == 7


def test_messages_of_events_are_no_markets() -> None:
    registry = Registry()
    assert not registry.hear(Lifecycle("", "event_lifecycle", {}), NOW)
    assert not registry.markets


def test_no_flood_of_lifecycle_frames_fills_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.ingest.registry.MOST", 3)
    registry = Registry()
    heard = [registry.hear(Lifecycle(f"KXDOG-{n}", "created", {}), NOW) for n in (*range(9), 0)]
    assert heard == [True] * 3 + [False] * 6 + [True] and len(registry.markets) == 3


@pytest.mark.parametrize("status", ["closed", "inactive", "initialized", "", "something new"])
def test_a_market_that_may_still_change_is_kept(status: str) -> None:
    registry = Registry()
    registry.read(body(status=status), 0, NOW, 1)
    assert wanted(registry, NOW) and registry.unlisted(2) == ["KXDOG-1"] and not registry.unlisted(1)


@pytest.mark.parametrize("end", ["determined", "settled"])
def test_an_ended_market_lingers_then_goes_then_is_forgotten(end: str) -> None:
    registry = Registry()
    registry.read(body(), 0, NOW)
    registry.hear(Lifecycle("KXDOG-1", end, {}), NOW + 1)
    assert registry.stirred(NOW + 1) and not registry.unlisted(1)
    assert wanted(registry, NOW + LINGER_US) and not registry.stirred(NOW + LINGER_US)
    assert not wanted(registry, NOW + 1 + LINGER_US) and registry.stirred(NOW + 1 + LINGER_US)
    registry.stirred(NOW + FORGET_US)
    assert registry.markets
    assert registry.stirred(NOW + 2 + FORGET_US) == ["KXDOG-1"] and registry.rank("KXDOG-1", NOW) is None
    assert not registry.markets


def test_an_ended_market_does_not_outlive_its_connection() -> None:
    registry = Registry()
    registry.read(body("KXDOG-1"), 0, NOW)
    registry.read(body("KXDOG-2"), 0, NOW)
    registry.hear(Lifecycle("KXDOG-1", "determined", {}), NOW + 1)
    assert wanted(registry, NOW + 2) == ["KXDOG-1", "KXDOG-2"]
    assert registry.let_go(["KXDOG-1", "KXDOG-2", "KXNOBODY"], NOW + 3) == ["KXDOG-1"]
    assert wanted(registry, NOW + 3) == ["KXDOG-2"]
    registry.hear(Lifecycle("KXDOG-1", "settled", {}), NOW + 4)
    assert wanted(registry, NOW + 4) == ["KXDOG-2"]


def test_a_market_that_had_ended_before_is_not_subscribed() -> None:
    registry = Registry()
    registry.read(body(status="finalized"), 0, NOW)
    assert not wanted(registry, NOW)


def test_rest_is_behind_until_it_knows_the_settlement() -> None:
    registry = Registry()
    registry.read(body(status="closed"), 0, NOW)
    assert not registry.behind("KXDOG-1") and not registry.behind("KXNOBODY")
    registry.hear(Lifecycle("KXDOG-1", "settled", {}), NOW)
    assert registry.behind("KXDOG-1")
    registry.read(body(status="finalized"), 0, NOW)
    assert not registry.behind("KXDOG-1")


def test_active_and_soon_come_first() -> None:
    registry = Registry()
    for name, more in {
        "later": {"occurrence_datetime": "2026-08-20T00:00:00Z"},
        "never": {"volume_fp": "1.00"},
        "busy": {"volume_fp": "9.00"},
        "soon": {"occurrence_datetime": "2026-08-10T00:00:00Z"},
        "closed": {"status": "closed", "occurrence_datetime": "2026-08-08T00:00:00Z"},
        "dormant": {"status": "initialized", "occurrence_datetime": "2026-08-09T00:00:00Z"},
    }.items():
        registry.read(body(name) | more, 0, NOW)
    assert wanted(registry, NOW) == ["soon", "later", "busy", "never", "dormant", "closed"]


names = st.integers(0, 5).map(lambda n: f"KX{n}")
said = st.one_of(
    st.tuples(st.just("read"), names, st.sampled_from(["active", "closed", "initialized", "determined", "finalized"])),
    st.tuples(st.just("hear"), names, st.sampled_from(["created", "activated", "determined", "settled"])),
    st.tuples(st.just("answered"), names, st.none()),
    st.tuples(st.just("wait"), st.sampled_from([1, PATIENCE_US, LINGER_US, FORGET_US]), st.none()),
)


@given(st.lists(said, max_size=40))
def test_whoever_asks_only_about_the_stirred_knows_every_rank(happened: list[tuple[str, Any, Any]]) -> None:
    """The incremental view equals the one made anew, whatever was said and however much time passed."""
    registry, now, seen = Registry(), NOW, {}
    for kind, what, how in happened:
        match kind:
            case "read":
                registry.read(body(what, how), 3, now)
            case "hear":
                registry.hear(Lifecycle(what, how, {}), now)
            case "answered":
                registry.answered(what, 3)
            case "wait":
                now += what
        for ticker in registry.stirred(now):
            seen[ticker] = registry.rank(ticker, now)
        for ticker in {*seen, *registry.markets}:
            assert seen.get(ticker) == registry.rank(ticker, now)


DEEP = orjson.loads(b"[" * 1000 + b"]" * 1000)


@pytest.mark.parametrize(
    "bad",
    [
        None, [], {}, {"ticker": 7}, {"ticker": ""}, {"ticker": "A" * 201}, {"ticker": "A\0"},
        body(rules=DEEP), body(status=DEEP), body(rules="x" * LARGEST_OBJECT),
    ],
)  # fmt: skip
def test_what_is_no_market_is_refused(bad: object) -> None:
    with pytest.raises(UnparsableFrame):
        Registry().read(bad, 0, NOW)
    Registry().read({"ticker": "A", "status": 7, "occurrence_datetime": 7, "volume_fp": "x"}, 0, NOW)


def test_a_page_of_what_is_no_market_is_nothing_new() -> None:
    registry = Registry()
    registry.read(body(), 0, NOW, 1)
    assert not registry.unmet([body(), {"ticker": "A" * 201}, {"ticker": "B\0"}, {"ticker": ""}, 7], 1)
    assert registry.unmet([body(), body("KXDOG-2")], 1) and registry.unmet([body()], 2)


def test_a_market_is_late_unless_it_was_told_of_before_or_seen_to_be_created() -> None:
    registry = Registry()
    assert registry.late("KXDOG") and registry.late(None)
    registry.hear(Lifecycle("KXDOG", "activated", {}), NOW)
    assert registry.late("KXDOG")  # it may have traded for long
    registry.read(body("KXDOG", status="active"), 0, NOW)
    assert not registry.late("KXDOG")
    registry.hear(Lifecycle("KXCAT", "created", {}), NOW)
    registry.hear(Lifecycle("KXCAT", "activated", {}), NOW)
    assert not registry.late("KXCAT")
