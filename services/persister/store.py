"""The persister's writing side: one batch, one transaction, exactly once.

Every statement the service runs is here. Market ids are remembered only after the transaction that made them has committed.
"""

from collections import ChainMap
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any, Final

import asyncpg
import structlog

from kalshibook_core.postgres import levels, partitions, runs, trades
from kalshibook_core.postgres.pool import UNREACHABLE
from kalshibook_core.runtime import logs
from kalshibook_core.wire.coverage import HOUR_US, touched
from kalshibook_core.wire.events import EVENT, SERIES, TRADES, Checkpoint
from services.persister import batch as batches
from services.persister.batch import Batch, Row, Source
from services.persister.coverage import FENCE, MARK_DAYS

RETRYABLE: Final = (
    *UNREACHABLE,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.InsufficientResourcesError,  # a full disk, too many connections: somebody has to make room, nothing is lost meanwhile
    asyncpg.OperatorInterventionError,
)
"""What another attempt may cure: the transaction did not commit, or it is not known whether it did."""

GapFields = tuple[int, int | None, str, int, int | None]
"""start_us, end_us, cause, opened_version (of trades it is found anew) and filled_us of a row of gaps."""

_log = structlog.get_logger()

_REGISTER: Final = """
INSERT INTO consumer_offsets (topic, partition, next_offset)
SELECT topic, partition, 0 FROM unnest($1::text[], $2::int[]) AS asked (topic, partition) ORDER BY topic, partition
ON CONFLICT DO NOTHING"""

_POSITIONS: Final = """
SELECT topic, partition, next_offset FROM consumer_offsets JOIN unnest($1::text[], $2::int[]) AS asked (topic, partition)
USING (topic, partition)"""

_ADVANCE: Final = """
UPDATE consumer_offsets AS o SET next_offset = moved.next_offset
FROM unnest($1::text[], $2::int[], $3::bigint[], $4::bigint[]) AS moved (topic, partition, expected, next_offset)
WHERE o.topic = moved.topic AND o.partition = moved.partition AND o.next_offset = moved.expected"""

_ALLOCATE: Final = """
INSERT INTO markets (ticker, updated_us) SELECT ticker, 0 FROM unnest($1::text[]) AS named (ticker) ON CONFLICT DO NOTHING"""

_IDS: Final = "SELECT ticker, id FROM markets WHERE ticker = ANY($1::text[])"

# The last version that stands of a market. An event that came already has the time it had, and its row is of the same UTC day.
_LAST: Final = """
SELECT asked.id, last.version FROM unnest($1::int[]) AS asked (id) CROSS JOIN LATERAL (
    SELECT version + events - 1 AS version FROM book_events
    WHERE market_id = asked.id AND effective_us >= $2 ORDER BY effective_us DESC, version DESC LIMIT 1
) AS last"""

# What was received an hour and more before what the row says is imported, and no news. (Gatherers' clocks differ by less.)
_DESCRIBE: Final = """
UPDATE markets SET
    event_ticker = coalesce($2, event_ticker), series_ticker = coalesce($3, series_ticker), title = coalesce($4, title),
    status = coalesce($5, status), result = coalesce($6, result), open_us = coalesce($7, open_us),
    close_us = coalesce($8, close_us), settled_us = coalesce($9, settled_us),
    settlement_value = coalesce($10, settlement_value), updated_us = $11,
    body = coalesce($12, body)
WHERE id = $1 AND updated_us <= $11 + 3600000000"""

_ENDED: Final = """
UPDATE markets m SET ended_us = told.ended_us FROM unnest($1::int[], $2::bigint[]) AS told (id, ended_us)
WHERE m.id = told.id AND (m.ended_us IS NULL OR m.ended_us > told.ended_us)"""

# Another process may be writing the end of a market of which this one has a gap: of the two, whoever comes later sees both.
_LOCK_MARKETS: Final = "SELECT FROM markets WHERE id = ANY($1::int[]) ORDER BY id FOR SHARE"

# From when on gaps of markets that ended are measured otherwise than before; told: a market, and when it or a gap of it ended.
_SINCE: Final = """
SELECT m.id, least(min(told.us), m.ended_us) FROM unnest($1::int[], $2::bigint[]) AS told (id, us) JOIN markets m USING (id)
WHERE m.ended_us IS NOT NULL
  AND EXISTS (SELECT FROM gaps WHERE market_id = m.id AND (end_us IS NULL OR end_us >= least(told.us, m.ended_us)))
GROUP BY m.id"""

# Of what is being measured, or judged, at this moment nothing stands there yet, but it is due, and waited for.
_MEASURE_AGAIN: Final = f"""
INSERT INTO coverage_due (market_id, hour_us)
SELECT since.market_id, hour_us FROM unnest($1::int[], $2::bigint[]) AS since (market_id, us), LATERAL (
    SELECT hour_us FROM coverage WHERE market_id = since.market_id AND hour_us > us - {HOUR_US}
    UNION SELECT hour_us FROM coverage_due WHERE market_id = since.market_id AND hour_us > us - {HOUR_US}) AS measured
ORDER BY 1, 2
ON CONFLICT (hour_us, market_id) DO UPDATE SET market_id = excluded.market_id"""
_JUDGE_AGAIN: Final = f"""
INSERT INTO conditions_due
SELECT day_us FROM (SELECT day_us FROM conditions UNION SELECT day_us FROM conditions_due) AS said
WHERE day_us > $1::bigint - {partitions.DAY_US} ORDER BY day_us ON CONFLICT (day_us) DO UPDATE SET day_us = excluded.day_us"""

# Updated and not passed over where it stands there: so it is locked, and nobody measures before this is committed.
_DUE: Final = """
INSERT INTO coverage_due (market_id, hour_us) SELECT * FROM unnest($1::int[], $2::bigint[])
ON CONFLICT (hour_us, market_id) DO UPDATE SET market_id = excluded.market_id"""

_AUDITS: Final = """
INSERT INTO audits (to_us, from_us, judged_us, rest_checksum, checksum, market_id, version, outcome)
SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[], $6::int[], $7::int[], $8::text[])
ON CONFLICT DO NOTHING"""

_RECORDED: Final = """
UPDATE markets m SET recorded_us = begun.effective_us FROM unnest($1::int[], $2::bigint[]) AS begun (id, effective_us)
WHERE m.id = begun.id AND m.recorded_us IS NULL RETURNING m.id"""

_TOLD: Final = """
unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::int[], $5::smallint[], $6::smallint[], $7::smallint[], $8::boolean[],
       $9::text[], $10::text[])"""

# Whoever tells a trade first has the row: it stays as it is, and what is told of it later confirms it or differs. A checkpoint
# that is already there is the same one again (a reconstructor writes one twice after a crash).
_TRADES: Final = f"""
WITH fresh AS (
    INSERT INTO trades (exchange_us, recv_us, count, market_id, yes_price, no_price, taker_side, is_block_trade, trade_id, origin)
    SELECT * FROM {_TOLD} ON CONFLICT DO NOTHING RETURNING origin)
SELECT origin, count(*) FROM fresh GROUP BY origin"""

_DIFFERENT: Final = f"""
INSERT INTO trade_differences
SELECT told.recv_us, told.exchange_us, told.count, told.market_id, told.yes_price, told.no_price, told.taker_side,
       told.is_block_trade, told.trade_id, told.origin
FROM {_TOLD} AS told
    (exchange_us, recv_us, count, market_id, yes_price, no_price, taker_side, is_block_trade, trade_id, origin)
JOIN trades AS t USING (market_id, trade_id)
WHERE (told.count, told.yes_price, told.no_price, told.taker_side) <> (t.count, t.yes_price, t.no_price, t.taker_side)
   OR told.is_block_trade <> t.is_block_trade
   OR NOT {trades.one_time("told.exchange_us", "t.exchange_us")}
ON CONFLICT DO NOTHING
RETURNING trade_id"""

_CHECKPOINTS: Final = """
INSERT INTO checkpoints (effective_us, checksum, gap_start_us, market_id, version, gap_cause, levels)
SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::int[], $5::int[], $6::text[], $7::bytea[])
ON CONFLICT DO NOTHING"""

_EVENTS: Final = """
INSERT INTO events AS e (ticker, series_ticker, title, category, updated_us, body)
SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::json[])
ON CONFLICT (ticker) DO UPDATE SET series_ticker = excluded.series_ticker, title = excluded.title, category = excluded.category,
    updated_us = excluded.updated_us, body = excluded.body"""

_SERIES: Final = """
INSERT INTO series AS s (ticker, title, category, updated_us, body)
SELECT ticker, title, category, updated_us, body
FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::json[])
    AS told (ticker, series_ticker, title, category, updated_us, body)
ON CONFLICT (ticker) DO UPDATE SET title = excluded.title, category = excluded.category, updated_us = excluded.updated_us,
    body = excluded.body"""

_GAPS: Final = """
INSERT INTO gaps (market_id, channel, start_us, end_us, cause, opened_version)
SELECT * FROM unnest($1::int[], $2::text[], $3::bigint[], $4::bigint[], $5::text[], $6::int[])
ON CONFLICT (market_id, channel, start_us, opened_version) DO UPDATE SET end_us = excluded.end_us, cause = excluded.cause"""

# Gaps in trades have no version. A market has one that is open at most, so the first told of a start is that one, if it stands
# there; the others take the numbers after what stands there.
_TRADE_GAPS: Final = """
INSERT INTO gaps (market_id, channel, start_us, end_us, cause, opened_version)
SELECT told.market_id, told.channel, told.start_us, told.end_us, told.cause,
       CASE WHEN told.number = 0 AND last.open THEN last.number ELSE coalesce(last.number + 1, 0) + told.number END
FROM unnest($1::int[], $2::text[], $3::bigint[], $4::bigint[], $5::text[], $6::int[])
    AS told (market_id, channel, start_us, end_us, cause, number)
LEFT JOIN LATERAL (
    SELECT opened_version AS number, end_us IS NULL AS open FROM gaps g
    WHERE (g.market_id, g.channel, g.start_us) = (told.market_id, told.channel, told.start_us)
    ORDER BY opened_version DESC LIMIT 1
) last ON true
ON CONFLICT (market_id, channel, start_us, opened_version) DO UPDATE SET end_us = excluded.end_us, cause = excluded.cause"""

_TAKE_GAP: Final = """
DELETE FROM gaps WHERE market_id = $1 AND channel = $2 AND start_us = $3 AND end_us IS NOT DISTINCT FROM $4 AND cause = $5
AND opened_version = $6 AND filled_us IS NOT DISTINCT FROM $7"""

_NEXT_GAP: Final = """
SELECT coalesce(max(opened_version) + 1, 0) FROM gaps WHERE market_id = $1 AND channel = $2 AND start_us = $3"""

_PUT_GAP: Final = """
INSERT INTO gaps (market_id, channel, start_us, end_us, cause, opened_version, filled_us, filled_from)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING"""

_FILL: Final = """
UPDATE gaps SET filled_us = told.at_us, filled_from = 'rest'
FROM unnest($1::int[], $2::bigint[], $3::bigint[], $4::bigint[]) AS told (market_id, start_us, end_us, at_us)
WHERE gaps.market_id = told.market_id AND gaps.channel = 'trade' AND gaps.start_us = told.start_us
  AND gaps.end_us = told.end_us AND gaps.filled_us IS NULL"""


class BrokenStream(Exception):
    """The canonical stream numbers two events of a market alike. No row of the batch was written."""


class Superseded(Exception):
    """Somebody else moved the offsets this batch starts from: the partitions are no longer ours, and nothing was written."""


class OtherLog(Exception):
    """The database's offsets are of another Kafka, and mean nothing here."""


class SchemaMissing(Exception):
    """The database has no tables of ours."""


class Store:
    """The tables, as one process writes them."""

    def __init__(self, pool: "asyncpg.Pool[asyncpg.Record]") -> None:
        self._pool = pool
        self._ids: dict[str, int] = {}
        self._last: dict[int, int] = {}  # the last version of each market that was looked at, while all that is written is ours
        self._partitions: set[str] = set()
        self._closed = -1  # the last hour that coverage is measured of, as last seen
        self._due: set[tuple[int, int]] = set()  # markets' hours after it that are known to be due

    async def check(self) -> None:
        """Raise SchemaMissing unless the database has been migrated."""
        if await self._pool.fetchval("SELECT to_regclass('consumer_offsets')") is None:
            raise SchemaMissing("the database has no tables yet: run `kb migrate`")

    async def claim(self, log: str) -> None:
        """Let the offsets be those of a log, by its name, if they are nobody's yet. Raises OtherLog if they are another's."""
        async with self._pool.acquire() as connection, connection.transaction():
            await connection.execute("LOCK TABLE consumed_log")
            whose = await connection.fetchval("SELECT log FROM consumed_log")
            if whose is None:
                await connection.execute("INSERT INTO consumed_log (log) VALUES ($1)", log)
        if whose not in (None, log):
            raise OtherLog(
                f"the database has what was read of the Kafka cluster {whose!r}, this is {log!r}: name an empty database instead"
            )

    async def positions(self, sources: Sequence[Source]) -> dict[Source, int]:
        """Return where to go on reading each partition: its first offset whose rows are not in the tables (0 for a new one)."""
        self._last.clear()  # whoever asks may have been without these partitions
        topics, numbers = [topic for topic, _ in sources], [number for _, number in sources]
        async with self._pool.acquire() as connection:
            await connection.execute(_REGISTER, topics, numbers)
            return {(row[0], row[1]): row[2] for row in await connection.fetch(_POSITIONS, topics, numbers)}

    async def prepare(self, wanted: set[partitions.Partition]) -> None:
        """Make partitions that this process has not yet seen to stand."""
        for partition in sorted(wanted):
            if partition.name not in self._partitions:
                async with self._pool.acquire() as connection:
                    await partitions.create(connection, partition)
                self._partitions.add(partition.name)

    async def _mark(self, connection: Any, batch: Batch, ids: Mapping[str, int]) -> set[tuple[int, int]]:
        """Put down as due what is not known to be; return those of it that stay so until their hour is closed.

        Whoever closes an hour waits for this transaction: an hour that is open here is measured after its commit.
        """
        await connection.execute("SELECT pg_advisory_xact_lock_shared($1)", FENCE)
        closed = await connection.fetchval("SELECT coalesce(max(hour_us), -1) FROM coverage_closed")
        touched = {(ids[ticker], hour_us) for ticker, hour_us in batch.hours() if ticker in ids}
        if closed != self._closed:
            self._closed, self._due = closed, {due for due in self._due if due[1] > closed}
        if fresh := sorted(touched - self._due):
            await connection.execute(_DUE, *map(list, zip(*fresh, strict=True)))
        # Of a market that is heard of late nothing is stored from before, and yet it is one more with a gap.
        if days := sorted(day for day in batch.days() if day + partitions.DAY_US - HOUR_US <= closed):
            await connection.execute(MARK_DAYS, days)
        return {due for due in fresh if due[1] > closed}

    async def _stand(self, connection: Any, batch: Batch, ids: Mapping[str, int]) -> dict[int, int]:
        """Return the last version that stands of each market the batch has book events of, 0 without one.

        What this process wrote it remembers; others it asks for once. Nobody else can have written meanwhile: the offsets moved.
        """
        named = [ids[ticker] for ticker in batch.book_tickers()]
        last = {market_id: self._last.get(market_id, 0) for market_id in named}
        if unknown := [market_id for market_id in named if market_id not in self._last]:
            since_us = batch.first_effective_us // partitions.DAY_US * partitions.DAY_US
            last.update((row[0], row[1]) for row in await connection.fetch(_LAST, unknown, since_us))
        return last

    async def write(self, batch: Batch, expected: Mapping[Source, int]) -> dict[str, int]:
        """Write a batch whose partitions stand at the `expected` offsets; return rows by table.

        Raises Superseded if they do not, and BrokenStream if it has a version that stands already.

        1. Partitions by time are made, each in its own transaction. A crash leaves empty ones, which the next attempt finds.
        2. One transaction: the offsets move by compare-and-set, which also locks them against a second writer; market ids are
           made; the hours whose coverage the rows change are put down as due; the rows go in, each behind what stands of its
           market. A crash leaves nothing of it, and the next owner reads the same records again.
        3. COMMIT. A crash after it leaves everything, and the next owner starts behind it. If the answer to COMMIT is lost, the
           caller asks `positions` which of the two happened.
        4. Only now are the ids remembered, what is due, and how far each market's versions go. A crash costs a look-up.
        """
        await self.prepare(batch.partitions_needed())
        named = batch.tickers_named()
        async with self._pool.acquire() as connection, connection.transaction():
            await _advance(connection, batch.next, expected)
            fresh = await _allocate(connection, named - self._ids.keys())
            ids = ChainMap(fresh, self._ids) if fresh else self._ids
            due = await self._mark(connection, batch, ids)
            last = await self._stand(connection, batch, ids)
            counts = await _insert(connection, batch, ids, last)
            await _end(connection, batch, ids, self._closed + HOUR_US)
        self._ids.update(fresh)
        self._due |= due
        self._last.update(last)
        return counts


async def replace_checkpoint(pool: Any, ticker: str, version: int, right: Checkpoint | None) -> None:
    """Delete a market's checkpoint of a version that is found wrong, and put the right one there if there is one.

    In one transaction. Without one, books are made from the checkpoint before, which costs time and nothing else.
    """
    async with pool.acquire() as connection, connection.transaction():
        market_id = await connection.fetchval("SELECT id FROM markets WHERE ticker = $1", ticker)
        await connection.execute("DELETE FROM checkpoints WHERE market_id = $1 AND version = $2", market_id, version)
        if right is not None:
            row = (
                right.effective_us, right.checksum, right.gap_start_us, market_id, right.version, right.gap_cause,
                levels.pack(right.yes, right.no),
            )  # fmt: skip
            await connection.execute(_CHECKPOINTS, *([each] for each in row))


async def replace_gap(pool: Any, ticker: str, channel: str, wrong: GapFields | None, right: GapFields | None) -> bool:
    """Put the right gap in place of one that is found wrong; either may be None. Return False if it is not there as it was found.

    In one transaction, as `Store.write` does: the hours that either touches are due for measuring, their days for judging.
    """
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock_shared($1)", FENCE)
        market_id = await connection.fetchval("SELECT id FROM markets WHERE ticker = $1", ticker)
        if wrong is not None and await connection.execute(_TAKE_GAP, market_id, channel, *wrong) != "DELETE 1":
            return False
        if right is not None:
            start_us, end_us, cause, version, filled_us = right
            if channel == TRADES:
                version = await connection.fetchval(_NEXT_GAP, market_id, channel, start_us)
            done = await connection.execute(
                _PUT_GAP, market_id, channel, start_us, end_us, cause, version, filled_us, None if filled_us is None else "rest"
            )
            if done != "INSERT 0 1":
                raise BrokenStream(f"{ticker}: another gap of {channel} from {start_us} came meanwhile; nothing was changed")
        last_us = await connection.fetchval("SELECT max(hour_us) FROM coverage_closed") or 0
        hours = set[int]()
        for start_us, end_us, *_ in (gap for gap in (wrong, right) if gap is not None):
            until_us = max(start_us, last_us if end_us is None else end_us)
            hours.update(touched(max(start_us, until_us - batches.LATEST_US), until_us))
        await connection.execute(_DUE, [market_id] * len(hours), sorted(hours))
        await connection.execute(MARK_DAYS, sorted({hour_us - hour_us % partitions.DAY_US for hour_us in hours}))
    return True


async def _advance(connection: Any, moved: Mapping[Source, int], expected: Mapping[Source, int]) -> None:
    sources = sorted(moved)
    done = await connection.execute(
        _ADVANCE, [s[0] for s in sources], [s[1] for s in sources], [expected[s] for s in sources], [moved[s] for s in sources]
    )
    if done != f"UPDATE {len(sources)}":
        raise Superseded(f"{done} of {len(sources)} partitions: another process writes them")


async def _allocate(connection: Any, tickers: Set[str]) -> dict[str, int]:
    """Return the ids of markets this process has not met, making those that nobody has."""
    found = {row[0]: row[1] for row in await connection.fetch(_IDS, list(tickers))} if tickers else {}
    if fresh := sorted(tickers - found.keys()):  # sorted, so that two writers lock the new rows in the same order
        await connection.execute(_ALLOCATE, fresh)
        found.update((row[0], row[1]) for row in await connection.fetch(_IDS, fresh))
    return found


def _behind(rows: Iterable[runs.Row], last: dict[int, int], ids: Mapping[str, int], counts: dict[str, int]) -> Iterator[runs.Row]:
    """Yield rows of book_events and move `last` on with them; raise BrokenStream at one that is not behind all before it.

    The table's key alone would not tell: it has the first version of a run, and a repeat may be any other. Versions that are
    passed over are counted and told: no book is served over them, and something of ours is wrong.
    """
    for row in rows:
        _, market_id, version, events, *_ = row
        before = last[market_id]
        if version <= before:
            raise BrokenStream(_repeated(market_id, version, row.effective_us, ids))
        if before and version > before + 1:
            counts["missing_versions"] = counts.get("missing_versions", 0) + version - before - 1
            if logs.once_a_minute("missing_versions"):
                ticker = _ticker(market_id, ids)
                _log.error("missing_versions", market_ticker=ticker, first=before + 1, last=version - 1, then="see the runbook")
        last[market_id] = version + events - 1
        yield row


async def _insert(connection: Any, batch: Batch, ids: Mapping[str, int], last: dict[int, int]) -> dict[str, int]:
    counts: dict[str, int] = {}

    async def copy(table: str, columns: Sequence[str], rows: Iterable[Row], some: bool) -> None:
        if some:  # made while they are sent: Postgres works on the first of them meanwhile
            done = await connection.copy_records_to_table(table, columns=columns, records=rows)
            counts[table] = int(done.rsplit(" ", 1)[1])

    async def insert(table: str, statement: str, rows: list[Row]) -> None:
        if rows:
            done = await connection.execute(statement, *map(list, zip(*rows, strict=True)))
            written = int(done.rsplit(" ", 1)[1])
            counts[table] = counts.get(table, 0) + written

    async def trade(rows: list[Row]) -> None:
        if not rows:
            return
        told = list(map(list, zip(*rows, strict=True)))
        by_origin = {row[0]: row[1] for row in await connection.fetch(_TRADES, *told)}
        counts["trades"] = sum(by_origin.values())
        counts["trades_backfilled"] = by_origin.get("rest", 0)
        if counts["trades"] != len(rows):
            different = await connection.fetch(_DIFFERENT, *told)
            counts["trades_different"] = len(different)
            counts["trades_repeated"] = len(rows) - counts["trades"] - len(different)
            if different and logs.once_a_minute("trade_differs"):
                _log.warning("trade_differs", trade_id=different[0][0], count=len(different), look="table trade_differences")

    await copy("book_events", runs.COLUMNS, _behind(batch.book_rows(ids), last, ids, counts), bool(last))
    await copy("tickers", batches.TICKER_COLUMNS, batch.ticker_rows(ids), bool(batch.tickers))
    await copy("lifecycle", batches.LIFECYCLE_COLUMNS, batch.lifecycle_rows(ids), bool(batch.lifecycle))
    await trade(batch.trade_rows(ids))
    await insert("checkpoints", _CHECKPOINTS, batch.checkpoint_rows(ids))
    await insert("audits", _AUDITS, batch.audit_rows(ids))
    await insert("events", _EVENTS, sorted(batch.families[EVENT].values()))
    await insert("series", _SERIES, sorted(batch.families[SERIES].values()))
    for statement, of_trades in ((_GAPS, False), (_TRADE_GAPS, True)):
        gaps = [gap for gap in batch.gap_rows.values() if (gap.channel == TRADES) is of_trades]
        await insert("gaps", statement, [(ids[gap.ticker], *gap[1:]) for gap in gaps])
    await insert("gaps_filled", _FILL, [(ids[g.market_ticker], g.start_us, g.end_us, g.recv_us) for g in batch.filled])
    if begun := {ids[event.market_ticker]: event.effective_us for event in batch.snapshots if event.version == 1}:
        found = await connection.fetch(_RECORDED, list(begun), list(begun.values()))
        for market_id in begun.keys() - {row[0] for row in found}:
            raise BrokenStream(_repeated(market_id, 1, begun[market_id], ids))
    if batch.market_changes:
        await connection.executemany(
            _DESCRIBE, sorted((ids[ticker], *change[1:]) for ticker, change in batch.market_changes.items())
        )
        counts["markets"] = len(batch.market_changes)
    return counts


async def _end(connection: Any, batch: Batch, ids: Mapping[str, int], closed_us: int) -> None:
    """Write when markets ended, and put down as due what was measured of their gaps otherwise: hours before `closed_us`."""
    if batch.ends:
        await connection.execute(_ENDED, [ids[ticker] for ticker in batch.ends], list(batch.ends.values()))
    told = [(ids[ticker], us) for ticker, us in batch.ends.items() if us < closed_us]
    late = [gap for gap in batch.gap_rows.values() if gap.start_us < closed_us]
    if late:
        await connection.execute(_LOCK_MARKETS, [ids[gap.ticker] for gap in late])
        told += [(ids[gap.ticker], gap.start_us if gap.end_us is None else gap.end_us) for gap in late]
    if told and (since := await connection.fetch(_SINCE, *map(list, zip(*told, strict=True)))):
        moments = [row[1] for row in since]
        await connection.execute(_MEASURE_AGAIN, [row[0] for row in since], moments)
        await connection.execute(_JUDGE_AGAIN, min(moments))


def _ticker(market_id: int, ids: Mapping[str, int]) -> str:
    return next(ticker for ticker, each in ids.items() if each == market_id)


def _repeated(market_id: int, version: int, effective_us: int, ids: Mapping[str, int]) -> str:
    ticker = _ticker(market_id, ids)
    return (
        f"{ticker}: version {version}, effective_us {effective_us}, stands in book_events already and came again: kalshi.book.v1 "
        "is not what one deduplicator wrote, or consumer_offsets went back. No row of the batch was written; `kb verify` says "
        "which of the two it is, and nothing goes on until the repeat is out of the topic or of the table"
    )
