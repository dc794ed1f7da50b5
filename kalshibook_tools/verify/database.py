"""Events against the rows that the persister must have made of them: book_events, trades, tickers, lifecycle, checkpoints, gaps.

Rows of a day that was dropped because the archive has it (`cold_days`) are no difference, and are counted. A partition by time
that is gone or detached without that is named, once. Of trades and lifecycle the database may have more than the archive
(backfill, imports), and of a trade it has what was told first; so there each event's row is looked for, and no other.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import orjson

from kalshibook_core.kafka import topics
from kalshibook_core.postgres import levels, partitions, runs, trades
from kalshibook_core.postgres.partitions import DAY_US
from kalshibook_core.wire.events import BOOK, TRADES, BookDelta, BookEvent, BookSnapshot, Gap, Lifecycle, Ticker, Trade
from kalshibook_tools.verify.archive import IN_DATABASE, Key, Known, Made, Proof, Result, Wanted, contradiction
from kalshibook_tools.verify.gaps import Gaps, Reach, of_nobody

# A row holds a run of events of one UTC day, and may begin before the first that is asked for.
_BOOK_EVENTS: Final = f"""
SELECT ticker, low, high, {", ".join(f"b.{name}" for name in runs.COLUMNS)}
FROM unnest($1::text[], $2::int[], $3::int[], $4::bigint[], $5::bigint[]) AS asked (ticker, low, high, from_us, to_us)
JOIN markets USING (ticker)
JOIN book_events AS b ON b.market_id = markets.id AND b.effective_us BETWEEN from_us - from_us % {DAY_US} AND to_us
     AND b.version <= high AND b.version + b.events > low"""

# What was told of a trade otherwise than it was told first has a row of its own.
_TRADES: Final = f"""
WITH asked AS (
    SELECT ticker, trade_id, at_us, id FROM unnest($1::text[], $2::text[], $3::bigint[]) AS told (ticker, trade_id, at_us)
    JOIN markets USING (ticker))
SELECT ticker, t.trade_id, CASE WHEN {trades.one_time("at_us", "t.exchange_us")} THEN at_us ELSE t.exchange_us END,
       t.yes_price, t.no_price, t.count, t.taker_side
FROM asked JOIN trades AS t ON t.market_id = asked.id AND t.trade_id = asked.trade_id
UNION ALL
SELECT ticker, d.trade_id, d.exchange_us, d.yes_price, d.no_price, d.count, d.taker_side
FROM asked JOIN trade_differences AS d ON d.market_id = asked.id AND d.trade_id = asked.trade_id"""

_TICKER_COLUMNS: Final = Ticker._fields[1:-1]
_TICKERS: Final = f"""
SELECT ticker, {", ".join(f"t.{name}" for name in _TICKER_COLUMNS)}
FROM (SELECT DISTINCT * FROM unnest($1::text[], $2::bigint[])) AS asked (ticker, exchange_us)
JOIN markets USING (ticker) JOIN tickers AS t ON t.market_id = markets.id AND t.exchange_us = asked.exchange_us"""

_LIFECYCLE: Final = """
SELECT l.event_type, l.recv_us, l.clock_us, l.body::text
FROM (SELECT DISTINCT * FROM unnest($1::text[], $2::bigint[])) AS asked (ticker, clock_us)
JOIN markets USING (ticker) JOIN lifecycle AS l ON l.market_id = markets.id AND l.clock_us = asked.clock_us
UNION ALL
SELECT l.event_type, l.recv_us, l.clock_us, l.body::text
FROM (SELECT DISTINCT * FROM unnest($2::bigint[])) AS asked (clock_us)
JOIN lifecycle AS l ON l.market_id IS NULL AND l.clock_us = asked.clock_us"""

_REACHED: Final = "SELECT max(next_offset) FROM consumer_offsets WHERE topic LIKE '%' || $1 AND partition = $2"

_CHECKPOINTS: Final = """
SELECT ticker, version, levels, checksum, effective_us, gap_start_us, gap_cause
FROM checkpoints JOIN markets ON markets.id = market_id
WHERE effective_us >= $1 AND effective_us < $2 AND ($3::text IS NULL OR ticker = $3)"""

_TOPICS: Final = {
    "book_events": topics.BOOK.name,
    "trades": topics.TRADES.name,
    "tickers": topics.TICKERS.name,
    "lifecycle": topics.LIFECYCLE.name,
}

_ATTACHED: Final = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = $1::text::regclass"


async def checkpoints(pool: Any, wanted: Wanted, result: Result) -> dict[Key, Known]:
    """Return what the wanted checkpoints of the database say; one whose levels are not of its checksum is noted at once."""
    found: dict[Key, Known] = {}
    for ticker, version, packed, *says in await pool.fetch(_CHECKPOINTS, wanted.from_us, wanted.to_us, wanted.ticker):
        found[ticker, version] = known = Known._make([*says, IN_DATABASE])
        try:
            why = contradiction(known.checksum, *levels.unpack(packed))
        except ValueError as error:
            why = str(error)
        if why is not None:
            result.differs("checkpoints", f"{ticker} version {version}, {IN_DATABASE}: {why}")
            result.wrong_checkpoints.append((ticker, version))
    return found


@dataclass(slots=True)
class _Missing:
    """Rows that are not there: how many, the first of them, and how many of partitions that are not there."""

    count: int = 0
    first: str = ""
    of: Counter[str] = field(default_factory=Counter)


class Comparison:
    """Compares events with the database behind a pool, in the order in which they are made."""

    def __init__(self, pool: Any, result: Result) -> None:
        """Note differences in `result`."""
        self._pool, self._result = pool, result
        self._attached: dict[str, set[str]] = {}
        self._cold: dict[str, list[tuple[int, int]]] = {}
        self._pending: dict[str, _Missing] = {}  # by table: after the last row that is there
        self._without = Counter[str]()  # rows missing, by the partition that is
        self._met = set[str]()
        self._ahead = False  # the table may have gaps that are not folded

    async def begin(self) -> None:
        """Read which partitions there are, and which were dropped because the archive has them."""
        for table in partitions.TABLES:
            self._attached[table] = {row[0] for row in await self._pool.fetch(_ATTACHED, table)}
        if await self._pool.fetchval("SELECT to_regclass('cold_days')") is not None:
            for table, start_us, end_us in await self._pool.fetch("SELECT table_name, start_us, end_us FROM cold_days"):
                self._cold.setdefault(table, []).append((start_us, end_us))

    async def compare(self, made: Sequence[Made]) -> None:
        """Compare events with their rows."""
        by_table: dict[str, list[Any]] = {}
        for _, event in made:
            table = _table(event)
            if any(start <= _instant(event) < end for start, end in self._cold.get(table, ())):
                self._result.counts["rows_cold"] += 1
            elif table:
                by_table.setdefault(table, []).append(event)
        find: dict[str, Callable[[Sequence[Any]], Awaitable[Counter[Any]]]]
        find = {"book_events": self._book_events, "trades": self._trades, "tickers": self._tickers, "lifecycle": self._lifecycle}
        for table, events in by_table.items():
            self._judge(table, events, await find[table](events))

    async def end(self, partition: int, archived: dict[str, int], unarchived: Counter[str]) -> None:
        """Judge what was missing last: late, unless the database says it has all that is archived.

        `archived` is the offset the archive has reached of each topic, `unarchived` how many events it has yet to get.
        """
        for table, missing in self._pending.items():
            topic = _TOPICS[table]
            reached = await self._pool.fetchval(_REACHED, topic, partition)
            lost = missing.count - unarchived[topic] if (reached or 0) >= archived.get(topic, 1 << 63) else 0
            if lost > 0:
                self._lose(replace(missing, count=lost))
            self._result.counts["rows_pending"] += missing.count - max(0, lost)
        self._pending.clear()
        for name, count in self._without.items():
            self._result.differs("database", f"partition {name} is not there, or detached: {count:,} rows missing", count)
        self._without.clear()

    async def gaps(self, gaps: Gaps, partition: int, archived: dict[str, int], proof: Proof, all_folded: bool) -> None:
        """Compare the gaps that the events of a partition tell; unless all of it is folded, the table may have others."""
        reach = {}
        for channel, topic in ((BOOK, topics.BOOK.name), (TRADES, topics.TRADES.name)):
            reached, held = await self._pool.fetchval(_REACHED, topic, partition) or 0, archived.get(topic, 0)
            ahead = reached > held or proof.unfolded[topic] > 0 or not all_folded
            reach[channel] = Reach(max(0, held - reached) + proof.unarchived[topic], ahead)
        self._met |= gaps.met
        self._ahead = self._ahead or any(each.ahead for each in reach.values())
        await gaps.compare(self._pool, reach, self._result)

    async def end_all(self) -> None:
        """Judge, after the last partition of an archive that is wholly folded, what no partition tells of."""
        if not self._ahead:
            await of_nobody(self._pool, self._met, self._result)

    def _judge(self, table: str, events: Sequence[Any], found: Counter[Any]) -> None:
        left, stored = Counter(found), [_stored(event) for event in events]
        there: list[bool] = []
        for each in stored:
            there.append(left[each] > 0)
            left[each] -= 1
        self._result.counts["rows_proved"] += sum(there)
        last = max((n for n, is_there in enumerate(there) if is_there), default=-1)
        if last >= 0 and table in self._pending:
            self._lose(self._pending.pop(table))  # not only late: what came after it is there
        before, after = _Missing(), self._pending.get(table, _Missing())
        for n in (n for n, is_there in enumerate(there) if not is_there):
            missing = before if n < last else after
            missing.count += 1
            missing.first = missing.first or f"{table}, {_name(stored[n])}: not in the database as the raw rows make it"
            where = partitions.containing(table, _instant(events[n])) if table in partitions.TABLES else None
            if where is not None and where.name not in self._attached[table]:
                missing.of[where.name] += 1
        self._lose(before)
        if after.count:
            self._pending[table] = after
        self._judge_extra(table, stored, there, left)

    def _lose(self, missing: _Missing) -> None:
        others = missing.count - missing.of.total()
        self._without += missing.of
        if others > 0:
            self._result.differs("database", missing.first + (f" (and {others - 1:,} more)" if others > 1 else ""), others)

    def _judge_extra(self, table: str, stored: Sequence[Any], there: Sequence[bool], left: Counter[Any]) -> None:
        if table not in ("book_events", "tickers"):
            return
        known = {_name(each) for each in stored} if table == "book_events" else set()
        other = {_name(each) for each, is_there in zip(stored, there, strict=True) if not is_there}
        expected = set(stored)
        for each, count in left.items():
            # A row in place of another is one difference, told as the one that is missing.
            if count > 0 and (each in expected or (_name(each) in known and (count > 1 or _name(each) not in other))):
                self._result.differs("database", f"{table}, {_name(each)}: a row too many")

    async def _book_events(self, events: Sequence[BookEvent]) -> Counter[Any]:
        asked = dict[str, list[int]]()
        for event in events:
            span = asked.setdefault(event.market_ticker, [event.version, event.version, event.effective_us, event.effective_us])
            span[1], span[3] = event.version, event.effective_us
        rows = await self._pool.fetch(_BOOK_EVENTS, list(asked), *map(list, zip(*asked.values(), strict=True)))
        found = Counter[Any]()
        for ticker, low, high, *columns in rows:
            try:
                found.update(
                    (ticker, each) for each in map(runs.Event._make, runs.unpack(*columns)) if low <= each.version <= high
                )
            except runs.DamagedRow as damaged:
                self._result.differs("database", f"{ticker}: {damaged}")
        return found

    async def _trades(self, events: Sequence[Trade]) -> Counter[Any]:
        asked = ([e.market_ticker for e in events], [e.trade_id for e in events], [e.exchange_us for e in events])
        return Counter(map(tuple, await self._pool.fetch(_TRADES, *asked)))

    async def _tickers(self, events: Sequence[Ticker]) -> Counter[Any]:
        rows = await self._pool.fetch(
            _TICKERS, [event.market_ticker for event in events], [event.exchange_us for event in events]
        )
        return Counter(map(tuple, rows))

    async def _lifecycle(self, events: Sequence[Lifecycle]) -> Counter[Any]:
        asked = [event.market_ticker for event in events], [event.clock_us for event in events]
        rows = await self._pool.fetch(_LIFECYCLE, *asked)
        return Counter(map(tuple, rows))


def _table(event: Any) -> str:
    match event:
        case Trade():
            return "trades"
        case Ticker():
            return "tickers"
        case Lifecycle():
            # What is no JSON object makes no row: the persister counts it and passes over it.
            return "lifecycle" if _is_object(event.body) else ""
        case Gap():
            return "book_events" if event.version else ""
    return "book_events"


def _is_object(body: bytes) -> bool:
    try:
        return isinstance(orjson.loads(body), dict)
    except ValueError:
        return False


def _instant(event: Any) -> int:
    match event:
        case Trade() | Ticker():
            return event.exchange_us
        case Lifecycle():
            return event.clock_us
    at_us: int = event.effective_us
    return at_us


def _stored(event: Any) -> Any:
    """Return what the database must say of an event; its first fields are `_name`."""
    match event:
        case Trade():
            return (
                event.market_ticker, event.trade_id, event.exchange_us, event.yes_price, event.no_price, event.count,
                event.taker_side,
            )  # fmt: skip
        case Ticker():
            return event[:-1]
        case Lifecycle():
            return event.event_type, event.recv_us, event.clock_us, event.body.decode()
    exchange_us, side, price, delta, packed = 0, 0, 0, 0, b""
    kind = runs.GAP
    if isinstance(event, BookDelta):
        kind, exchange_us, side, price, delta = runs.DELTA, event.exchange_us, event.side, event.price, event.delta
    elif isinstance(event, BookSnapshot):
        kind, packed = runs.SNAPSHOT, levels.pack(event.yes, event.no)
    return event.market_ticker, runs.Event(
        event.version, event.effective_us, exchange_us, event.recv_us, kind, side, price, delta, event.checksum, packed
    )


def _name(stored: Any) -> str:
    if isinstance(stored[1], runs.Event):
        return f"{stored[0]} version {stored[1].version}"
    return f"{stored[0]} {stored[1]}"
