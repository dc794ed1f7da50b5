"""What is shown of a book is exact, cut where it says so, and the same seen from YES."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from services.gateway.history.views import shown, whole

SIDE = st.dictionaries(st.integers(0, 10_000), st.integers(1, 2**62), max_size=12)


@given(SIDE, SIDE, st.none() | st.integers(1, 14))
def test_both_views_are_the_best_levels_of_the_book(yes: dict[int, int], no: dict[int, int], depth: int | None) -> None:
    bids, sides = ({**shown((yes, no), depth, view), **whole((yes, no), depth, view)} for view in (None, "yes"))
    for name, side in (("yes", yes), ("no", no)):
        levels = [(int(Fraction(price) * 10_000), int(Fraction(size) * 100)) for price, size in bids[name]]
        assert levels == sorted(side.items())[-depth if depth else 0 :]
        assert len(levels) + (bids["cut"] or {name: 0})[name] == len(side)
    assert sides["bids"] == bids["yes"][::-1]
    assert [(1 - Fraction(price), size) for price, size in sides["asks"]] == [
        (Fraction(price), size) for price, size in bids["no"][::-1]
    ]
    assert [Fraction(sides[name]) * 100 for name in ("bid_total", "ask_total")] == [sum(yes.values()), sum(no.values())]
    if yes and no:
        bid, ask = Fraction(sides["bids"][0][0]), Fraction(sides["asks"][0][0])
        assert (Fraction(sides["mid"]), Fraction(sides["spread"])) == ((bid + ask) / 2, ask - bid)
        assert len(sides["mid"]) == 7
    else:
        assert (sides["mid"], sides["spread"]) == (None, None)
