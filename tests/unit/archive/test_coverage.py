"""What a file says of how whole it is: raw rows by who delivered them, tickers and checkpoints by the book, else nothing."""

import asyncio
import random
from pathlib import Path

import pytest

from kalshibook_core.archive import layout
from kalshibook_core.archive.coverage import Followed, Received
from kalshibook_core.archive.manifest import Json
from kalshibook_core.archive.reader import Archive
from kalshibook_core.archive.store import Folder
from kalshibook_core.wire.events import BOOK, TICKERS, BookSnapshot, Checkpoint, Gap, Lifecycle, RawFrame, RawKind, Ticker
from kalshibook_core.wire.quality import Span
from services.persister.archive import commit, files, repack
from tests.support import archive as made

T = 100 * layout.DAY_US
TICKER = "KXTEST0-1"
AHEAD = 37  # the exchange's clock less ours


def frame(us: int, gatherer: str = "g", generation: int = 1, kind: str = RawKind.FRAME, **more: object) -> RawFrame:
    raw = RawFrame(kind, gatherer, 0, generation, BOOK, 7, 1, True, TICKER, us, us + AHEAD, "", b"")
    return raw._replace(**more)  # type: ignore[arg-type]


def gone(us: int, whole_us: int, gatherer: str = "g", cause: str = "disconnect") -> RawFrame:
    return frame(us, gatherer, kind=RawKind.BREAK, clock_us=whole_us + AHEAD, detail=cause)


def gaps_of(rows: list[RawFrame]) -> list[Span]:
    received = Received()
    for row in rows:
        received.add(row)
    quality = received.quality(TICKER)
    assert quality is not None
    return list(quality.gaps)


def test_raw_rows_tell_where_nobody_delivered() -> None:
    assert gaps_of([frame(10), frame(90)]) == []
    # A hole: whole up to 50, because another market of the sid had a frame then; and from the next frame on.
    assert gaps_of([frame(10), gone(60, 50, cause="upstream_sequence_gap"), frame(61), frame(90)]) == [
        Span(50, 61, "upstream_sequence_gap")
    ]
    # Another gatherer has it meanwhile, though it said nothing in the hole: it would have, had there been anything.
    assert gaps_of([frame(10), frame(11, "h"), gone(60, 50), frame(61), frame(90), frame(91, "h")]) == []
    # Not so if the other had no frame that this one had.
    assert gaps_of([frame(10), frame(11, "h"), frame(40), gone(60, 50), frame(61)]) == [Span(50, 61, "disconnect")]
    # Killed without a word, and begun anew; broken at the end; broken before its first frame here.
    assert gaps_of([frame(10), frame(20), frame(80, generation=2)]) == [Span(20, 80, "disconnect")]
    assert gaps_of([frame(10), gone(60, 50, cause="silent_socket")]) == [Span(50, None, "silent_socket")]
    assert gaps_of([frame(10), gone(60, 50, cause="market_closed")]) == []  # it has ended, and was let go as planned
    assert gaps_of([gone(60, 50), gone(65, 50, cause="own_overflow"), frame(70)]) == [Span(60, 70, "disconnect")]
    assert gaps_of([frame(10, kind=RawKind.STALE), frame(20), frame(30)]) == []
    received = Received()
    received.add(frame(10, kind=RawKind.REST))
    assert received.quality(TICKER) is None and received.sources() == []


def test_whatever_all_gatherers_lost_lies_in_a_gap_of_the_raw_rows_and_else_there_is_none() -> None:
    for seed in range(60):
        rng = random.Random(seed)
        truth, rows, lost_by = list(range(1_000, 9_000, 100)), [], []
        for gatherer in ("g", "h"):
            lost = set[int]()
            for first in rng.sample(truth[5:-5], rng.randrange(4)):
                lost.update(each for each in truth[5:-2] if first <= each < first + 100 * rng.randrange(1, 6))
            whole = truth[0]
            for us in truth:
                if us in lost:
                    continue
                if whole < us - 100:
                    rows.append(gone(us, whole, gatherer, "upstream_sequence_gap"))
                rows.append(frame(us, gatherer))
                whole = us
            lost_by.append(lost)
        rows.sort(key=lambda row: row.recv_us)
        gaps = gaps_of(rows)
        for us in truth:
            assert any(gap.start_us < us < (gap.end_us or 0) for gap in gaps) == (us in lost_by[0] & lost_by[1]), seed
        assert all(gap.cause == "upstream_sequence_gap" for gap in gaps)


def put(store: Folder, topic: str, events: list, followed: Followed | None, first: int = 0) -> list[Json]:
    records = made.records(events)
    one = files.make(topic, 0, first, first + records[-1].offset + 1, "a", records, followed)
    asyncio.run(commit.write(store, one, lambda attempt: attempt()))
    return [Archive(store).manifest(file.entry) for file in one.files]


def ticker(us: int, name: str = TICKER) -> Ticker:
    return Ticker(name, us, us, *[None] * 10, 1)


def a_day(store: Folder, followed: Followed | None) -> tuple[Json, Json]:
    """Archive a book from T + 100, in a gap from T + 300 to T + 500; return the manifests of its tickers and its checkpoints."""
    snapshot = BookSnapshot(TICKER, 1, T + 100, T + 100, [], [], 0, None, None, "g", 0, 1, 1, 1, 1)
    gap = Gap(TICKER, 2, T + 300, BOOK, T + 300, None, "disconnect", T + 300, 0, "g", 0, 1, 2)
    ended = snapshot._replace(version=3, effective_us=T + 500, gap_start_us=T + 300, gap_cause="disconnect")
    late = snapshot._replace(version=4, effective_us=T + 60_000_000)
    put(store, "kalshi.book.v1", [snapshot, gap], followed)
    put(store, "kalshi.book.v1", [ended, late], followed, 2)
    [tickers] = put(store, "kalshi.tickers.v1", [ticker(T + 200), ticker(T + 599), ticker(T, "KXTEST0-2")], followed)
    checkpoint = Checkpoint(TICKER, 1, T + 100, [], [], 0, None, None, "g", 0, 1, 0, 0)
    last = checkpoint._replace(version=4, effective_us=T + 60_000_000)
    [checkpoints] = put(store, "kalshi.checkpoints.v1", [checkpoint, last], followed)
    return tickers, checkpoints


def test_files_of_tickers_and_checkpoints_are_as_whole_as_the_book(tmp_path: Path) -> None:
    tickers, checkpoints = a_day(Folder(tmp_path), Followed())
    of = tickers["markets"][TICKER]
    assert of["gaps"] == [{"start_us": T + 300, "end_us": T + 500, "cause": "disconnect"}]
    assert of["quality"] == {
        "state": "gap", "from_us": T + 200, "to_us": T + 600, "covered_us": 200, "uncovered_us": 200, "recordable_us": 400,
        "completeness_ppm": 500_000,
    }  # fmt: skip
    nothing = {"covered_us": 0, "uncovered_us": 0, "recordable_us": 0, "completeness_ppm": None}
    assert tickers["markets"]["KXTEST0-2"]["quality"] == {"state": "unknown", "from_us": T, "to_us": T + 1} | nothing
    assert tickers["quality"] == {"by": "book", "state": "gap"} | {
        "covered_us": 200, "uncovered_us": 200, "recordable_us": 400, "completeness_ppm": 500_000,
    }  # fmt: skip
    # Up to ten seconds before the last book event everything has come; of the rest more may.
    assert checkpoints["quality"]["covered_us"] == 49_999_901 - 200 and checkpoints["quality"]["state"] == "gap"


def test_who_has_not_seen_the_book_says_so_until_the_day_is_put_together(tmp_path: Path) -> None:
    store = Folder(tmp_path)
    for told in a_day(store, None):
        assert (told["quality"]["state"], told["quality"]["completeness_ppm"]) == ("unknown", None)
    put(
        store,
        "kalshi.book.v1",
        [BookSnapshot(TICKER, 5, T + layout.DAY_US, 1, [], [], 0, None, None, "", 0, 0, 0, 0, 9)],
        None,
        4,
    )
    whole = {}
    for topic in ("kalshi.book.v1", "kalshi.tickers.v1", "kalshi.checkpoints.v1"):
        held = Archive(store).held_of(topic, 0)
        told = repack.repack(store, held, 100, "r", T + 9 * layout.DAY_US)
        assert told is not None
        [whole[topic]] = [Archive(store).manifest(entry) for entry in told.files]
    assert whole["kalshi.tickers.v1"]["markets"][TICKER]["quality"]["uncovered_us"] == 200
    assert whole["kalshi.tickers.v1"]["markets"]["KXTEST0-2"]["quality"]["state"] == "unknown"
    checkpoints = whole["kalshi.checkpoints.v1"]["quality"]
    assert (checkpoints["covered_us"], checkpoints["uncovered_us"]) == (59_999_901 - 200, 200)


def test_a_book_that_was_followed_for_long_is_not_said_to_have_begun() -> None:
    def told(first_version: int, first_us: int, last_us: int, gaps: list[Span]) -> Json:
        its = {"first_version": first_version, "first_us": first_us, "gaps": [gap._asdict() for gap in gaps]}
        return {"markets": {TICKER: its}, "time": {"last_us": last_us + 10_000_000}}

    followed = Followed()
    followed.learn(told(9, 100, 200, [Span(50, 100, "x"), Span(150, None, "y")]))
    followed.learn(told(12, 400, 500, [Span(150, 400, "y")]))
    quality = followed.quality(TICKER, 0, 501)
    assert quality is not None
    assert (quality.from_us, quality.uncovered_us, [gap.end_us for gap in quality.gaps]) == (50, 300, [100, 400])
    assert followed.quality(TICKER, 0, 50) is None and followed.quality("KXOTHER-1", 0, 9) is None


@pytest.mark.parametrize(
    ("topic", "event"),
    [
        ("kalshi.lifecycle.v1", Lifecycle(TICKER, "created", T, T, b"{}", 1)),
        ("kalshi.raw.v1", frame(T, channel=TICKERS)),
        ("kalshi.raw.v1", frame(T, kind=RawKind.REST, channel="event", connection=-1, generation=0)),
    ],
)
def test_where_no_record_tells_the_manifest_says_unknown(tmp_path: Path, topic: str, event: object) -> None:
    [told] = put(Folder(tmp_path), topic, [event], Followed())
    assert told["quality"] == {
        "by": None, "state": "unknown", "covered_us": 0, "uncovered_us": 0, "recordable_us": 0, "completeness_ppm": None,
    }  # fmt: skip
    assert "sources" not in told


def test_a_raw_manifest_says_who_delivered_and_what_broke(tmp_path: Path) -> None:
    rows = [frame(T + 10), frame(T + 11, "h"), frame(T + 20), gone(T + 60, T + 50), frame(T + 65, generation=2)]
    [told] = put(Folder(tmp_path), "kalshi.raw.v1", [*rows, frame(T + 70, generation=2), frame(T + 71, kind=RawKind.STALE)], None)
    assert told["markets"][TICKER]["gaps"] == [{"start_us": T + 50, "end_us": T + 65, "cause": "disconnect"}]
    assert (told["quality"]["by"], told["quality"]["state"], told["quality"]["uncovered_us"]) == ("rows", "gap", 15)
    names = ("gatherer", "generation", "first_us", "last_us", "frames", "stale", "breaks")
    assert [tuple(source[name] for name in names) for source in told["sources"]] == [
        ("g", 1, T + 10, T + 71, 2, 1, {"disconnect": 1}),
        ("g", 2, T + 65, T + 70, 2, 0, {}),
        ("h", 1, T + 11, T + 11, 1, 0, {}),
    ]
