"""A batch: decoded events on their way to Postgres, by table, with the offsets they came from. Pure; bounded by who fills it.

Rows are built when market ids are known. A value that no row can be made of (not ours, not JSON) is counted, told by the caller
and passed over: the raw topic has the frame it came from.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from kalshibook_core.postgres import levels, partitions
from kalshibook_core.wire import codec, events
from services.persister import market

SNAPSHOT, DELTA, GAP = 1, 2, 3
"""Values of book_events.kind."""

BOOK_COLUMNS: Final = (
    "effective_us", "exchange_us", "recv_us", "checksum", "delta", "market_id", "version", "price", "side", "kind", "levels",
)  # fmt: skip
TICKER_COLUMNS: Final = (
    "market_id", "exchange_us", "recv_us", "price", "yes_bid", "yes_ask", "yes_bid_size", "yes_ask_size",
    "last_trade_size", "volume", "open_interest", "dollar_volume", "dollar_open_interest",
)  # fmt: skip
LIFECYCLE_COLUMNS: Final = ("market_id", "event_type", "recv_us", "clock_us", "body")

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
    opened_version: int  # 0 where what closed it does not say: the row keeps what it has


class Batch:
    """Events waiting for one transaction, and how far in each partition they reach."""

    def __init__(self) -> None:
        self.next: dict[Source, int] = {}
        self.deltas: list[events.BookDelta] = []
        self.snapshots: list[events.BookSnapshot] = []
        self.gaps: list[events.Gap] = []
        self.gap_rows: dict[tuple[str, str, int], GapRow] = {}
        self.trades: list[events.Trade] = []
        self.tickers: list[events.Ticker] = []
        self.checkpoints: list[events.Checkpoint] = []
        self.lifecycle: list[events.Lifecycle] = []
        self.market_changes: dict[str, market.MarketChange] = {}
        self.families: dict[str, dict[str, market.Family]] = {events.EVENT: {}, events.SERIES: {}}
        self.rows = 0
        self.unreadable = 0
        self._add: dict[type, Callable[[Any], None]] = {
            events.BookDelta: self.deltas.append,
            events.BookSnapshot: self._add_snapshot,
            events.Gap: self._add_gap,
            events.Trade: self.trades.append,
            events.Ticker: self.tickers.append,
            events.Checkpoint: self.checkpoints.append,
            events.Lifecycle: self._add_lifecycle,
        }

    def add(self, source: Source, records: Iterable[Any]) -> None:
        """Take Kafka records (`offset`, `value`) of one partition, in their order."""
        decode, add = codec.decode, self._add
        for record in records:
            self.next[source] = record.offset + 1
            if record.value is None:
                continue  # a tombstone of the compacted topic
            try:
                event = decode(record.value)
                add[type(event)](event)
                self.rows += 1
            except (codec.Undecodable, KeyError, ValueError):
                self.unreadable += 1

    def _add_snapshot(self, event: events.BookSnapshot) -> None:
        self.snapshots.append(event)
        if event.gap_start_us is not None:
            key = (event.market_ticker, events.BOOK, event.gap_start_us)
            opened = self.gap_rows.get(key)
            version = opened.opened_version if opened else 0
            self.gap_rows[key] = GapRow(*key, event.effective_us, event.gap_cause or "", version)

    def _add_gap(self, event: events.Gap) -> None:
        if event.version:
            self.gaps.append(event)
        key = (event.market_ticker, event.channel, event.start_us)
        self.gap_rows[key] = GapRow(*key, event.end_us, event.cause, event.version)

    def _add_lifecycle(self, event: events.Lifecycle) -> None:
        change = market.change(event)  # first, because it raises where the body is no JSON object
        family = market.family(event)
        self.lifecycle.append(event)
        if family is not None:
            self.families[event.event_type][family.ticker] = family
        if change is not None:
            known = self.market_changes.get(change.ticker)
            self.market_changes[change.ticker] = change if known is None else market.later(known, change)

    @property
    def last_effective_us(self) -> int:
        """The latest effective time of a book event in it, 0 without one."""
        return max((part[-1].effective_us for part in (self.deltas, self.snapshots, self.gaps) if part), default=0)

    def tickers_named(self) -> set[str]:
        """Return every market that the batch has a row of."""
        parts = (self.deltas, self.snapshots, self.trades, self.tickers, self.checkpoints, self.gap_rows.values())
        return {row[0] for part in parts for row in part} | self.market_changes.keys()  # the ticker is the first field of each

    def partitions_needed(self) -> set[partitions.Partition]:
        """Return the partitions by time that its rows belong to."""
        day = partitions.DAY_US
        days: dict[str, set[int]] = {
            "book_events": {e.effective_us // day for part in (self.deltas, self.snapshots, self.gaps) for e in part},
            "tickers": {e.exchange_us // day for e in self.tickers},
            "checkpoints": {e.effective_us // day for e in self.checkpoints},
        }
        found = (partitions.containing(table, number * day) for table, numbers in days.items() for number in numbers)
        return {partition for partition in found if partition is not None}

    def book_rows(self, ids: Ids) -> Iterator[Row]:
        """Yield the rows of book_events, in the order of BOOK_COLUMNS."""
        for e in self.snapshots:
            packed = levels.pack(e.yes, e.no)
            yield (e.effective_us, 0, e.recv_us, e.checksum, 0, ids[e.market_ticker], e.version, 0, 0, SNAPSHOT, packed)
        for g in self.gaps:
            yield (g.effective_us, 0, g.recv_us, g.checksum, 0, ids[g.market_ticker], g.version, 0, 0, GAP, b"")
        for ticker, version, effective_us, exchange_us, recv_us, side, price, delta, checksum, *_ in self.deltas:
            yield (effective_us, exchange_us, recv_us, checksum, delta, ids[ticker], version, price, side, DELTA, b"")

    def ticker_rows(self, ids: Ids) -> Iterator[Row]:
        """Yield the rows of tickers, in the order of TICKER_COLUMNS."""
        return ((ids[e.market_ticker], *e[1:13]) for e in self.tickers)

    def trade_rows(self, ids: Ids) -> list[Row]:
        """Return the rows of trades, in the order of the table."""
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
            )
            for e in self.trades
        ]

    def checkpoint_rows(self, ids: Ids) -> list[Row]:
        """Return the rows of checkpoints, in the order of the table."""
        return [
            (e.effective_us, e.checksum, e.gap_start_us, ids[e.market_ticker], e.version, e.gap_cause, levels.pack(e.yes, e.no))
            for e in self.checkpoints
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
