"""Decimal strings become integers exactly, or not at all."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kalshibook_core.kalshi import numbers


@given(st.integers(0, 10_000))
def test_every_price_survives_the_way_there_and_back(value: int) -> None:
    text = numbers.format_price(value)
    assert len(text) == 6 and Decimal(text) == Decimal(value) / 10_000
    assert numbers.price(text) == value


@given(st.integers(-(10**17), 10**17))
def test_every_size_survives_the_way_there_and_back(value: int) -> None:
    text = numbers.format_size(value)
    assert Decimal(text) == Decimal(value) / 100
    assert numbers.size(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("0.4800", 4800), ("0.480", 4800), ("0.48", 4800), ("1", 10_000), ("0.000100", 1), ("0.0000", 0)]
)
def test_prices_of_any_length_are_read(text: str, value: int) -> None:
    assert numbers.price(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("-54.00", -5400), ("0.01", 1), ("-0.50", -50), ("12", 1200), ("7.5", 750), ("3.000", 300)]
)
def test_sizes_of_any_length_are_read(text: str, value: int) -> None:
    assert numbers.size(text) == value


@pytest.mark.parametrize(
    "text", ["", "-0.1", "1.0001", "0.00005", "0.1e1", "1_0", " 1", "\u0660.\u0664", "0.48\n", "+1", ".5", "1.", "NaN"]
)
def test_what_is_no_price_is_refused(text: str) -> None:
    with pytest.raises(numbers.NotRepresentable):
        numbers.price(text)


@pytest.mark.parametrize(
    "text", ["", "--1", "0.001", "1e3", "1_0.00", " 1.00", "\u0661", "1.00\n", "+1.00", "999999999999999999.00", "inf"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(numbers.NotRepresentable):
        numbers.size(text)
