"""Instants in every accepted form, and none else."""

import contextlib
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway import instants

INSTANTS = st.integers(0, instants.LAST_US)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@given(INSTANTS, st.integers(-23 * 60, 23 * 60), st.sampled_from("Tt "))
def test_rfc3339_with_any_offset_reads_back(us: int, minutes: int, separator: str) -> None:
    assert instants.parse(instants.text(us)) == us
    moment = EPOCH + timedelta(microseconds=us)
    try:
        local = moment.astimezone(timezone(timedelta(minutes=minutes)))
    except OverflowError:
        return
    if local.year < 1970:
        return
    written = local.isoformat(sep=separator)
    assert instants.parse(written) == us
    assert instants.parse(written.replace("+", " ")) == us  # what an unescaped query makes of it


@given(st.integers(0, 10**11 - 1), st.text("0123456789", min_size=0, max_size=9))
def test_seconds_with_decimals_are_cut_never_rounded(seconds: int, decimals: str) -> None:
    text = f"{seconds}.{decimals}" if decimals else str(seconds)
    assert instants.parse(text) == int(f"{seconds}{decimals.ljust(6, '0')[:6]}")


@given(st.integers(10**11, 10**14 - 1), st.integers(10**14, 10**17 - 1))
def test_magnitude_tells_milliseconds_from_microseconds(ms: int, us: int) -> None:
    assert instants.parse(str(ms)) == ms * 1000
    assert instants.parse(str(us)) == us


def test_nanoseconds_are_cut() -> None:
    assert instants.parse("1970-01-01T00:00:01.123456999Z") == instants.parse("1.123456999") == 1_123_456
    assert instants.parse("1970-01-01T00:00:01.1234567891Z") == 1_123_456


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "now", "-1", "+1", "1e9", "1_000", "1.", ".5", "1.0000000000", "100000000000.5", "100000000000000000",
        "0x10", "nan", "١٢",
        "2025-11-03", "2025-11-03T00:00:00", "2025-13-03T00:00:00Z", "2025-02-30T00:00:00Z", "2025-11-03T24:00:00Z",
        "2025-11-03T23:59:60Z", "2025-11-03T00:00:00+24:00", "2025-11-03T00:00:00.Z", "2025-11-03T00:00Z", "1969-12-31T23:59:59Z",
        "1970-01-01T00:00:00+00:01", "9999-12-31T23:59:59-00:01", "2025-11-03T00:00:00Z\n", "2025-11-03T00:00:00Z" + "0" * 100,
    ],
)  # fmt: skip
def test_anything_else_is_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(instants.UnreadableInstant, match="expected an instant"):
        instants.parse(text)


@given(st.text())
def test_no_text_breaks_it(text: str) -> None:
    with contextlib.suppress(instants.UnreadableInstant):
        assert 0 <= instants.parse(text) <= instants.LAST_US
