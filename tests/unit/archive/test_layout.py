"""Names say where things are, whatever the exchange calls its markets; and of all commits each offset is taken once."""

import random

from hypothesis import given
from hypothesis import strategies as st

from kalshibook_core.archive import layout
from kalshibook_core.archive.layout import Commit, chain, commit_of


def commit(first: int, after: int, life: str = "a") -> Commit:
    return Commit("kalshi.raw.v1", 3, first, after, 0, 0, life)


@given(st.integers(0, 10**18), st.integers(1, 10**6), st.integers(0, 10**5), st.integers(0, 10**5))
def test_a_commit_is_found_again_by_its_name(first: int, count: int, day: int, other: int) -> None:
    named = Commit("kalshi.book.v1", 11, first, first + count, day, other, "0a9f")
    assert commit_of(named.path) == named


def test_what_is_no_commit_is_none() -> None:
    path = commit(5, 9).path
    for other in ("commits/x.json", path + ".tmp", path.replace("-0-0-", "-0-"), commit(9, 9).path, commit(9, 5).path):
        assert commit_of(other) is None


@given(st.text(max_size=60) | st.text("A\u20ac/.", min_size=100, max_size=200))
def test_any_ticker_is_one_folder_of_bounded_length(ticker: str) -> None:
    name = layout.series_of(ticker)
    assert ("/" not in name and name not in ("", ".", "..")) or not set(name) - {"."}
    assert 0 < len(name.encode()) <= 120


@given(st.integers(-(2**63), 2**63 - 1))
def test_any_instant_has_a_day(us: int) -> None:
    assert len(layout.day_name(layout.day_of(us))) == 10


def test_days_are_utc() -> None:
    assert layout.day_name(layout.day_of(1_795_219_199_999_999)) == "2026-11-20"
    assert layout.day_name(layout.day_of(1_795_219_200_000_000)) == "2026-11-21"


@given(st.integers(0, 2**32))
def test_each_offset_is_taken_once_whatever_zombies_wrote(seed: int) -> None:
    rng = random.Random(seed)
    first = at = rng.randrange(3)
    written = []
    for life in range(rng.randrange(1, 12)):
        start = at
        for _ in range(rng.randrange(4)):
            written.append(commit(at, at := at + rng.randrange(1, 30), f"h{life}"))
        if at > start and rng.random() < 0.5:  # one that woke up late: it goes on from where it thinks it stands
            late = rng.choice([start, *[each.next for each in written if each.first >= start]])
            for _ in range(rng.randrange(1, 3)):
                after = min(late + rng.randrange(1, 40), at)  # it cannot have read more than the log had
                if late < after:
                    written.append(commit(late, after, f"z{life}"))
                late = after
    rng.shuffle(written)
    taken = chain(written)
    assert taken.holes == ()
    assert taken.next == (at if written else 0)
    assert [each.first for each in taken.commits] == [first, *[each.next for each in taken.commits]][: len(taken.commits)]


def test_a_hole_is_told_and_gone_over() -> None:
    taken = chain([commit(0, 10), commit(20, 30), commit(12, 20)])
    assert taken.holes == ((10, 12),)
    assert [each.first for each in taken.commits] == [0, 12, 20]
    assert chain([]).next == 0


def test_a_repack_is_found_again_by_its_name() -> None:
    named = layout.Repack("kalshi.book.v1", 11, 20_100, 0, 10**18, "r0a9f")
    assert layout.repack_of(named.path) == named
    assert layout.repack_of(named.swept) is None
    assert layout.in_force([named, named._replace(next=10**19), named._replace(day=1)])[20_100].next == 10**19


def test_no_commit_reaches_over_the_end_of_a_repack() -> None:
    heirs = [commit(0, 10), commit(10, 20), commit(20, 30)]
    zombies = [commit(10, 25, "z"), commit(25, 90, "z")]
    assert chain(heirs + zombies).next == 90
    assert chain(heirs + zombies, [20]).commits == tuple(heirs)  # the rows to 20 stand in the repack, once
