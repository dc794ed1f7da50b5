"""The quality of a span against counting its microseconds one by one."""

from hypothesis import given, settings
from hypothesis import strategies as st

from kalshibook_core.wire.events import Cause
from kalshibook_core.wire.quality import LISTED, PPM, QUIET, Record, Span, State, of_span

INSTANTS = st.integers(0, 30)
CAUSES = st.sampled_from([Cause.DISCONNECT, Cause.MAINTENANCE, Cause.SEQUENCE_GAP])
GAPS = st.lists(st.tuples(INSTANTS, st.none() | st.integers(0, 20), CAUSES), max_size=6)


@settings(max_examples=300)
@given(GAPS, INSTANTS, st.none() | INSTANTS, st.none() | INSTANTS, st.booleans(), INSTANTS, st.integers(0, 25))
def test_numbers_equal_a_count_of_every_microsecond(
    made: list[tuple[int, int | None, Cause]],
    through_us: int,
    first_us: int | None,
    opens_us: int | None,
    ended: bool,
    from_us: int,
    length: int,
) -> None:
    gaps = [Span(start, None if took is None else start + took, cause) for start, took, cause in made]
    gaps.sort(key=lambda gap: gap.start_us)
    to_us = from_us + length
    quality = of_span(Record(gaps, through_us, first_us, opens_us, ended), from_us, to_us)
    uncovered = recordable = covered = touched = 0
    for us in range(from_us, to_us):
        # What is true of one microsecond, from the definitions alone.
        causes = {cause for start, end, cause in gaps if start <= us < (999 if end is None else max(end, start + 1))}
        existed = opens_us is None or us >= opens_us or (first_us is not None and us >= first_us)
        seen = first_us is not None and us >= first_us
        if not seen and existed and (us <= through_us or first_us is not None):
            causes.add(Cause.NOT_SUBSCRIBED)
        touched += bool(causes)
        if us > through_us or not existed:
            continue
        uncovered += bool(causes)
        recordable += not causes or bool(causes - QUIET)
        covered += not causes
    later = max(from_us, to_us - 1) > through_us
    assert quality.uncovered_us == uncovered == sum(quality.by_cause.values())
    assert quality.recordable_us == recordable
    assert quality.completeness_ppm == (PPM * covered // recordable if recordable else None)
    assert (quality.state == State.GAP) == (touched > 0)
    assert quality.pending == (later and not ended)
    if not touched:
        assert quality.state == (State.COMPLETE if not later else State.ENDED if ended else State.PENDING)


def test_one_microsecond_in_a_year_is_not_rounded_away() -> None:
    year = 365 * 86_400_000_000
    quality = of_span(Record([Span(5, 6, Cause.DISCONNECT)], year, 0), 0, year)
    assert (quality.state, quality.uncovered_us, quality.completeness_ppm) == (State.GAP, 1, PPM - 1)


def test_no_more_gaps_are_listed_than_were_promised_and_all_count() -> None:
    gaps = [Span(10 * number, 10 * number + 1, Cause.DISCONNECT) for number in range(LISTED + 1)]
    quality = of_span(Record(gaps, 10**6, 0), 0, 10**6)
    assert (len(quality.gaps), quality.more, quality.uncovered_us) == (LISTED, True, LISTED + 1)
