"""Book events against the rows that the persister must have made of them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from kalshibook_core.postgres import levels, runs
from kalshibook_core.postgres.partitions import DAY_US
from kalshibook_core.wire.events import BookDelta, BookEvent, BookSnapshot
from kalshibook_tools.verify.archive import DatabaseRows, Result

# A row holds a run of events of one UTC day, and may begin before the first that is asked for.
_ROWS: Final = f"""
SELECT ticker, low, high, {", ".join(f"b.{name}" for name in runs.COLUMNS)}
FROM unnest($1::text[], $2::int[], $3::int[], $4::bigint[], $5::bigint[]) AS asked (ticker, low, high, from_us, to_us)
JOIN markets USING (ticker)
JOIN book_events AS b ON b.market_id = markets.id AND b.effective_us BETWEEN from_us - from_us % {DAY_US} AND to_us
     AND b.version <= high AND b.version + b.events > low"""

_LAST: Final = """
SELECT ticker, (SELECT max(version + events - 1) FROM book_events WHERE market_id = markets.id) FROM markets
WHERE ticker = ANY($1::text[])"""

_CHECKPOINTS: Final = "SELECT ticker, version, checksum FROM checkpoints JOIN markets ON markets.id = market_id"

Stored = tuple[str, runs.Event]
"""A ticker, by which events are compared and not by the id it has in this database, and what the database says of one event."""


async def checkpoints(pool: Any) -> dict[tuple[str, int], int]:
    """Return the checksum of every checkpoint in the database, by (ticker, version)."""
    return {(row[0], row[1]): row[2] for row in await pool.fetch(_CHECKPOINTS)}


def comparison(pool: Any, result: Result) -> DatabaseRows:
    """Return what compares book events with the database behind `pool`; it notes differences in `result`."""

    async def compare(events: Sequence[BookEvent]) -> Counter[str]:
        asked = dict[str, list[int]]()
        for event in events:
            span = asked.setdefault(event.market_ticker, [event.version, event.version, event.effective_us, event.effective_us])
            span[1], span[3] = event.version, event.effective_us
        expected = Counter((event.market_ticker, _stored(event)) for event in events)
        rows = await pool.fetch(_ROWS, list(asked), *map(list, zip(*asked.values(), strict=True)))
        found = Counter(stored for row in rows for stored in _unpacked(row, result))
        missing, extra = expected - found, found - expected
        last: dict[str, int] = {row[0]: row[1] or 0 for row in await pool.fetch(_LAST, list(asked))} if missing else {}
        pending = Counter[str]()
        for ticker, (version, *_) in missing:
            if version > last.get(ticker, 0):
                pending["rows_pending"] += 1
            else:
                result.differs("database", f"{ticker} version {version}: not in the database as the raw rows make it")
        other = {(ticker, version) for ticker, (version, *_) in missing}
        for (ticker, (version, *_)), count in extra.items():
            if count > 1 or (ticker, version) not in other:
                result.differs("database", f"{ticker} version {version}: a row too many")
        pending["rows_proved"] = sum((expected & found).values())
        return pending

    return compare


def _stored(event: BookEvent) -> runs.Event:
    exchange_us, side, price, delta, packed = 0, 0, 0, 0, b""
    kind = runs.GAP
    if isinstance(event, BookDelta):
        kind, exchange_us, side, price, delta = runs.DELTA, event.exchange_us, event.side, event.price, event.delta
    elif isinstance(event, BookSnapshot):
        kind, packed = runs.SNAPSHOT, levels.pack(event.yes, event.no)
    return runs.Event(
        event.version, event.effective_us, exchange_us, event.recv_us, kind, side, price, delta, event.checksum, packed
    )


def _unpacked(row: Any, result: Result) -> list[Stored]:
    ticker, low, high, *columns = row
    try:
        return [(ticker, each) for each in map(runs.Event._make, runs.unpack(*columns)) if low <= each.version <= high]
    except runs.DamagedRow as damaged:
        result.differs("database", f"{ticker}: {damaged}")
        return []
