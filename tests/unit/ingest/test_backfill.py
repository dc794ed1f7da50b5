"""What is read by REST to fill a gap: enough, not more than it costs, and from where a killed run left off."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.backfill.fill import MARKET_COSTS_US, Progress, Span, spans
from services.ingest.backfill.history import History, Unread
from services.ingest.backfill.missing import Hole
from services.ingest.backfill.serve import LONGEST_SECONDS, Turns
from services.ingest.rest import Answer

HOLES = st.lists(
    st.tuples(st.sampled_from("ABCDE"), st.integers(0, 10**8), st.integers(0, 10**8)).map(
        lambda drawn: Hole(drawn[0], drawn[1], drawn[1] + drawn[2], "disconnect")
    )
)


@given(HOLES)
def test_every_hole_is_within_the_one_span_that_fills_it(holes: list[Hole]) -> None:
    found = spans(holes)
    assert sorted(hole for span in found for hole in span.holes) == sorted(holes)
    for span in found:
        for hole in span.holes:
            assert span.from_us <= hole.start_us <= hole.end_us <= span.to_us and span.ticker in ("", hole.ticker)


def test_many_markets_are_read_at_once_and_few_one_by_one() -> None:
    everybody = [Hole(f"KX-{n}", 0, 5 * MARKET_COSTS_US, "disconnect") for n in range(6)]
    assert spans(everybody) == [Span("", 0, 5 * MARKET_COSTS_US, tuple(everybody))]
    assert [span.ticker for span in spans(everybody[:5])] == ["KX-0", "KX-1", "KX-2", "KX-3", "KX-4"]


def test_what_stays_missing_is_asked_for_ever_more_seldom() -> None:
    turns = Turns[str](10.0)
    asked = {now: turns.due(["A", "B"] if now >= 20 else ["A"], now) for now in range(100)}
    assert {now: due for now, due in asked.items() if due} == {
        0: ["A"],
        10: ["A"],
        20: ["B"],
        30: ["A", "B"],
        50: ["B"],
        70: ["A"],
        90: ["B"],
    }
    assert turns.due([], 100) == []
    assert turns.due(["A", "B", "C"], 101, most=2) == ["A", "B"]  # what was not missing for a while begins anew
    assert turns.due(["A", "B", "C"], 102, most=2) == ["C"]
    for _ in range(50):
        last = turns.due(["A"], 10**9)
    assert not last
    days = [day for day in range(100) if turns.due(["A"], 2 * 10**9 + day * LONGEST_SECONDS)]
    assert days == list(range(100))


def test_progress_is_of_one_span_and_forgotten_at_its_end(tmp_path: Path) -> None:
    path, span = tmp_path / "home" / "backfill.json", Span("", 10, 90)
    Progress(path, span).reach(40)
    assert Progress(path, span).reached_us == 40
    assert Progress(path, span._replace(to_us=91)).reached_us == 10
    path.write_bytes(b'{"asked"')
    assert Progress(path, span).reached_us == 10
    Progress(path, span).end()
    assert not path.exists()


class Exchange:
    """Answers of an exchange whose cutoff moves on with every request."""

    def __init__(self, trades: list[int], cutoff: int, per_request: int, page: int = 3) -> None:
        self.trades, self.cutoff, self._per_request, self._page = sorted(trades, reverse=True), cutoff, per_request, page

    async def get(self, path: str, **query: str) -> Answer:
        self.cutoff += self._per_request
        if path == "/historical/cutoff":
            body: dict[str, Any] = {"trades_created_ts": f"1970-01-01T00:00:{self.cutoff:02}Z"}
        else:
            live = path == "/markets/trades"
            wanted = [
                at for at in self.trades if int(query["min_ts"]) <= at < int(query["max_ts"]) and (at >= self.cutoff) == live
            ]
            after = [at for at in wanted if not query["cursor"] or at < int(query["cursor"])]
            body = {"trades": after[: self._page], "cursor": str(after[self._page - 1]) if len(after) > self._page else ""}
        return Answer(path, body, 0, 0, None)


@given(st.sets(st.integers(0, 50)), st.integers(0, 40), st.integers(0, 1), st.integers(0, 40), st.integers(1, 20))
async def test_a_cutoff_that_moves_while_we_read_hides_no_trade(
    trades: set[int], cutoff: int, per_request: int, first: int, seconds: int
) -> None:
    exchange = Exchange(list(trades), cutoff, per_request)
    read = History(exchange).trades(first * 1_000_000, (first + seconds) * 1_000_000)  # type: ignore[arg-type]
    met = {at async for _, found in read for at in found}
    assert met >= {at for at in trades if first <= at < first + seconds}


@pytest.mark.parametrize("pages", [[{"trades": [1], "cursor": "x"}], [{"trades": [], "cursor": "x"}], [{"trades": None}], [[]]])
async def test_a_list_without_an_end_is_no_list(pages: list[Any]) -> None:
    def forever() -> Iterator[Any]:
        while True:
            yield from pages

    class Rest:
        bodies = forever()

        async def get(self, path: str, **_: str) -> Answer:
            cutoff = {"trades_created_ts": "1970-01-01T00:00:00Z"}
            return Answer(path, cutoff if path == "/historical/cutoff" else next(self.bodies), 0, 0, None)

    with pytest.raises(Unread):
        async for _ in History(Rest()).trades(5_000_000, 9_000_000):  # type: ignore[arg-type]
            pass
