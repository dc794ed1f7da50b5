"""How good the record of one market is in a span of time: one definition, for answers, tables and files. Pure.

Of a span [from_us, to_us) on one channel (the book, or the trades):

    known       its part up to and including `through_us`; of what comes after nothing is claimed yet
    gap         a span of which something is not known, with its cause; before the first recorded instant it is
                `not_yet_subscribed`, from when the exchange opened the market. One that took no time counts as a microsecond
    uncovered   the microseconds of the known part that lie in a gap of any cause
    recordable  the known part, less what came before the market opened, less gaps that are the exchange's own quiet (QUIET)
    complete    the covered of the recordable microseconds in parts per million, rounded down: 1,000,000 means every one of them
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from kalshibook_core.wire.events import Cause

PPM: Final = 1_000_000

QUIET: Final = frozenset({Cause.MAINTENANCE, Cause.TRADING_PAUSE, Cause.MARKET_CLOSED})
"""Causes of gaps in which the exchange had nothing to be recorded. They are told as gaps, and not held against the record."""

LISTED: Final = 100
"""Gaps that are listed; all of them count."""


TRADES_AFTER_US: Final = 25_000_000
"""Trades are vouched for so long after the first book at the latest. Both are subscribed in one breath, no answer to that takes
longer than 15 s, and behind a hole meanwhile it is LAG_US more. The tables do not say when it was."""


class State(StrEnum):
    """The worst that can be said of any instant of a span; best first."""

    COMPLETE = "complete"
    ENDED = "ended"  # later than what is recorded, but the market was determined or settled: nothing more will come
    PENDING = "pending"  # later than what is recorded: events may still come
    GAP = "gap"


class Span(NamedTuple):
    """What is not known: [start_us, end_us), not ended yet where end_us is None."""

    start_us: int
    end_us: int | None
    cause: str


class Record(NamedTuple):
    """What there is of one market on one channel, and how far."""

    gaps: Sequence[Span]  # those that touch the span asked for, by their start
    through_us: int  # up to and including this instant all that there will ever be is stored
    first_us: int | None  # from here on it is recorded; None: not yet
    opens_us: int | None = None  # the exchange opened the market; None: not known when, and so it may always have been open
    ended: bool = False  # nothing comes after through_us


class Quality(NamedTuple):
    """What is to be said of a span. Times and lengths in microseconds."""

    state: State
    from_us: int
    to_us: int
    gaps: Sequence[Span]  # at most LISTED
    more: bool  # there are more gaps than are listed
    covered_us: int
    uncovered_us: int
    recordable_us: int
    completeness_ppm: int | None  # None: nothing was recordable
    through_us: int
    pending: bool
    by_cause: dict[str, int]  # uncovered microseconds; where gaps overlap, of the one that began first


def of_span(record: Record, from_us: int, to_us: int) -> Quality:
    """Return the quality of a market's record in [from_us, to_us)."""
    limit = min(to_us, record.through_us + 1)
    exists_us = from_us if record.opens_us is None else record.opens_us
    if record.first_us is not None:
        exists_us = min(exists_us, record.first_us)
    begin = max(from_us, exists_us)
    gaps = [gap for gap in record.gaps if gap.start_us < to_us and _end(gap) > from_us < to_us]
    unseen_us = min(to_us, limit if record.first_us is None else record.first_us)
    early = Span(exists_us, record.first_us, Cause.NOT_SUBSCRIBED)
    told = any(gap.cause == early.cause and gap.start_us <= begin and _end(gap) >= unseen_us for gap in gaps)
    if begin < unseen_us and not told:
        gaps.append(early)
        gaps.sort(key=lambda gap: gap.start_us)
    by_cause = _lengths(gaps, begin, limit)
    uncovered = sum(by_cause.values())
    lost = sum(_lengths((gap for gap in gaps if gap.cause not in QUIET), begin, limit).values())
    known = max(0, limit - begin)
    recordable = known - (uncovered - lost)
    later = max(from_us, to_us - 1) > record.through_us
    state = State.GAP if gaps else State.COMPLETE if not later else State.ENDED if record.ended else State.PENDING
    ppm = PPM * (known - uncovered) // recordable if recordable else None
    return Quality(
        state, from_us, to_us, gaps[:LISTED], len(gaps) > LISTED, known - uncovered, uncovered, recordable, ppm,
        record.through_us, later and not record.ended, by_cause,
    )  # fmt: skip


def _end(gap: Span) -> int:
    return _NEVER if gap.end_us is None else max(gap.end_us, gap.start_us + 1)


def _lengths(gaps: Iterable[Span], begin: int, limit: int) -> dict[str, int]:
    """Return by cause how much of [begin, limit) gaps cover that are ordered by their start."""
    found: dict[str, int] = {}
    covered = begin
    for gap in gaps:
        start, end = max(gap.start_us, covered), min(_end(gap), limit)
        if start < end:
            cause = str(gap.cause)
            found[cause] = found.get(cause, 0) + end - start
            covered = end
    return found


_NEVER: Final = 1 << 62
