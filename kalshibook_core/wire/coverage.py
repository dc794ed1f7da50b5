"""What was recorded of one market in one hour, and how well: counts, covered time, audits, capture latency. Pure.

The capture latency of an event is recv_us - exchange_us: from what the exchange wrote on it to our clock at receipt, so it
holds the difference of the two clocks, too. It is kept as a histogram, so that hours add up to days; a percentile is the upper
bound of the bucket it lies in, which is rounded against us, and never more than the greatest seen.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np

from kalshibook_core.wire.quality import Quality, Record, of_span

HOUR_US: Final = 3_600_000_000

BOUNDS_US: Final = (
    1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
    1_000_000, 2_000_000, 5_000_000, 10_000_000, 30_000_000,
)  # fmt: skip
"""Upper bounds of the histogram's buckets, inclusive; one more bucket has what is greater."""

MATCH, MISMATCH, UNKNOWN = "match", "mismatch", "unknown"
"""Outcomes of an audit: our live book against the exchange's by REST."""


class Latency(NamedTuple):
    """How many events by bucket, and the greatest latency (0 of none)."""

    buckets: Sequence[int]
    max_us: int

    def percentile(self, percent: int) -> int | None:
        """Return the latency that so many percent of the events did not exceed, None of none."""
        left = -(-sum(self.buckets) * percent // 100)
        if left == 0:
            return None
        for bound, count in zip((*BOUNDS_US, self.max_us), self.buckets, strict=True):
            left -= count
            if left <= 0:
                return min(bound, self.max_us)
        raise AssertionError("the buckets hold every event")

    def __add__(self, other: "Latency") -> "Latency":  # type: ignore[override]
        """Return the latency of the events of both."""
        return Latency([a + b for a, b in zip(self.buckets, other.buckets, strict=True)], max(self.max_us, other.max_us))


NO_LATENCY: Final = Latency([0] * (len(BOUNDS_US) + 1), 0)


def latency(lags_us: Sequence[int]) -> Latency:
    """Return the histogram of latencies; one below 0 (our clock was behind) counts as 0."""
    if not lags_us:
        return NO_LATENCY
    buckets = np.bincount(np.searchsorted(BOUNDS_US, lags_us), minlength=len(BOUNDS_US) + 1)
    return Latency(buckets.tolist(), max(0, *lags_us) if len(lags_us) > 1 else max(0, lags_us[0]))


class Hour(NamedTuple):
    """One market's hour. Of `book` and `trade` the quality in it, as far as it is recorded."""

    events: int  # of the book: snapshots, deltas and gaps
    first_version: int | None
    last_version: int | None
    trades: int
    book: Quality
    trade: Quality
    audits: Mapping[str, int]  # by outcome
    latency: Latency  # of deltas and trades


class Rows(NamedTuple):
    """What is stored of one market's hour."""

    events: int
    first_version: int | None
    last_version: int | None
    trades: int
    lags_us: Sequence[int]
    audits: Mapping[str, int]


def of_hour(hour_us: int, rows: Rows, book: Record, trade: Record) -> Hour:
    """Return the coverage of the hour that begins at `hour_us`."""
    end_us = hour_us + HOUR_US
    return Hour(
        rows.events,
        rows.first_version,
        rows.last_version,
        rows.trades,
        of_span(book, hour_us, end_us),
        of_span(trade, hour_us, end_us),
        rows.audits,
        latency(rows.lags_us),
    )


def touched(start_us: int, end_us: int) -> Iterable[int]:
    """Return the hours that [start_us, end_us] touches, both ends included."""
    return range(start_us - start_us % HOUR_US, end_us + 1, HOUR_US)
