"""Events as Parquet and back: one table a topic, its rows in the order of the records they were made of. Pure.

Reading gives back what was written, exactly, but for one thing: a canonical event keeps of its provenance `raw_offset` alone.
The raw row at that offset, in the raw partition of the same number, has the rest (gatherer, connection, generation, sid, seq), so
here they are blank; `bare` blanks them in an event that is to be compared.

What the row before already tells is not written again, which is most of what eight bytes a delta takes. In a row group, null is

    version      one more than that of the market's last row
    checksum     that of the market's last row, changed by this delta (orderbook.checksum)
    exchange_us  the same as effective_us

A delta is `size` where `added`, else -size; and in the raw table clock_ahead_us is clock_us - recv_us. Any row that a rule does
not give exactly is written out, so the rules lose nothing, whatever the events say. Sorting by market would make these three
cheap as well, but the times dearer: measured.

A finished day is written a second time for who reads one market: format 2, canonical rows by market and, within it, in the order
of their records, in row groups whose statistics say the markets. What the order costs is taken back: the book table then has

    late_us              recv_us - effective_us
    contracts, hundredths  size, divided by 100, and what is left over
    raw_step             raw_offset less that of the market's last row in the row group
"""

import io
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from kalshibook_core.orderbook import level_weight
from kalshibook_core.orderbook.checksum import MASK, to_signed
from kalshibook_core.wire.events import (
    BOOK,
    TRADES,
    BookDelta,
    BookSnapshot,
    Checkpoint,
    Gap,
    Level,
    Lifecycle,
    RawFrame,
    Ticker,
    Trade,
)

FORMAT: Final = "1"
REPACKED: Final = "2"

UNREADABLE: Final = "UNREADABLE"
"""Kind of a raw row whose record was no RawFrame under its own key: its payload is the whole Kafka value."""

Row = tuple[int, Any]
"""(offset of the record, event)"""

_LONG, _TEXT, _BYTES, _FLAG = pa.int64(), pa.string(), pa.binary(), pa.bool_()
_LEVELS: Final = pa.list_(pa.struct([pa.field("price", _LONG, nullable=False), pa.field("size", _LONG, nullable=False)]))
_NOWHERE: Final = ("", 0, 0)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """A table: its topic, its columns, and how events become rows and rows events."""

    name: str
    columns: dict[str, Any]
    clock: str  # the field whose day a row belongs to
    instant: Callable[[Any], int]  # the same, of an event
    rows: Callable[[Sequence[Row]], list[Any]]
    events: Callable[[list[list[Any]]], Iterator[Row]]
    coded: tuple[str, ...]  # columns of few values
    split: tuple[str, ...] = ()  # columns of small numbers in no order
    zstd_level: int = 15
    format: str = FORMAT
    row_group: int = 65_536
    """Rows that are read together; each group can be read without the one before it."""

    def write(self, rows: Sequence[Row]) -> bytes:
        """Return the rows as a Parquet file: columns and nothing else. Of what and by whom it is, its manifest says."""
        listed = [row for first in range(0, len(rows), self.row_group) for row in self.rows(rows[first : first + self.row_group])]
        fields = list(self.columns.items())
        columns = [pa.array(column, kind) for (_, kind), column in zip(fields, zip(*listed, strict=True), strict=True)]
        out = io.BytesIO()
        pq.write_table(
            pa.Table.from_arrays(columns, schema=pa.schema(fields)),
            out,
            row_group_size=self.row_group,
            compression="zstd",
            compression_level=self.zstd_level,
            use_dictionary=list(self.coded),
            column_encoding={
                name: "BYTE_STREAM_SPLIT" if name in self.split else "DELTA_BINARY_PACKED"
                for name, kind in fields
                if kind == _LONG and name not in self.coded
            },
            data_page_size=8 << 20,
            write_statistics=[self.clock, "market_ticker"],
            store_schema=False,
            write_page_checksum=True,
        )
        return out.getvalue()

    def read(
        self,
        content: bytes,
        overlaps: Callable[[int, int], bool] = lambda first, last: True,
        ticker: str | None = None,
    ) -> Iterator[Row]:
        """Yield the rows of those row groups whose instants, from first to last, `overlaps` wants; with `ticker`, its rows alone.

        Reads every format. Raises ValueError where the content is no such file.
        """
        file = File(self, content)
        for number, (first, last, low, high) in enumerate(file.groups):
            if overlaps(first, last) and (ticker is None or low <= ticker <= high):
                group = file.read(number, None if ticker is None else [ticker])
                if group is not None:
                    yield from file.table.events([column.to_pylist() for column in group.columns])


class Group(NamedTuple):
    """What a row group says of itself: its first and last instant, its first and last market."""

    first_us: int
    last_us: int
    low: str
    high: str


class File:
    """A Parquet file of a table, row group by row group. Raises ValueError where the content is none."""

    def __init__(self, table: Table, content: bytes) -> None:
        self._name = table.name
        with self._told():
            self._file = pq.ParquetFile(pa.BufferReader(content), read_dictionary=["market_ticker"])
            self._columns = self._file.schema_arrow.names
            formats = (each for each in FORMATS.values() if each.name == table.name and list(each.columns) == self._columns)
            self.table = next(formats)
            """The table in the file's format."""
            self.groups = [self._group(number) for number in range(self._file.num_row_groups)]
            """What each row group says of itself; of one that says nothing, all that can be."""

    def read(self, number: int, tickers: Collection[str] | None = None) -> Any:
        """Return a row group as an Arrow table; with `tickers` their rows alone, None if there are none."""
        with self._told():
            if tickers is None:
                return self._file.read_row_group(number, columns=self._columns, use_threads=False)
            there = self._file.read_row_group(number, columns=["market_ticker"], use_threads=False).column(0)
            rows = np.flatnonzero(pc.is_in(there, value_set=pa.array(sorted(tickers), _TEXT)).to_numpy())
            if not rows.size:
                return None
            group = self._file.read_row_group(number, columns=self._columns, use_threads=False)
            return group if rows.size == group.num_rows else group.take(rows)

    def _group(self, number: int) -> Group:
        told = self._file.metadata.row_group(number)
        when, who = (
            told.column(self._columns.index(name)).statistics for name in (self.table.clock, "market_ticker")
        )  # fmt: skip
        instants = (when.min, when.max) if when is not None and when.has_min_max else (-(1 << 63), 1 << 63)
        return Group(*instants, *((who.min, who.max) if who is not None and who.has_min_max else ("", chr(0x10FFFF))))

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (pa.ArrowException, OSError, KeyError, StopIteration) as error:
            raise ValueError(f"no {self._name} table: {error}") from error


def bare(event: Any) -> Any:
    """Return a canonical event without the part of its provenance that the raw row at `raw_offset` has."""
    if isinstance(event, BookSnapshot | BookDelta | Trade):
        return event._replace(gatherer="", connection=0, generation=0, sid=-1, seq=-1)
    if isinstance(event, Gap | Checkpoint):
        return event._replace(gatherer="", connection=0, generation=0)
    return event


def _raw_rows(rows: Sequence[Row]) -> list[Any]:
    return [(offset, *raw[:10], raw[10] - raw[9], *raw[11:]) for offset, raw in rows]


def _raw_events(columns: list[list[Any]]) -> Iterator[Row]:
    for offset, *fields in zip(*columns, strict=True):
        fields[10] += fields[9]
        yield offset, RawFrame._make(fields)


def _levels(levels: Sequence[Level]) -> list[dict[str, int]]:
    return [{"price": price, "size": size} for price, size in levels]


def _tuples(levels: Sequence[dict[str, int]]) -> list[Level]:
    return [(level["price"], level["size"]) for level in levels]


def _book_rows(rows: Sequence[Row]) -> list[Any]:
    last: dict[str, tuple[int, int]] = {}
    made: list[Any] = []
    for _, e in rows:
        ticker, version = e[0], e[1]
        before, summed = last.get(ticker, (None, None))
        told = None if before is not None and version == before + 1 else version
        if type(e) is BookDelta:
            _, _, effective_us, exchange_us, recv_us, side, price, delta, checksum, *_, raw_offset = e
            follows = summed is not None and to_signed((summed + delta * level_weight(side, price)) & MASK) == checksum
            made.append(
                (
                    "delta", ticker, told, effective_us, None if exchange_us == effective_us else exchange_us, recv_us, side,
                    price, delta > 0, abs(delta), None if follows else checksum, None, None, None, None, None, raw_offset,
                )
            )  # fmt: skip
        elif type(e) is BookSnapshot:
            checksum = e.checksum
            made.append(
                (
                    "snapshot", ticker, told, e.effective_us, None, e.recv_us, None, None, None, None, checksum, _levels(e.yes),
                    _levels(e.no), e.gap_start_us, None, e.gap_cause, e.raw_offset,
                )
            )  # fmt: skip
        else:
            checksum = e.checksum
            made.append(
                (
                    "gap", ticker, told, e.effective_us, None, e.recv_us, None, None, None, None, checksum, None, None,
                    e.start_us, e.end_us, e.cause, e.raw_offset,
                )
            )  # fmt: skip
        last[ticker] = (version, checksum)
    return made


def _book_events(columns: list[list[Any]]) -> Iterator[Row]:
    last: dict[str, tuple[int, int]] = {}
    for (
        kind, ticker, version, effective_us, exchange_us, recv_us, side, price, added, size, checksum, yes, no, start_us, end_us,
        cause, raw_offset,
    ) in zip(*columns, strict=True):  # fmt: skip
        if version is None:
            version = last[ticker][0] + 1  # noqa: PLW2901
        event: Any
        if kind == "delta":
            delta = size if added else -size
            if exchange_us is None:
                exchange_us = effective_us  # noqa: PLW2901
            if checksum is None:
                checksum = to_signed((last[ticker][1] + delta * level_weight(side, price)) & MASK)  # noqa: PLW2901
            event = BookDelta._make(
                (ticker, version, effective_us, exchange_us, recv_us, side, price, delta, checksum, *_NOWHERE, -1, -1, raw_offset)
            )
        elif kind == "snapshot":
            known = (ticker, version, effective_us, recv_us, _tuples(yes), _tuples(no), checksum, start_us, cause)
            event = BookSnapshot._make((*known, *_NOWHERE, -1, -1, raw_offset))
        else:
            event = Gap._make(
                (ticker, version, effective_us, BOOK, start_us, end_us, cause, recv_us, checksum, *_NOWHERE, raw_offset)
            )
        last[ticker] = (version, checksum)
        yield raw_offset, event


def _repacked_book_rows(rows: Sequence[Row]) -> list[Any]:
    made: list[Any] = []
    last: dict[str, int] = {}
    for row in _book_rows(rows):
        ticker, effective_us, recv_us, size, raw_offset = row[1], row[3], row[5], row[9], row[-1]
        sizes = (None, None) if size is None else divmod(size, 100)
        step = to_signed((raw_offset - last.get(ticker, 0)) & MASK)
        made.append((*row[:5], to_signed((recv_us - effective_us) & MASK), *row[6:9], *sizes, *row[10:-1], step))
        last[ticker] = raw_offset
    return made


def _repacked_book_events(columns: list[list[Any]]) -> Iterator[Row]:
    tickers, effective, late, contracts, hundredths = columns[1], columns[3], columns[5], columns[9], columns[10]
    received = [to_signed((at + after) & MASK) for at, after in zip(effective, late, strict=True)]
    sizes = [None if whole is None else whole * 100 + rest for whole, rest in zip(contracts, hundredths, strict=True)]
    last: dict[str, int] = {}
    offsets: list[int] = []
    for ticker, step in zip(tickers, columns[-1], strict=True):
        last[ticker] = to_signed((last.get(ticker, 0) + step) & MASK)
        offsets.append(last[ticker])
    return _book_events([*columns[:5], received, *columns[6:9], sizes, *columns[11:-1], offsets])


def _trade_rows(rows: Sequence[Row]) -> list[Any]:
    return [
        ("trade", *e[:9], None, None, None, e.raw_offset)
        if type(e) is Trade
        else (
            "gap", e.market_ticker, None, e.effective_us, e.recv_us, None, None, None, None, None, e.start_us, e.end_us, e.cause,
            e.raw_offset,
        )
        for _, e in rows
    ]  # fmt: skip


def _trade_events(columns: list[list[Any]]) -> Iterator[Row]:
    for kind, ticker, *fields, start_us, end_us, cause, raw_offset in zip(*columns, strict=True):
        if kind == "trade":
            yield raw_offset, Trade._make((ticker, *fields, *_NOWHERE, -1, -1, raw_offset))
        else:
            _, effective_us, recv_us, *_ = fields
            gap = Gap._make((ticker, 0, effective_us, TRADES, start_us, end_us, cause, recv_us, 0, *_NOWHERE, raw_offset))
            yield raw_offset, gap


def _ticker_events(columns: list[list[Any]]) -> Iterator[Row]:
    return ((fields[-1], Ticker._make(fields)) for fields in zip(*columns, strict=True))


def _lifecycle_events(columns: list[list[Any]]) -> Iterator[Row]:
    return ((fields[-1], Lifecycle._make(fields)) for fields in zip(*columns, strict=True))


def _checkpoint_rows(rows: Sequence[Row]) -> list[Any]:
    return [
        (
            offset, e.market_ticker, e.version, e.effective_us, _levels(e.yes), _levels(e.no), e.checksum, e.gap_start_us,
            e.gap_cause, e.book_offset, e.resume_offset,
        )
        for offset, e in rows
    ]  # fmt: skip


def _checkpoint_events(columns: list[list[Any]]) -> Iterator[Row]:
    for offset, ticker, version, effective_us, yes, no, *rest, book_offset, resume_offset in zip(*columns, strict=True):
        known = (ticker, version, effective_us, _tuples(yes), _tuples(no), *rest)
        yield offset, Checkpoint._make((*known, *_NOWHERE, book_offset, resume_offset))


RAW: Final = Table(
    "raw",
    {
        "offset": _LONG, "kind": _TEXT, "gatherer": _TEXT, "connection": _LONG, "generation": _LONG, "channel": _TEXT,
        "sid": _LONG, "seq": _LONG, "yes_price": _FLAG, "market_ticker": _TEXT, "recv_us": _LONG, "clock_ahead_us": _LONG,
        "detail": _TEXT, "payload": _BYTES,
    },
    "recv_us", lambda e: int(e.recv_us), _raw_rows, _raw_events,
    ("kind", "gatherer", "connection", "generation", "channel", "sid", "market_ticker", "clock_ahead_us", "detail"),
    zstd_level=9,  # of payloads the next ones take twice the time, for a hundredth of the bytes
)  # fmt: skip

BOOKS: Final = Table(
    "book",
    {
        "kind": _TEXT, "market_ticker": _TEXT, "version": _LONG, "effective_us": _LONG, "exchange_us": _LONG, "recv_us": _LONG,
        "side": _LONG, "price": _LONG, "added": _FLAG, "size": _LONG, "checksum": _LONG, "yes": _LEVELS, "no": _LEVELS,
        "gap_start_us": _LONG, "gap_end_us": _LONG, "gap_cause": _TEXT, "raw_offset": _LONG,
    },
    "effective_us", lambda e: int(e.effective_us), _book_rows, _book_events,
    ("kind", "market_ticker", "side", "price", "gap_cause"), ("size",),
)  # fmt: skip

TRADED: Final = Table(
    "trades",
    {
        "kind": _TEXT, "market_ticker": _TEXT, "trade_id": _TEXT, "exchange_us": _LONG, "recv_us": _LONG, "yes_price": _LONG,
        "no_price": _LONG, "count": _LONG, "taker_side": _LONG, "is_block_trade": _FLAG, "gap_start_us": _LONG,
        "gap_end_us": _LONG, "gap_cause": _TEXT, "raw_offset": _LONG,
    },
    "exchange_us", lambda e: int(e.exchange_us if type(e) is Trade else e.effective_us), _trade_rows, _trade_events,
    ("kind", "market_ticker", "yes_price", "no_price", "taker_side", "gap_cause"),
)  # fmt: skip

TICKED: Final = Table(
    "tickers",
    {
        name: _TEXT if name == "market_ticker" else _LONG for name in Ticker._fields
    },
    "exchange_us", lambda e: int(e.exchange_us), lambda rows: [e for _, e in rows], _ticker_events,
    ("market_ticker", "price", "yes_bid", "yes_ask"),
)  # fmt: skip

DEFINED: Final = Table(
    "lifecycle",
    {
        "market_ticker": _TEXT, "event_type": _TEXT, "recv_us": _LONG, "clock_us": _LONG, "body": _BYTES, "raw_offset": _LONG,
    },
    "clock_us", lambda e: int(e.clock_us), lambda rows: [e for _, e in rows], _lifecycle_events, ("market_ticker", "event_type"),
)  # fmt: skip

CHECKPOINTED: Final = Table(
    "checkpoints",
    {
        "offset": _LONG, "market_ticker": _TEXT, "version": _LONG, "effective_us": _LONG, "yes": _LEVELS, "no": _LEVELS,
        "checksum": _LONG, "gap_start_us": _LONG, "gap_cause": _TEXT, "book_offset": _LONG, "resume_offset": _LONG,
    },
    "effective_us", lambda e: int(e.effective_us), _checkpoint_rows, _checkpoint_events, ("market_ticker", "gap_cause"),
    row_group=2_048,  # books are long, and who reads one wants no other
)  # fmt: skip

BY_TOPIC: Final = {
    "kalshi.raw.v1": RAW,
    "kalshi.book.v1": BOOKS,
    "kalshi.trades.v1": TRADED,
    "kalshi.tickers.v1": TICKED,
    "kalshi.lifecycle.v1": DEFINED,
    "kalshi.checkpoints.v1": CHECKPOINTED,
}
BY_NAME: Final = {table.name: table for table in BY_TOPIC.values()}


def _repacked(table: Table) -> Table:
    # Of payloads, level 19 takes an eighth less and sixteen times the time.
    level = 12 if table.name == RAW.name else 19
    table = replace(table, format=REPACKED, row_group=min(16_384, table.row_group), zstd_level=level)
    if table.name != BOOKS.name:
        return table
    columns: dict[str, Any] = {}
    for name, kind in table.columns.items():
        instead = {"recv_us": ("late_us",), "size": ("contracts", "hundredths"), "raw_offset": ("raw_step",)}
        columns |= dict.fromkeys(instead.get(name, (name,)), kind)
    split = ("late_us", "contracts", "hundredths", "raw_step")
    return replace(table, columns=columns, rows=_repacked_book_rows, events=_repacked_book_events, split=split)


FORMATS: Final = {(each.name, each.format): each for table in BY_NAME.values() for each in (table, _repacked(table))}
"""Each table by (name, format)."""


KINDS: Final = {
    RAW.name: (RawFrame,),
    BOOKS.name: (BookDelta, BookSnapshot, Gap),
    TRADED.name: (Trade, Gap),
    TICKED.name: (Ticker,),
    DEFINED.name: (Lifecycle,),
    CHECKPOINTED.name: (Checkpoint,),
}
"""The events a table takes."""
