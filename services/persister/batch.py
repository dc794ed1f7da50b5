"""A batch: decoded events on their way to Postgres, by table, with the offsets they came from. Pure; bounded by who fills it.

Rows are built when market ids are known. A value that no row can be made of (not ours, not JSON) is counted, told by the caller
and passed over: the raw topic has the frame it came from.
"""

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from operator import attrgetter
from typing import Any, Final, NamedTuple

import numpy as np

from kalshibook_core.kalshi.markets import ENDED
from kalshibook_core.postgres import levels, partitions, runs
from kalshibook_core.wire import codec, columns, coverage, events
from services.persister import market

TICKER_COLUMNS: Final = (
    "market_id", "exchange_us", "recv_us", "price", "yes_bid", "yes_ask", "yes_bid_size", "yes_ask_size",
    "last_trade_size", "volume", "open_interest", "dollar_volume", "dollar_open_interest",
)  # fmt: skip
LIFECYCLE_COLUMNS: Final = ("market_id", "event_type", "recv_us", "clock_us", "body")

_MANY, _NEVER = 1 << 32, 1 << 62
_KEY: Final = attrgetter("market_id", "version")
LATEST_US: Final = 1_000 * coverage.HOUR_US
"""Of a gap that is longer, the hours before are measured anew when something else is told of them; what is served is true."""

Ids = Mapping[str, int]
Row = tuple[Any, ...]
Source = tuple[str, int]
"""(topic, partition)"""


class GapRow(NamedTuple):
    """A gap as last heard of: opened, or closed at `end_us`."""

    ticker: str
    channel: str
    start_us: int
    end_us: int | None
    cause: str
    opened_version: int  # of trades: which it is in the batch of the market's gaps with this start


class Batch:
    """Events waiting for one transaction, and how far in each partition they reach."""

    def __init__(self) -> None:
        self.next: dict[Source, int] = {}
        self._deltas: list[bytes] = []  # as they came: they are decoded together, when the batch is written
        self.snapshots: list[events.BookSnapshot] = []
        self.gaps: list[events.Gap] = []
        self.gap_rows: dict[tuple[str, str, int, int], GapRow] = {}
        self.filled: list[events.Gap] = []  # gaps of trades that REST was read over
        self.trades: list[events.Trade] = []
        self.tickers: list[events.Ticker] = []
        self.checkpoints: list[events.Checkpoint] = []
        self.audits: list[events.Audited] = []
        self.lifecycle: list[events.Lifecycle] = []
        self.market_changes: dict[str, market.MarketChange] = {}
        self.ends: dict[str, int] = {}  # when it was first heard that a market ended, by the exchange's clock
        self.families: dict[str, dict[str, market.Family]] = {events.EVENT: {}, events.SERIES: {}}
        self.rows = 0
        self.unreadable = 0
        self._add: dict[type, Callable[[Any], None]] = {
            events.BookDelta: lambda event: self._deltas.append(codec.encode(event)),  # of a schema before today's
            events.BookSnapshot: self._add_snapshot,
            events.Gap: self._add_gap,
            events.Trade: self.trades.append,
            events.Ticker: self.tickers.append,
            events.Checkpoint: self.checkpoints.append,
            events.Lifecycle: self._add_lifecycle,
            events.Audited: self.audits.append,
        }

    def add(self, source: Source, records: Sequence[Any]) -> None:
        """Take Kafka records (`offset`, `value`) of one partition, in their order."""
        decode, add, size = codec.decode, self._add, len(columns.DELTA)
        if records:
            self.next[source] = records[-1].offset + 1
        for record in records:
            value = record.value
            if value is None:
                continue  # a tombstone of the compacted topic
            if value[:size] == columns.DELTA:
                self._deltas.append(value)
                self.rows += 1
                continue
            try:
                event = decode(value)
                add[type(event)](event)
                self.rows += 1
            except (codec.Undecodable, KeyError, ValueError):
                self.unreadable += 1

    @cached_property
    def deltas(self) -> columns.Deltas:
        """The deltas in it. To be asked for once nothing more is added."""
        try:
            return columns.deltas(self._deltas)
        except codec.Undecodable:
            whole = [value for value in self._deltas if _decodable(value)]
            self.unreadable += len(self._deltas) - len(whole)
            self.rows -= len(self._deltas) - len(whole)
            return columns.deltas(whole)

    def _add_snapshot(self, event: events.BookSnapshot) -> None:
        self.snapshots.append(event)
        if event.gap_start_us is not None:
            # Inside a gap nothing takes a version, so it was opened by the one before.
            row = GapRow(
                event.market_ticker, events.BOOK, event.gap_start_us, event.effective_us, event.gap_cause or "", event.version - 1
            )
            self.gap_rows[(*row[:3], row.opened_version)] = row

    def _add_gap(self, event: events.Gap) -> None:
        if event.connection == events.READ_OVER:
            self.filled.append(event)
            return
        number = event.version
        where = (event.market_ticker, event.channel, event.start_us)
        if event.version:
            self.gaps.append(event)
        else:
            while (known := self.gap_rows.get((*where, number))) is not None and (
                known.end_us is not None or event.end_us is None
            ):
                number += 1  # another that begins there, the one before being of no length; if this one ends, it is the open one
        self.gap_rows[(*where, number)] = GapRow(*where, event.end_us, event.cause, number)

    def _add_lifecycle(self, event: events.Lifecycle) -> None:
        change = market.change(event)  # first, because it raises where the body is no JSON object
        family = market.family(event)
        self.lifecycle.append(event)
        if family is not None:
            self.families[event.event_type][family.ticker] = family
        if change is not None:
            known = self.market_changes.get(change.ticker)
            self.market_changes[change.ticker] = change if known is None else market.later(known, change)
            if event.event_type in ENDED or change.status in ENDED:
                self.ends[change.ticker] = min(event.clock_us, self.ends.get(change.ticker, event.clock_us))

    @property
    def last_effective_us(self) -> int:
        """The latest effective time of a book event in it, 0 without one."""
        others = max((event.effective_us for part in (self.snapshots, self.gaps) for event in part), default=0)
        return max(others, int(self.deltas.effective_us.max(initial=0)))

    def tickers_named(self) -> set[str]:
        """Return every market that the batch has a row of."""
        parts = (self.snapshots, self.trades, self.tickers, self.checkpoints, self.audits, self.gap_rows.values(), self.filled)
        named = {row[0] for part in parts for row in part}  # the ticker is the first field of each
        return named | self.market_changes.keys() | set(self.deltas.tickers)

    def partitions_needed(self) -> set[partitions.Partition]:
        """Return the partitions by time that its rows belong to."""
        day = partitions.DAY_US
        days: dict[str, set[int]] = {
            "book_events": {e.effective_us // day for part in (self.snapshots, self.gaps) for e in part}
            | set(np.unique(self.deltas.effective_us // day).tolist()),
            "tickers": {e.exchange_us // day for e in self.tickers},
            "checkpoints": {e.effective_us // day for e in self.checkpoints},
        }
        found = (partitions.containing(table, number * day) for table, numbers in days.items() for number in numbers)
        return {partition for partition in found if partition is not None}

    def hours(self) -> set[tuple[str, int]]:
        """Return (ticker, beginning) of every market's hour of which its rows say something new."""
        told, hour = self.deltas, coverage.HOUR_US
        first, last = (int(us) // hour * hour for us in (told.effective_us.min(initial=_NEVER), told.effective_us.max(initial=0)))
        if first == last:  # as it is of nearly every batch
            found = {(ticker, first) for ticker in told.tickers}
        else:
            codes = np.unique(told.market * _MANY + np.maximum(told.effective_us // hour, 0)).tolist()
            found = {(told.tickers[code // _MANY], code % _MANY * hour) for code in codes}
        points: list[tuple[str, int]] = [(e.market_ticker, e.effective_us) for e in self.snapshots]
        points += [(e.market_ticker, e.exchange_us) for e in self.trades] + [(e.market_ticker, e.to_us) for e in self.audits]
        points += [(gap.ticker, gap.end_us) for gap in self.gap_rows.values() if gap.end_us is not None]
        found |= {(ticker, us - us % hour) for ticker, us in points}
        # A gap may be told long after it began; one in trades says only by what else is told how long.
        spans = [(e.market_ticker, e.start_us, e.effective_us) for e in self.gaps]
        spans += [(e.market_ticker, e.start_us, e.end_us or 0) for e in self.filled]
        trades = [gap for gap in self.gap_rows.values() if gap.channel == events.TRADES]
        spans += [(gap.ticker, gap.start_us, gap.end_us or max(gap.start_us, self.last_effective_us)) for gap in trades]
        for ticker, start_us, end_us in spans:
            found.update((ticker, each) for each in coverage.touched(max(start_us, end_us - LATEST_US), end_us))
        return found

    def days(self) -> set[int]:
        """Return the beginnings of the days before its last that a gap lies in which has ended: what is said of them changes."""
        day = partitions.DAY_US
        ended = (
            (max(gap.start_us, gap.end_us - LATEST_US), gap.end_us) for gap in self.gap_rows.values() if gap.end_us is not None
        )
        return {each for start_us, end_us in ended for each in range(start_us - start_us % day, end_us - end_us % day, day)}

    def book_tickers(self) -> set[str]:
        """Return the markets that `book_rows` will yield rows of."""
        return {event.market_ticker for part in (self.snapshots, self.gaps) for event in part}.union(self.deltas.tickers)

    @property
    def first_effective_us(self) -> int:
        """The earliest effective time of a book event in it, of which there must be one."""
        others = min((event.effective_us for part in (self.snapshots, self.gaps) for event in part), default=_NEVER)
        return min(others, int(self.deltas.effective_us.min(initial=_NEVER)))

    def book_rows(self, ids: Ids) -> Iterator[runs.Row]:
        """Yield the rows of book_events, by market; those of one in the order of its versions, if the stream had them so."""
        alone = [runs.pack_snapshot(ids[snapshot.market_ticker], snapshot) for snapshot in self.snapshots]
        alone += [runs.pack_gap(ids[gap.market_ticker], gap) for gap in self.gaps]
        packed = runs.pack_deltas(np.array([ids[ticker] for ticker in self.deltas.tickers], np.int64), self.deltas)
        yield from heapq.merge(sorted(alone, key=_KEY), packed, key=_KEY) if alone else packed

    def ticker_rows(self, ids: Ids) -> Iterator[Row]:
        """Yield the rows of tickers, in the order of TICKER_COLUMNS."""
        return ((ids[e.market_ticker], *e[1:13]) for e in self.tickers)

    def trade_rows(self, ids: Ids) -> list[Row]:
        """Return the rows of trades, in the order of the table; of one `trade_id` there may be several."""
        return [
            (
                e.exchange_us,
                e.recv_us,
                e.count,
                ids[e.market_ticker],
                e.yes_price,
                e.no_price,
                e.taker_side,
                e.is_block_trade,
                e.trade_id,
                events.origin(e),
            )
            for e in self.trades
        ]

    def checkpoint_rows(self, ids: Ids) -> list[Row]:
        """Return the rows of checkpoints, in the order of the table."""
        return [
            (e.effective_us, e.checksum, e.gap_start_us, ids[e.market_ticker], e.version, e.gap_cause, levels.pack(e.yes, e.no))
            for e in self.checkpoints
        ]

    def audit_rows(self, ids: Ids) -> list[Row]:
        """Return the rows of audits, in the order of the table."""
        return [
            (
                e.to_us,
                e.from_us,
                e.judged_us,
                e.rest_checksum,
                e.checksum,
                ids[e.market_ticker],
                e.version,
                e.outcome,
            )
            for e in self.audits
        ]

    def lifecycle_rows(self, ids: Ids) -> list[Row]:
        """Return the rows of lifecycle, in the order of LIFECYCLE_COLUMNS."""
        return [
            (
                None if e.event_type in market.EVENT_LEVEL else ids.get(e.market_ticker),
                e.event_type,
                e.recv_us,
                e.clock_us,
                e.body.decode(),
            )
            for e in self.lifecycle
        ]


def _decodable(value: bytes) -> bool:
    try:
        codec.decode(value)
    except codec.Undecodable:
        return False
    return True
