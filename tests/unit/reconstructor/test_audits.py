"""A REST book matches what ours was at any instant of its window, and a falsified one is found."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kalshibook_core.orderbook import Book
from kalshibook_core.wire.events import AUDIT, Gap
from services.reconstructor import audits
from services.reconstructor.audits import AFTER_US, BEFORE_US, GIVEN_UP_US, PATIENCE_US, Audits, Outcome, judge, read
from services.reconstructor.live_book import RECENT_US, LiveBook
from tests.support.canonical import Market, rest_book

S = 1_000_000
T0 = 1_790_000_000 * S
STEPS = st.lists(st.tuples(st.integers(0, 200), st.integers(0, 4 * S)), min_size=1, max_size=60)


def played(steps: list[tuple[int, int]]) -> tuple[Market, LiveBook, list[tuple[int, Book | None]]]:
    """Return a market, our live book of it, and what it truly was from when on (None: in a gap)."""
    market, live, truth = Market("KXTEST-A", T0), LiveBook("KXTEST-A"), list[tuple[int, Book | None]]()
    for offset, (roll, pause) in enumerate(steps):
        event = market.event(roll, pause)
        live.apply(event, offset)
        truth.append((event.effective_us, None if isinstance(event, Gap) else market.book.copy()))
    return market, live, truth


@settings(max_examples=150, deadline=None)
@given(STEPS, st.data())
def test_what_the_book_was_matches_and_a_falsified_one_is_found(steps: list[tuple[int, int]], data: st.DataObject) -> None:
    market, live, truth = played(steps)
    end = truth[-1][0]
    at, book = data.draw(st.sampled_from([each for each in truth if each[0] > end - RECENT_US + BEFORE_US + AFTER_US + 2 * S]))
    asked = at + data.draw(st.integers(0, 2 * S))  # REST lags
    answered = asked + data.draw(st.integers(0, S))
    held = [known for _, known in truth]
    if book is not None:
        assert judge(live, read(rest_book(market, asked, answered, book))) is Outcome.MATCH
    false = Book([*(book.yes if book is not None else ()), (9_999, 1)])  # a level that no step makes
    found = judge(live, read(rest_book(market, asked, answered, false)))
    window = [n for n, (since, _) in enumerate(truth) if since <= answered + AFTER_US]
    begin = max((n for n in window if truth[n][0] <= asked - BEFORE_US), default=-1)
    known = begin >= 0 and all(held[n] is not None for n in window if n >= begin)
    assert found is (Outcome.MISMATCH if known else Outcome.UNKNOWN)


def test_a_book_of_another_time_does_not_match() -> None:
    market, live, truth = played([(3, 0), (4, S), (8, 10 * S), (9, 10 * S)])
    old, latest = truth[1][1], truth[-1][0]
    assert judge(live, read(rest_book(market, latest - 5 * S, latest - 4 * S, old))) is Outcome.MISMATCH
    assert judge(live, read(rest_book(market, T0 - 60 * S, T0 - 59 * S))) is Outcome.UNKNOWN


def test_a_busy_book_keeps_only_what_an_audit_can_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    _, live, _ = played([(1 + n % 9, 100_000) for n in range(5_000)])
    assert RECENT_US // 100_000 <= len(live.recent) <= 2 * RECENT_US // 100_000 + 2
    assert live.recent[0][0] <= live.effective_us - RECENT_US
    monkeypatch.setattr("services.reconstructor.live_book.RECENT_STATES", 100)
    _, live, _ = played([(1 + n % 9, 10) for n in range(5_000)])
    assert len(live.recent) <= 200 and live.recent[-1] == (live.effective_us, live.book.checksum)


def test_it_waits_until_our_book_has_come_to_the_end_of_the_window() -> None:
    market, live, truth = played([(3, 0), (4, S)])
    at = truth[-1][0]
    waiting, lives = Audits(), {"KXTEST-A": live}
    waiting.expect(read(rest_book(market, at, at)))
    waiting.expect(read(rest_book(Market("KXTEST-ELSEWHERE"), at, at)))
    assert not waiting.due(at + S, lives.get, lambda _: False)
    assert not waiting.due(at + PATIENCE_US + 1, lives.get, lambda _: True)  # lagging: what came before may still come
    assert len(waiting.due(at + PATIENCE_US + 1, lives.get, lambda _: False)) == 1
    waiting.expect(read(rest_book(market, at, at)))
    live.apply(market.event(5, AFTER_US + 1), 9)
    assert len(waiting.due(at, lives.get, lambda _: True)) == 1
    waiting.expect(read(rest_book(market, at + 60 * S, at + 60 * S)))
    assert not waiting.due(at + 60 * S + GIVEN_UP_US, lives.get, lambda _: True)
    assert not waiting.due(at + 60 * S + PATIENCE_US + 1, lives.get, lambda _: False)  # given up


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audits, "MOST", 2)
    market, live, _ = played([(3, 0)])
    waiting = Audits()
    for n in range(5):
        waiting.expect(read(rest_book(market, T0 + n, T0 + n)))
    assert len(waiting.due(T0 + 60 * S, {"KXTEST-A": live}.get, lambda _: False)) == 2


@pytest.mark.parametrize(
    "payload", [b"", b"[]", b"{}", b'{"orderbook_fp":7}', b'{"orderbook_fp":{"yes_dollars":[["x","1.00"]]}}']
)
def test_what_is_no_order_book_is_refused(payload: bytes) -> None:
    raw = rest_book(Market("KXTEST-A"), T0, T0)
    with pytest.raises(ValueError, match=r".+"):
        read(raw._replace(payload=payload))
    with pytest.raises(ValueError, match="channel"):
        read(raw._replace(channel=""))
    assert raw.channel == AUDIT
