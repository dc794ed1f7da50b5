"""Every wanted market finds a place while there is one, and what has a place keeps it."""

from hypothesis import given
from hypothesis import strategies as st

from services.ingest.plan import Limits, plan

tickers = st.integers(0, 30).map(lambda n: f"KX{n}")


@given(
    st.dictionaries(tickers, st.integers(0, 9)), st.dictionaries(tickers, st.integers(0, 4)), st.integers(1, 5), st.integers(1, 7)
)
def test_plan(wanted: dict[str, int], placed: dict[str, int], connections: int, per_connection: int) -> None:
    limits = Limits(connections, per_connection)
    legal: dict[str, int] = {}
    for ticker, connection in placed.items():
        if connection < connections and list(legal.values()).count(connection) < per_connection:
            legal[ticker] = connection
    changes = plan(wanted, legal, limits)
    after = dict(legal)
    for connection, gone in changes.unsubscribe.items():
        for ticker in gone:
            assert after.pop(ticker) == connection
    for connection, come in changes.subscribe.items():
        for ticker in come:
            assert ticker not in after
            after[ticker] = connection
    assert after.keys() <= wanted.keys()
    assert len(after) == min(len(wanted), connections * per_connection) == len(wanted) - changes.left_out
    assert all(0 <= c < connections and list(after.values()).count(c) <= per_connection for c in after.values())
    if changes.left_out:
        assert max(wanted[t] for t in after) <= min(wanted[t] for t in wanted if t not in after)
    else:
        assert not changes.unsubscribe or not (set().union(*changes.unsubscribe.values()) & wanted.keys())


def test_nothing_to_do_is_no_plan() -> None:
    changes = plan({"A": 0}, {"A": 3}, Limits(4, 2))
    assert (changes.subscribe, changes.unsubscribe, changes.left_out) == ({}, {}, 0)
