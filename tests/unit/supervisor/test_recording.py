"""When a playback is over: every book frame and gap one version, every trade one row, whatever was there before."""

from hypothesis import given
from hypothesis import strategies as st

from kalshibook_tools.supervisor.history import Reached
from kalshibook_tools.supervisor.kept import BACKOFF_SECONDS, backoff
from kalshibook_tools.supervisor.recording import Sent, behind

COUNT = st.integers(0, 1000)


@given(COUNT, COUNT, COUNT, COUNT, COUNT)
def test_a_market_is_behind_until_its_last_event_is_there(frames: int, trades: int, gaps: int, version: int, had: int) -> None:
    sent, before = {"A": Sent(frames, trades, gaps)}, {"A": Reached(version, had)}
    whole = Reached(version + frames + gaps, max(had, trades))
    assert behind(sent, before, {"A": whole}) == []
    if whole.version > 0:
        assert behind(sent, before, {"A": Reached(whole.version - 1, whole.trades)}) == ["A"]
    if trades > had:
        assert behind(sent, before, {"A": Reached(whole.version, trades - 1)}) == ["A"]


def test_a_market_the_database_does_not_know_is_behind() -> None:
    assert behind({"A": Sent(1, 0, 0), "B": Sent(0, 0, 0)}, {}, {}) == ["A"]


def test_backoff_doubles_to_its_cap() -> None:
    first, longest = BACKOFF_SECONDS
    waits = [backoff(deaths) for deaths in range(1, 200)]
    assert waits[:3] == [first, 2 * first, 4 * first]
    assert waits == sorted(waits)
    assert waits[-1] == longest
