"""Book events against the rows that the persister must have made of them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from kalshibook_core.wire.events import BookDelta, BookEvent, BookSnapshot, Gap
from kalshibook_tools.verify.archive import DatabaseRows, Result
from services.persister.batch import BOOK_COLUMNS, Batch

_ROWS: Final = f"""
SELECT {", ".join("ticker" if name == "market_id" else f"b.{name}" for name in BOOK_COLUMNS)}
FROM unnest($1::text[], $2::int[], $3::int[], $4::bigint[], $5::bigint[]) AS asked (ticker, low, high, from_us, to_us)
JOIN markets USING (ticker)
JOIN book_events AS b
ON b.market_id = markets.id AND b.effective_us BETWEEN from_us AND to_us AND b.version BETWEEN low AND high"""

_LAST: Final = """
SELECT ticker, (SELECT max(version) FROM book_events WHERE market_id = markets.id) FROM markets WHERE ticker = ANY($1::text[])"""

_CHECKPOINTS: Final = "SELECT ticker, version, checksum FROM checkpoints JOIN markets ON markets.id = market_id"

_TICKER, _VERSION = BOOK_COLUMNS.index("market_id"), BOOK_COLUMNS.index("version")


async def checkpoints(pool: Any) -> dict[tuple[str, int], int]:
    """Return the checksum of every checkpoint in the database, by (ticker, version)."""
    return {(row[0], row[1]): row[2] for row in await pool.fetch(_CHECKPOINTS)}


def comparison(pool: Any, result: Result) -> DatabaseRows:
    """Return what compares book events with the database behind `pool`; it notes differences in `result`."""

    async def compare(events: Sequence[BookEvent]) -> Counter[str]:
        batch, asked = Batch(), dict[str, list[int]]()
        for event in events:
            match event:
                case BookDelta():
                    batch.deltas.append(event)
                case BookSnapshot():
                    batch.snapshots.append(event)
                case Gap():
                    batch.gaps.append(event)
            span = asked.setdefault(event.market_ticker, [event.version, event.version, event.effective_us, event.effective_us])
            span[1], span[3] = event.version, event.effective_us
        names: Any = {ticker: ticker for ticker in asked}  # rows are compared by ticker, not by the id it has in this database
        expected = Counter(batch.book_rows(names))
        found = Counter(map(tuple, await pool.fetch(_ROWS, list(asked), *map(list, zip(*asked.values(), strict=True)))))
        missing, extra = expected - found, found - expected
        last: dict[str, int] = {row[0]: row[1] or 0 for row in await pool.fetch(_LAST, list(asked))} if missing else {}
        pending = Counter[str]()
        for row in missing:
            if row[_VERSION] > last.get(row[_TICKER], 0):
                pending["rows_pending"] += 1
            else:
                result.differs("database", f"{row[_TICKER]} version {row[_VERSION]}: not in the database as the raw rows make it")
        other = {(row[_TICKER], row[_VERSION]) for row in missing}
        for row, count in extra.items():
            if count > 1 or (row[_TICKER], row[_VERSION]) not in other:
                result.differs("database", f"{row[_TICKER]} version {row[_VERSION]}: a row too many")
        pending["rows_proved"] = sum((expected & found).values())
        return pending

    return compare
