"""Asking is spread out, and waiting grows."""

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.ingest.pace import LONGEST, RECOVERS, Pace, backoff


@given(st.floats(0.5, 100), st.lists(st.floats(0, 0.5), max_size=200))
def test_no_more_than_the_rate_after_a_second_s_burst(rate: float, gaps: list[float]) -> None:
    pace, now, happened = Pace(rate), 1000.0, []
    for gap in gaps:
        now += gap
        happened.append(now + pace.wait(now))
    assert happened == sorted(happened)
    for start in happened:
        assert sum(start <= at < start + 1 for at in happened) <= 2 * rate + 2


def test_backoff_grows_is_capped_and_jitters() -> None:
    rng = random.Random(1)
    waits = [[backoff(failures, rng) for _ in range(200)] for failures in range(0, 40, 4)]
    assert all(0 <= wait <= LONGEST for row in waits for wait in row)
    assert max(waits[0]) <= 0.25 and max(waits[1]) <= 4 and max(waits[-1]) > LONGEST / 2
    assert len({round(wait, 6) for wait in waits[-1]}) > 100


def test_slowed_it_halves_to_one_a_second_at_least() -> None:
    for rate, intervals in ((4, [0.5, 1, 1]), (0.5, [2, 2, 2])):
        pace, happened = Pace(rate), []
        for _ in range(4 + int(rate)):
            pace.wait(1000.0)  # the first second's burst
        for _ in intervals:
            pace.slow()
            first = pace.wait(1000.0)
            happened.append(pace.wait(1000.0) - first)
        assert all(0.9 * interval <= each <= interval for each, interval in zip(happened, intervals, strict=True))


def test_slowed_it_comes_back_to_its_rate_and_no_further() -> None:
    pace, now, happened = Pace(100), 1000.0, []
    for _ in range(8):
        pace.slow()
    for _ in range(400):
        now += pace.wait(now)
        happened.append(now)
    waits = [after - before for before, after in pairwise(happened)]
    slow = [wait for wait in waits if wait > 0.9]
    assert waits[0] > 0.9 and len(slow) == pytest.approx(RECOVERS, abs=2) and waits[: len(slow)] == slow
    assert waits[-1] == pytest.approx(0.01)
