"""What is said of hours, days and incidents, against counting."""

from hypothesis import given
from hypothesis import strategies as st

from kalshibook_core.wire.coverage import BOUNDS_US, NO_LATENCY, latency
from kalshibook_core.wire.events import Cause
from kalshibook_core.wire.quality import Record, Span
from services.gateway.quality.incidents import incidents
from services.gateway.quality.units import DAY_US, Counts, condition, units

GAPS = st.lists(
    st.tuples(st.integers(1, 5), st.integers(0, 30), st.none() | st.integers(0, 9), st.sampled_from(["disconnect", "other"])),
    max_size=12,
)
LAGS = st.lists(st.integers(-10_000, 60_000_000), max_size=50)


@given(GAPS, st.integers(2, 4))
def test_incidents_are_the_instants_at_which_many_markets_were_in_a_gap(
    made: list[tuple[int, int, int | None, str]], fewest: int
) -> None:
    gaps = [(market, Span(start, None if took is None else start + took, cause)) for market, start, took, cause in made]
    found = incidents(gaps, fewest)
    for cause in ("disconnect", "other"):
        ends = [99 if gap.end_us is None else max(gap.end_us, gap.start_us + 1) for _, gap in gaps]
        of_cause = [(m, gap.start_us, end) for (m, gap), end in zip(gaps, ends, strict=True) if gap.cause == cause]
        hurt = [{m for m, start, end in of_cause if start <= us < end} for us in range(60)]
        told = [each for each in found if each.cause == cause]
        for us, markets in enumerate(hurt):
            here = [each for each in told if each.start_us <= us and (each.end_us is None or us < each.end_us)]
            assert len(here) == (len(markets) >= fewest)
        for each in told:
            inside = hurt[each.start_us : each.end_us]
            assert (each.markets, each.at_once) == (len(set().union(*inside)), max(map(len, inside)))
    assert [each.start_us for each in found] == sorted(each.start_us for each in found)


@given(LAGS, st.lists(st.integers(0, 5_000), max_size=20), st.integers(1, 100))
def test_a_percentile_is_no_less_than_the_true_one_and_no_more_than_its_bucket(
    one: list[int], two: list[int], percent: int
) -> None:
    both = latency(one) + latency(two)
    assert both == latency(one + two)
    lags = sorted(max(0, lag) for lag in one + two)
    if not lags:
        assert (both, both.percentile(percent)) == (NO_LATENCY, None)
        return
    true = lags[-(-len(lags) * percent // 100) - 1]
    told = both.percentile(percent)
    assert told is not None
    assert true <= told <= min(lags[-1], next((bound for bound in BOUNDS_US if bound >= true), lags[-1]))


def test_the_condition_of_a_markets_day() -> None:
    def of(*gaps: Span, through_us: int = DAY_US, events: int = 0, mismatched: int = 0) -> str:
        book, trade = Record(gaps, through_us, 0, 0), Record((), through_us, 0, 0)
        counts = Counts(0, events, 0, None, None, {"mismatch": mismatched}, NO_LATENCY, 1, 1)
        (day,) = units(book, trade, [counts], 0, DAY_US, DAY_US)
        return condition(day)

    assert of() == "available"  # that nothing happened was seen
    assert of(Span(0, DAY_US, Cause.MAINTENANCE), events=1) == "available"
    assert of(Span(5, 5, Cause.DISCONNECT)) == "degraded"
    assert of(mismatched=1) == "degraded"
    assert of(Span(0, None, Cause.DISCONNECT)) == "missing"
    assert of(Span(0, None, Cause.DISCONNECT), events=1) == "degraded"
    assert of(through_us=DAY_US - 2) == "pending"
