"""Hours and days of one market out of what was counted and what its record is, and the condition of a day. Pure."""

from collections.abc import Iterable
from typing import Final, NamedTuple

from kalshibook_core.postgres.partitions import DAY_US
from kalshibook_core.wire.coverage import HOUR_US, MISMATCH, NO_LATENCY, Latency
from kalshibook_core.wire.quality import QUIET, Quality, Record, of_span
from services.gateway.quality.store import Counts

UNITS: Final = {"hour": HOUR_US, "day": DAY_US}

AVAILABLE, DEGRADED, PENDING, MISSING = "available", "degraded", "pending", "missing"


class Unit(NamedTuple):
    """One hour or day: counts summed over its hours, and the quality of book and trades in it."""

    start_us: int
    events: int
    trades: int
    first_version: int | None
    last_version: int | None
    audits: dict[str, int]
    latency: Latency
    revision: int
    changed_us: int | None
    of_book: Quality
    of_trades: Quality


def units(book: Record, trade: Record, counted: Iterable[Counts], from_us: int, to_us: int, length_us: int) -> list[Unit]:
    """Return the units of `length_us` in [from_us, to_us), both ends at the beginning of one."""
    by_unit: dict[int, list[Counts]] = {}
    for hour in counted:
        by_unit.setdefault(hour.hour_us - hour.hour_us % length_us, []).append(hour)
    starts = range(from_us, to_us, length_us)
    qualities = ([of_span(record, start, start + length_us) for record in (book, trade)] for start in starts)
    return [_unit(start, by_unit.get(start, []), *both) for start, both in zip(starts, qualities, strict=True)]


def _unit(start_us: int, hours: list[Counts], of_book: Quality, of_trades: Quality) -> Unit:
    audits: dict[str, int] = {}
    latency = NO_LATENCY
    for hour in hours:
        latency = latency + hour.latency
        for outcome, count in hour.audits.items():
            audits[outcome] = audits.get(outcome, 0) + count
    return Unit(
        start_us,
        sum(hour.events for hour in hours),
        sum(hour.trades for hour in hours),
        min((hour.first_version for hour in hours if hour.first_version is not None), default=None),
        max((hour.last_version for hour in hours if hour.last_version is not None), default=None),
        audits,
        latency,
        sum(hour.revision for hour in hours),
        max((hour.changed_us for hour in hours if hour.changed_us is not None), default=None),
        of_book,
        of_trades,
    )


def condition(day: Unit) -> str:
    """Return the condition of a market's day."""
    if day.of_book.pending:
        return PENDING
    if day.of_book.recordable_us and not day.of_book.covered_us and not day.events + day.trades:
        return MISSING
    causes = day.of_book.by_cause.keys() | day.of_trades.by_cause.keys()
    return DEGRADED if causes - QUIET or day.audits.get(MISMATCH) else AVAILABLE
