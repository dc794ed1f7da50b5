"""What must hold of any raw stream: numbering, checksums, labelled loss, and that a restart anywhere leaves no trace."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from kalshibook_core.orderbook import Book, CorruptBook
from kalshibook_core.orderbook.checksum import to_signed
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import (
    LAG_US,
    BookDelta,
    BookEvent,
    BookSnapshot,
    Event,
    Gap,
    MarketMemory,
    RawFrame,
    Trade,
)
from kalshibook_tools.verify import merge
from services.deduplicator.partition import Partition
from tests.unit.deduplicator.source import T0, TICKER, Source
from tests.unit.deduplicator.test_rules import unreadable

WINDOW = 3
S = 1_000_000

# --- any stream at all: sources, generations and kinds mixed as no gatherer would


@st.composite
def raws(draw: st.DrawFn) -> RawFrame:
    gatherer, connection, generation = draw(
        st.sampled_from([("g1", 0, T0), ("g1", 0, T0), ("g1", 0, T0 + S), ("g1", 1, T0 + 2 * S), ("g2", 0, T0 + S)])
    )
    source = Source(gatherer, connection, generation, draw(st.sampled_from(["KXA", "KXA", "KX-B.5"])), draw(st.integers(0, 99)))
    clock = draw(st.integers(0, 40)) * S
    price, size = draw(st.sampled_from([1, 5000, 9999])), draw(st.integers(1, 3))
    kind = draw(st.sampled_from(["FRAME"] * 6 + ["STALE"]))
    match draw(st.integers(0, 12)):
        case 0 | 1:
            return source.snapshot(clock, {price: size} if size > 1 else {}, {5000: size}, draw(st.booleans()), kind)
        case 2 | 3 | 4:
            return source.delta(clock, draw(st.sampled_from(["yes", "no"])), price, draw(st.integers(-2, 3)), kind)
        case 5:
            return source.broken(clock, draw(st.sampled_from(["orderbook_delta", "trade"])))
        case 6:
            return source.resumed(clock)
        case 7 | 8:
            return source.trade(clock, f"t{draw(st.integers(0, 5))}", kind)
        case 9:
            return source.lifecycle(
                clock, event_type=draw(st.sampled_from(["activated", "deactivated", "deactivated", "settled"]))
            )
        case 10:
            return source.rest(clock, status=draw(st.sampled_from(["active", "closed", "finalized"])))
        case 11:
            return source.raw(kind, "orderbook_delta", clock, draw(st.binary(max_size=9)))
        case _:
            name = draw(st.sampled_from(["orderbook_delta", "orderbook_snapshot", "trade", "ticker"]))
            msg = draw(
                st.dictionaries(
                    st.sampled_from(["side", "price_dollars", "yes_dollars_fp", "ts_ms"]), st.sampled_from(["yes", "0.5", 7])
                )
            )
            message = {"type": name, "msg": {"market_ticker": source.ticker, **msg}}
            return source.frame("orderbook_delta" if name.startswith("o") else name, clock, message)


streams = st.lists(raws(), max_size=40)


def run(stream: Sequence[RawFrame], partition: Partition, start: int = 0) -> list[list[Event]]:
    return [list(partition.receive(raw, offset)) for offset, raw in enumerate(stream[start:], start)]


def plain(raw: RawFrame) -> RawFrame:
    """A delta as the exchange spells it; the same kind of record, and half a second later."""
    if not raw.payload.startswith(b'{"type":"orderbook_delta","msg"') or raw.kind != "FRAME":
        return raw
    message = orjson.loads(raw.payload)
    msg = orjson.dumps(message["msg"]).replace(b'Z","ts_ms"', b'.5Z","ts_ms"')
    frame = b'{"type":"orderbook_delta","sid":%d,"seq":%d,"msg":%b}\n' % (message["sid"], message["seq"], msg)
    return raw._replace(payload=frame)


@st.composite
def nearly_usual(draw: st.DrawFn) -> list[RawFrame]:
    """Two sources that deliver one market's deltas as they should, mostly."""
    sources = [Source("g1", ticker="KXA"), Source("g2", ticker="KXA", generation=T0 + 1)]
    raws = [sources[0].rest(0, price_ranges=[{"start": "0.0000", "end": "1.0000", "step": "0.5000"}])]
    raws += [source.snapshot(S, {5000: 100}, {}) for source in sources]
    changes, at = draw(st.lists(st.sampled_from([1, 2, 3, -1, -2]), min_size=20, max_size=20)), [0, 0]
    for which in [0, 1, 0, 1, *draw(st.lists(st.sampled_from([0, 0, 0, 1, 1]), min_size=24, max_size=36))]:
        if at[which] < len(changes):
            n = at[which]
            raw = sources[which].delta((n + 2) * S, "yes", 5000, changes[n])
            at[which] += 1
            match draw(st.integers(0, 40)):
                case 0:
                    raw = raw._replace(seq=raw.seq - draw(st.integers(1, 3)))
                case 1:
                    raw = raw._replace(sid=2)
                case 2:
                    raw = raw._replace(generation=raw.generation + draw(st.sampled_from([-1, 5])))
                case 3:
                    raw = sources[which].broken((n + 2) * S, "orderbook_delta")
                case 4:
                    raw = sources[which].snapshot((n + 2) * S, {5000: 100 + sum(changes[: n + 1])}, {}, draw(st.booleans()))
                case 5:
                    raw = sources[which].delta((n + 2) * S, "yes", 4800, draw(st.sampled_from([1, -1])))
                case 6:
                    raw = raw._replace(yes_price=True)
                case 7:
                    raws.append(plain(raw))
            raws.append(plain(raw))
    return raws


@given(streams | nearly_usual())
@settings(max_examples=100, deadline=None)
def test_what_is_taken_at_a_glance_is_what_is_read_in_full(stream: list[RawFrame]) -> None:
    raws = [plain(raw) for raw in stream]
    glanced, full = Partition(WINDOW), Partition(WINDOW)
    assert [events for _, events in merge.merged(raws, glanced)] == run(raws, full)
    assert list(glanced.memories(0)) == list(full.memories(0))
    assert glanced.tally == full.tally


def saved_and_restored(stream: Sequence[RawFrame], cut: int, savepoints: Sequence[int]) -> Partition:
    """A partition that was killed before raw record `cut`, from its savepoints (after so many records) and the raw topic."""
    memories: dict[str, MarketMemory] = {}
    partition, trades = Partition(WINDOW), []
    for offset, raw in enumerate(stream[:cut]):
        trades += [event for event in partition.receive(raw, offset) if isinstance(event, Trade)]
        if offset + 1 in savepoints:
            memories |= {m.market_ticker: codec.decode(codec.encode(m)) for m in partition.memories(offset)}
    restored = Partition(WINDOW)
    before = [trade for trade in trades if trade.raw_offset < max((m.raw_offset for m in memories.values()), default=-1) + 1]
    since = restored.restore(memories.values(), before[-WINDOW:])
    for offset in range(since, cut):  # what came after the savepoint is done again
        restored.receive(stream[offset], offset)
    return restored


@given(streams, st.data())
@settings(max_examples=120, deadline=None)
def test_a_restart_at_any_point_leaves_no_trace(stream: list[RawFrame], data: st.DataObject) -> None:
    undisturbed = run(stream, Partition(WINDOW))
    cut = data.draw(st.integers(0, len(stream)))
    savepoints = data.draw(st.lists(st.integers(0, cut), max_size=3))
    assert run(stream, saved_and_restored(stream, cut, savepoints), cut) == undisturbed[cut:]


def test_a_restart_anywhere_in_a_full_life_leaves_no_trace() -> None:
    a, b, other = Source(ticker="KXA"), Source(ticker="KXA", generation=T0 + 30 * S), Source(ticker="KXB")
    life = [
        a.lifecycle(0, event_type="activated"), a.snapshot(S, {4800: 5}, {}), a.resumed(S), a.trade(2 * S, "t1"),
        a.delta(3 * S, "yes", 4800, 1), a.trade(2 * S, "t1"), a.broken(3 * S, "trade"), a.trade(4 * S, "t2"), a.resumed(5 * S),
        a.trade(7 * S, "t3"),
        *(other.trade(6 * S, f"other{n}") for n in range(WINDOW)), a.broken(4 * S, "trade"), a.resumed(8 * S),
        a.delta(9 * S, "yes", 4800, -9), a.delta(9 * S, "yes", 4800, 1), a.snapshot(10 * S, {1: 1}, {}),
        b.resumed(31 * S), a.resumed(31 * S), a.broken(31 * S, "trade"), b.snapshot(32 * S, {1: 2}, {}), b.broken(33 * S),
        a.snapshot(34 * S, {1: 1}, {}), b.snapshot(35 * S, {1: 2}, {}), b.lifecycle(36 * S, event_type="determined"),
        b.lifecycle(36 * S, event_type="determined"), b.rest(36 * S, status="determined"), b.rest(37 * S, status="determined"),
        b.broken(38 * S), b.broken(38 * S, "trade"), b.delta(39 * S, "yes", 1, 1),
    ]  # fmt: skip
    undisturbed = run(life, Partition(WINDOW))
    for cut in range(len(life)):
        for savepoints in ([], [cut // 2], [cut // 3, cut], [cut]):
            assert run(life, saved_and_restored(life, cut, savepoints), cut) == undisturbed[cut:], f"cut before {life[cut]}"


def test_a_gatherer_whose_markets_were_saved_at_different_times_is_one_after_a_restart() -> None:
    later = 400 * S  # more than anybody is waited for who is dead
    old, quiet = Source(ticker="KXA"), Source(ticker="KXB")
    other = Source("g2", ticker="KXA", generation=T0 + later)
    life = [
        old.snapshot(S, {4800: 5}, {}), quiet.snapshot(S, {}, {}), quiet.delta(S, "yes", 1, 1),
        Source(connection=1, ticker="KXC", generation=T0 + later).snapshot(later, {}, {}),  # shows that it lives
        other.snapshot(later, {4800: 6}, {}), other.delta(later + S, "yes", 4800, 1), old.delta(later, "yes", 4800, 1),
    ]  # fmt: skip
    undisturbed = run(life, Partition(WINDOW))
    assert not any(isinstance(event, Gap) for made in undisturbed for event in made)
    for cut in range(3, len(life)):
        assert run(life, saved_and_restored(life, cut, [2, 3]), cut) == undisturbed[cut:], f"cut before {life[cut]}"


@given(streams)
@settings(max_examples=120, deadline=None)
def test_every_market_is_numbered_timed_and_summed(stream: list[RawFrame]) -> None:
    books: dict[str, Book] = defaultdict(Book)
    last: dict[str, BookEvent] = {}
    trade_ids: list[str] = []
    for event in (event for made in run(stream, Partition()) for event in made):
        assert codec.decode(codec.encode(event)) == event
        if isinstance(event, Trade):
            trade_ids.append(event.trade_id)
        if not isinstance(event, BookSnapshot | BookDelta | Gap) or not event.version:
            continue
        ticker = event.market_ticker
        before = last.get(ticker)
        assert event.version == (before.version + 1 if before else 1)
        if before:
            assert event.effective_us >= before.effective_us
        match event:
            case BookSnapshot():
                books[ticker] = Book(event.yes, event.no)
                opened = before if isinstance(before, Gap) else None
                assert (event.gap_start_us, event.gap_cause) == ((opened.start_us, opened.cause) if opened else (None, None))
            case BookDelta():
                assert not isinstance(before, Gap | None)
                books[ticker].apply(event.side, event.price, event.delta)
            case Gap():
                assert not isinstance(before, Gap | None)
        assert event.checksum == to_signed(Book(books[ticker].yes, books[ticker].no).checksum)
        last[ticker] = event
    assert len(trade_ids) == len(set(trade_ids))


@given(streams)
@settings(max_examples=60, deadline=None)
def test_other_markets_do_not_matter(stream: list[RawFrame]) -> None:
    together: dict[str, list[Event]] = defaultdict(list)
    mixed = [  # trade ids are unique, and a connection's markets share its clock
        raw._replace(
            gatherer=raw.gatherer + raw.market_ticker, payload=raw.payload.replace(b'"t', b'"' + raw.market_ticker.encode())
        )
        for raw in stream
    ]
    partition = Partition()
    for offset, raw in enumerate(mixed):
        together[raw.market_ticker] += partition.receive(raw, offset)
    for ticker, events in together.items():
        alone = Partition()
        assert events == [e for n, raw in enumerate(mixed) if raw.market_ticker == ticker for e in alone.receive(raw, n)]


@given(st.lists(st.tuples(raws(), st.binary(max_size=60), st.integers(0, 300), st.booleans()), max_size=8))
@settings(max_examples=80, deadline=None)
def test_no_bytes_stop_it(mangled: list[tuple[RawFrame, bytes, int, bool]]) -> None:
    partition = Partition()
    for offset, (raw, junk, at, replace) in enumerate(mangled):
        payload = raw.payload[:at] + junk + raw.payload[at + (len(junk) if replace else 0) :]
        for event in partition.receive(raw._replace(payload=payload), offset):
            assert codec.decode(codec.encode(event)) == event


def fold(book: Book, event: BookEvent) -> Book:
    if isinstance(event, BookSnapshot):
        book = Book(event.yes, event.no)
    elif isinstance(event, BookDelta):
        book.apply(event.side, event.price, event.delta)
    assert to_signed(book.checksum) == event.checksum
    return book


# --- streams of one gatherer, from an exchange whose truth is known


@dataclass
class World:
    """Two markets on one connection's order-book sid, the gatherer that listens, and what was true."""

    now: int = 0
    generation: int = 0
    missed: bool = False  # a frame of the sid was lost and no later one has shown it yet
    seen_us: int = 0  # greatest exchange time received in order
    raws: list[RawFrame] = field(default_factory=list)
    books: dict[str, Book] = field(default_factory=lambda: {"KXA": Book(), "KXB": Book()})
    truth: dict[str, list[tuple[int, int, int, int]]] = field(default_factory=lambda: defaultdict(list))
    lost: list[tuple[str, int]] = field(default_factory=list)

    def source(self, ticker: str) -> Source:
        return Source(generation=T0 + self.generation, ticker=ticker, seq=len(self.raws))

    def breaks(self, cause: str) -> None:
        for ticker in self.books:
            self.raws.append(self.source(ticker).broken(self.seen_us, cause=cause))

    def deliver(self, raw: RawFrame, at: int) -> None:
        if self.missed:
            self.breaks("upstream_sequence_gap")
            self.missed = False
            self.raws.append(raw)
            self.snapshots(solicited=True)
        else:
            self.raws.append(raw)
        self.seen_us = max(self.seen_us, at)

    def snapshots(self, solicited: bool) -> None:
        for ticker, book in self.books.items():
            self.raws.append(self.source(ticker).snapshot(self.now, dict(book.yes), dict(book.no), solicited))

    def connect(self) -> None:
        self.generation, self.missed, self.seen_us = self.now, False, 0
        self.snapshots(solicited=False)

    def change(self, ticker: str, side: int, price: int, delta: int, fate: str) -> None:
        try:
            self.books[ticker].apply(side, price, delta)
        except CorruptBook:
            return
        self.truth[ticker].append((self.now, side, price, delta))
        raw = self.source(ticker).delta(self.now, ("yes", "no")[side], price, delta)
        if fate == "lost":
            self.missed = True
            self.lost.append((ticker, self.now))
        elif fate == "mangled":
            self.deliver(raw._replace(payload=raw.payload.replace(b'"price', b'"prise')), self.now)
            self.lost.append((ticker, self.now))
            self.raws.append(
                self.source(ticker).snapshot(self.now, dict(self.books[ticker].yes), dict(self.books[ticker].no), True)
            )
        else:
            self.deliver(raw, self.now)
            if fate == "repeated":
                self.raws.append(raw._replace(kind="STALE"))

    def at(self, ticker: str, instant: int) -> Book:
        book = Book()
        for when, side, price, delta in self.truth[ticker]:
            if when <= instant:
                book.apply(side, price, delta)
        return book


@st.composite
def worlds(draw: st.DrawFn, faults: bool = True) -> World:
    world = World()
    world.connect()
    fates = ["heard"] * 4 + ["repeated"] + (["lost", "mangled"] if faults else [])
    steps = ["change"] * 8 + ["ask", "tell"] + (["cut", "kill"] if faults else [])
    for _ in range(draw(st.integers(0, 30))):
        world.now += draw(st.sampled_from([0, 1, S, 25 * S]))
        ticker = draw(st.sampled_from(["KXA", "KXB"]))
        match draw(st.sampled_from(steps)):
            case "change":
                side, price = draw(st.integers(0, 1)), draw(st.sampled_from([4800, 4900]))
                world.change(ticker, side, price, draw(st.integers(-2, 2)), draw(st.sampled_from(fates)))
            case "ask" if not world.missed:
                world.snapshots(solicited=True)
            case "tell" if not world.missed:
                world.snapshots(solicited=False)
            case "cut" | "kill" as end:
                if end == "cut":
                    world.breaks("disconnect")
                for other in world.books:
                    for _ in range(draw(st.integers(0, 2))):
                        world.change(other, 0, 100, draw(st.integers(-1, 2)), "lost")
                world.now += S
                world.connect()
    return world


@given(worlds())
@settings(max_examples=120, deadline=None)
def test_the_book_is_the_true_one_wherever_no_gap_is_stated(world: World) -> None:
    events = [event for made in run(world.raws, Partition()) for event in made]
    for ticker in world.books:
        log: list[BookEvent] = [e for e in events if e.market_ticker == ticker]  # type: ignore[union-attr, misc]
        gaps = [(e.gap_start_us, e.effective_us) for e in log if isinstance(e, BookSnapshot) and e.gap_start_us is not None]
        if isinstance(log[-1], Gap):
            gaps.append((log[-1].start_us, T0 + world.now + 1))
        instants = {T0 + when + d for when, *_ in world.truth[ticker] for d in (-1, 0, 1)} | {e.effective_us for e in log}
        undetected = min((when for t, when in world.lost if t == ticker and world.missed), default=world.now)
        for instant in instants:
            if instant < log[0].effective_us or any(start <= instant < end for start, end in gaps):
                continue
            if world.missed and instant - T0 >= undetected:
                continue  # lost just now: nobody can know before the sid's next frame
            book = Book()
            for event in log:
                if event.effective_us <= instant:
                    book = fold(book, event)
            assert book == world.at(ticker, instant - T0), f"{ticker} at {instant - T0}"


@given(worlds())
@settings(max_examples=120, deadline=None)
def test_every_lost_frame_lies_in_a_gap(world: World) -> None:
    if world.missed:
        world.now += 1
        world.change("KXA", 1, 1, 1, "heard")  # the sid's next frame, which shows the loss
    events = [event for made in run(world.raws, Partition()) for event in made]
    for ticker, when in world.lost:
        snapshots = [
            e for e in events if isinstance(e, BookSnapshot) and e.market_ticker == ticker and e.gap_start_us is not None
        ]
        assert any(e.gap_start_us <= T0 + when <= e.effective_us for e in snapshots if e.gap_start_us is not None)


@given(worlds(faults=False))
@settings(max_examples=60, deadline=None)
def test_nothing_lost_no_gap(world: World) -> None:
    events = [event for made in run(world.raws, Partition()) for event in made]
    assert not any(isinstance(event, Gap) for event in events)
    deltas = sum(isinstance(event, BookDelta) for event in events)
    assert deltas == sum(map(len, world.truth.values()))


def interleaved(draw: st.DrawFn, told: list[list[RawFrame]]) -> list[RawFrame]:
    """Use up several sources' records, each in its order, in any order among them."""
    raws = []
    while any(told):
        raws.append(draw(st.sampled_from([each for each in told if each])).pop(0))
    return raws


@st.composite
def endings(draw: st.DrawFn) -> tuple[list[RawFrame], list[int], int]:
    """Trades of a market until it ended, as gatherers told them that came late, could not be read, or lost the last of them, by a
    break or killed without a word; the end is known at any time."""
    first = draw(st.integers(1, 25))
    trades = sorted(draw(st.sets(st.integers(first, 60), max_size=6)))
    end = draw(st.integers(trades[-1] + 1 if trades else 20, 65))
    told = []
    for since in [first, *draw(st.lists(st.integers(first, 50), max_size=2))]:
        source, other = Source(f"g{len(told)}"), Source(f"g{len(told)}", ticker="KXOTHER")
        lost_from = draw(st.integers(20, 66))
        bad = draw(st.sets(st.sampled_from(trades))) if trades else set[int]()
        raws = [source.resumed(since * S)]
        raws += [
            unreadable(source, at * S) if at in bad else source.trade(at * S, f"t{at}")
            for at in trades
            if since <= at < lost_from
        ]
        if lost_from <= 65:
            newest = (lost_from + draw(st.integers(0, LAG_US // S - 1))) * S  # of the other market: they are out of step
            raws[:0] = [other.snapshot(since * S, {1: 1}, {}), other.resumed(since * S)]
            raws += [other.delta(70 * S, "yes", 1, 1), other.trade(newest, f"other{len(told)}")]
            raws.append(draw(st.sampled_from([source.broken(newest, "trade"), source.started(70 * S)])))
        told.append(raws)
    told.append([Source("g1", connection=9).lifecycle(end * S, event_type="determined")])
    return interleaved(draw, told), trades, end


@given(endings())
@settings(max_examples=200, deadline=None)
def test_every_trade_that_nobody_told_of_an_ended_market_lies_in_a_gap(ending: tuple[list[RawFrame], list[int], int]) -> None:
    raws, trades, end = ending
    events = [event for made in run(raws, Partition()) for event in made]
    heard = {event.exchange_us for event in events if isinstance(event, Trade) and event.market_ticker == TICKER}
    gaps = [event for event in events if isinstance(event, Gap) and event.market_ticker == TICKER]
    ends = {gap.start_us: gap.end_us for gap in gaps}
    assert all(end_us is not None and end_us <= max(start_us, T0 + max(end, 50) * S) for start_us, end_us in ends.items())
    for at in trades:
        when = T0 + at * S
        assert when in heard or any(gap.end_us is not None and gap.start_us <= when < gap.end_us for gap in gaps), at


@st.composite
def book_endings(draw: st.DrawFn) -> tuple[list[RawFrame], list[int], bool]:
    """A market's book until it ended, as gatherers told it that came late, and were whole until they let it go or left before, by
    a break or killed without a word; the end is known at any time. Also says whether one was whole from the first book on."""
    first = draw(st.integers(1, 25))
    changes = sorted(draw(st.sets(st.integers(first + 1, 60), max_size=6)))
    end = draw(st.integers(changes[-1] + 1 if changes else 30, 65))
    told, whole = list[list[RawFrame]](), False
    for since in [first, *draw(st.lists(st.integers(first, 50), max_size=2))]:
        source, other = Source(f"g{len(told)}"), Source(f"g{len(told)}", ticker="KXOTHER")
        lost_from = draw(st.integers(since + 1, 66))
        raws = [other.snapshot(since * S, {1: 1}, {})]
        raws.append(source.snapshot(since * S + S // 2, {1: 1 + sum(at <= since for at in changes)}, {}))
        raws += [source.delta(at * S, "yes", 1, 1) for at in changes if since < at < lost_from]
        if lost_from > end:
            raws.append(source.lifecycle(end * S + draw(st.integers(0, S)), event_type="determined"))
            raws.append(source.broken((end + draw(st.sampled_from([1, 30]))) * S, cause="market_closed"))
            whole |= since == first
        else:
            newest = (lost_from + draw(st.integers(0, LAG_US // S - 1))) * S  # of the other market: they are out of step
            raws.append(other.delta(newest, "yes", 1, 1))
            raws.append(draw(st.sampled_from([source.broken(newest), source.started(90 * S)])))
        told.append(raws)
    told.append([Source("g1", connection=9).lifecycle(end * S, event_type="determined")])
    return interleaved(draw, told), changes, whole


@given(book_endings())
@settings(max_examples=200, deadline=None)
def test_every_change_that_nobody_told_of_an_ended_markets_book_lies_in_a_gap(
    ending: tuple[list[RawFrame], list[int], bool],
) -> None:
    raws, changes, whole = ending
    events = [event for made in run(raws, Partition()) for event in made]
    log = [event for event in events if isinstance(event, BookEvent) and event.market_ticker == TICKER]
    begun = next(event.effective_us for event in log)
    heard = {event.exchange_us for event in log if isinstance(event, BookDelta)}
    spans: list[tuple[int, int]] = []
    for event in log:
        if isinstance(event, BookSnapshot) and event.gap_start_us is not None:
            spans[-1] = event.gap_start_us, event.effective_us
        elif isinstance(event, Gap):
            spans.append((event.start_us, 1 << 62))
    for at in changes:
        when = T0 + at * S
        assert when < begun or when in heard or any(start_us <= when < end_us for start_us, end_us in spans), at
    assert not (whole and spans and begun == log[0].effective_us and log[0].gatherer == "g0")
