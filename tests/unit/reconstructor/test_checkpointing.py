"""Whatever moment a reconstructor dies at, its checkpoints and the log after them give the books it had."""

from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kalshibook_core.wire import codec
from kalshibook_core.wire.events import BookEvent, Checkpoint
from services.reconstructor.checkpointing import PartitionBooks, Policy
from services.reconstructor.fold import fold
from services.reconstructor.live_book import Corruption, LiveBook
from tests.support.canonical import Market

MINUTE = 60_000_000


def log_of(steps: list[tuple[int, int, int]]) -> list[tuple[int, BookEvent]]:
    """Make a partition: events at offsets with holes, as transaction markers leave them."""
    markets = [Market(f"KXTEST-{n}") for n in range(4)]
    log, offset = [], 0
    for which, roll, pause in steps:
        log.append((offset, markets[which].event(roll, pause)))
        offset += 1 + roll % 2
    return log


def state(books: PartitionBooks) -> dict[str, tuple]:
    return {
        ticker: (live.version, live.effective_us, live.book.yes, live.book.no, live.gap_start_us, live.gap_cause, live.offset)
        for ticker, live in books.books.items()
    }


STEPS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 200), st.integers(0, 3 * MINUTE)), max_size=120)
POLICY = st.builds(Policy, st.integers(1, 12), st.integers(1, 10 * MINUTE))


@settings(max_examples=150, deadline=None)
@given(STEPS, POLICY, st.data())
def test_any_crash_point_gives_the_same_books_and_the_same_checkpoints(steps, policy, data):
    log = log_of(steps)
    whole, written = PartitionBooks(policy=policy), list[Checkpoint]()
    durable_before = []  # how many checkpoints were durable when the event at this index was applied
    for index, (offset, event) in enumerate(log):
        durable_before.append(len(written))
        whole.apply(event, offset, index)
        written += whole.due(index)

    crash = data.draw(st.integers(0, len(written)), label="durable checkpoints at the crash")
    compacted = {c.market_ticker: c for c in written[:crash]}
    kept = data.draw(st.sampled_from([written[:crash], sorted(compacted.values(), key=written.index)]), label="compacted or not")
    again = PartitionBooks(kept, policy)
    repeated = []
    for index, (offset, event) in enumerate(log):
        if offset >= again.next_offset:
            again.apply(event, offset, index)
            repeated += again.due(index)

    assert state(again) == state(whole)
    assert not again.corrupt
    assert again.resume_offset <= whole.resume_offset or not whole.books
    markings = [(c.market_ticker, c.version, c.checksum) for c in written[crash:]]
    assert sorted((c.market_ticker, c.version, c.checksum) for c in repeated) == sorted(markings)


@settings(max_examples=60, deadline=None)
@given(STEPS, POLICY)
def test_every_event_before_a_resume_offset_is_inside_a_checkpoint(steps, policy):
    books, newest = PartitionBooks(policy=policy), dict[str, int]()
    log = log_of(steps)
    for index, (offset, event) in enumerate(log):
        books.apply(event, offset, index)
        for checkpoint in books.due(index):
            newest[checkpoint.market_ticker] = checkpoint.version
            uncovered = [o for o, e in log[: index + 1] if e.version > newest.get(e.market_ticker, 0)]
            assert checkpoint.resume_offset <= min(uncovered, default=offset + 1)


@settings(max_examples=150, deadline=None)
@given(STEPS, POLICY, st.data())
def test_deltas_read_together_are_folded_as_one_by_one(steps, policy, data):
    log = log_of(steps)
    for place in data.draw(st.lists(st.integers(0, max(len(log) - 1, 0)), max_size=2) if log else st.just([]), label="falsified"):
        offset, event = log[place]
        log[place] = offset, event._replace(**data.draw(st.sampled_from(FALSE)))
    records = [SimpleNamespace(offset=offset, value=codec.encode(event)) for offset, event in log]
    for place in data.draw(st.lists(st.integers(0, max(len(log) - 1, 0)), max_size=1) if log else st.just([]), label="damaged"):
        records[place].value = data.draw(st.sampled_from([None, b"", b"none of ours", records[place].value[:-1]]))
    cut = data.draw(st.integers(1, len(log) + 1), label="records a batch")
    alone, together = PartitionBooks(policy=policy), PartitionBooks(policy=policy)
    for batch in (records[at : at + cut] for at in range(0, len(records), cut)):
        assert list(map(told, fold(together, batch, 0, together=1))) == list(map(told, fold(alone, batch, 0, together=999)))
        assert together.due(0) == alone.due(0)
    assert state(together) == state(alone)
    assert together.rest() == alone.rest()
    assert [live.recent for live in together.books.values()] == [live.recent for live in alone.books.values()]


FALSE = [{"version": 3}, {"checksum": 5}, {"effective_us": 7}, {"gatherer": "another", "generation": 9}]


def told(outcome):
    if isinstance(outcome, LiveBook):
        return outcome.ticker, outcome.version
    return outcome and str(outcome)


def test_a_drain_leaves_nothing_to_fold():
    books = PartitionBooks()
    log = log_of([(n % 3, 20 + n, 10) for n in range(20)])
    for offset, event in log:
        books.apply(event, offset, 0)
    rest = books.rest()
    assert {c.market_ticker for c in rest} == {"KXTEST-0", "KXTEST-1", "KXTEST-2"}
    assert books.resume_offset == books.next_offset == log[-1][0] + 1
    assert max(c.resume_offset for c in rest) == books.next_offset
    assert books.rest() == []


def test_a_silent_market_is_written_after_the_interval_by_the_local_clock():
    books = PartitionBooks(policy=Policy(events=1_000, interval_us=5 * MINUTE))
    market = Market("KXTEST-QUIET")
    books.apply(market.event(3, 0), 7, now_us=0)
    assert books.due(5 * MINUTE - 1) == [] and books.resume_offset == 7
    [checkpoint] = books.due(5 * MINUTE)
    assert (checkpoint.version, checkpoint.resume_offset, checkpoint.book_offset) == (1, 8, 7)


@pytest.mark.parametrize("fault", ["hole", "checksum", "time", "negative", "in gap"])
def test_a_book_that_does_not_verify_stops_and_is_never_written_down(fault):
    market, books = Market("KXTEST-BAD"), PartitionBooks(policy=Policy(events=2))
    books.apply(market.event(3, 5), 0, 0)
    if fault == "in gap":
        books.apply(market.event(26, 5), 1, 0)
        market.gap = None
        books.due(0)
    before = state(books)["KXTEST-BAD"][2:4]
    event = market.event(4, 5)
    broken = {
        "hole": event._replace(version=event.version + 1),
        "checksum": event._replace(checksum=event.checksum ^ 1),
        "time": event._replace(effective_us=0),
        "negative": event._replace(delta=-100_000),
        "in gap": event,
    }[fault]
    with pytest.raises(Corruption, match="KXTEST-BAD"):
        books.apply(broken, 10, 0)
    assert books.corrupt == ["KXTEST-BAD"]
    if fault != "checksum":  # a delta whose checksum is wrong has been applied before it could be known
        assert state(books)["KXTEST-BAD"][2:4] == before
    assert books.apply(market.event(5, 5), 11, 0) is None
    assert books.due(10**12) == [] and books.rest() == []
    assert books.resume_offset == (10 if fault == "in gap" else 0)


def test_a_checkpoint_that_contradicts_its_checksum_restores_as_corrupt():
    live = LiveBook("KXTEST-1")
    live.apply(Market("KXTEST-1").event(3, 5), 0)
    good = live.checkpoint(1)
    assert not LiveBook.restored(good).corrupt
    assert LiveBook.restored(good._replace(checksum=good.checksum + 1)).corrupt
    assert LiveBook.restored(good._replace(yes=[(5, -1)])).corrupt
