"""Recorded files as raw records: what a gatherer would have said, in one order, and bad lines named."""

import gzip
from pathlib import Path

import orjson
import pytest

from kalshibook_core.wire.events import BOOK, TRADES
from services.ingest.recordings import NotRecorded, Recording
from tests.support import recordings


def frame(kind: str, ticker: str, sid: int, seq: int, **msg: object) -> bytes:
    return orjson.dumps({"type": kind, "sid": sid, "seq": seq, "msg": {"market_ticker": ticker, **msg}})


def line(recv_ms: int, payload: bytes) -> bytes:
    return b'{"recv_ms":%d,"event":%b}\n' % (recv_ms, payload)


def said(recording: Recording, leave_out: tuple[str, ...] = ()) -> list[tuple[object, ...]]:
    """Everything but the STARTs: kind, channel, market, generation, clock in ms."""
    survey = recording.survey()
    left = {ticker: extent.frames for ticker, extent in survey.markets.items() if ticker not in leave_out}
    records = [raw for raw in recording.records(left) if raw.kind != "START"]
    assert not any(left.values())
    return [(raw.kind, raw.channel, raw.market_ticker, raw.generation, raw.clock_us // 1000) for raw in records]


def test_a_market_begins_and_ends_with_its_files_and_breaks_where_the_recorder_s_connection_died(tmp_path: Path) -> None:
    one = [
        line(1000, frame("orderbook_snapshot", "KX-A", 1, 5)),
        line(1001, frame("trade", "KX-A", 2, 1, ts_ms=1010)),
        line(9000, frame("orderbook_snapshot", "KX-A", 1, 1)),
    ]
    two = [line(1002, frame("orderbook_delta", "KX-B", 1, 6, ts_ms=1004)), line(9500, frame("orderbook_delta", "KX-B", 1, 2))]
    (tmp_path / "one.ndjson").write_bytes(b"".join(one))
    (tmp_path / "two.ndjson.gz").write_bytes(gzip.compress(b"".join(two)))
    first, second = 1_000_000, 1_002_001
    expected = [
        ("RESUME", TRADES, "KX-A", first, 1000), ("FRAME", BOOK, "KX-A", first, 1000),
        ("FRAME", TRADES, "KX-A", first, 1010),
        ("RESUME", TRADES, "KX-B", first, 1002), ("FRAME", BOOK, "KX-B", first, 1010),
        ("BREAK", BOOK, "KX-A", first, 1004), ("BREAK", TRADES, "KX-A", first, 1010),
        ("BREAK", BOOK, "KX-B", first, 1004), ("BREAK", TRADES, "KX-B", first, 1010),
        ("RESUME", TRADES, "KX-A", second, 9000), ("FRAME", BOOK, "KX-A", second, 9000),
        ("BREAK", BOOK, "KX-A", second, 0), ("BREAK", TRADES, "KX-A", second, 0),
        ("RESUME", TRADES, "KX-B", second, 9500), ("FRAME", BOOK, "KX-B", second, 9500),
        ("BREAK", BOOK, "KX-B", second, 0), ("BREAK", TRADES, "KX-B", second, 0),
    ]  # fmt: skip
    assert said(Recording((tmp_path,), "import-x", 2)) == expected
    assert len(said(Recording((tmp_path,), "import-x", 2), leave_out=("KX-B",))) == 9


def test_every_frame_is_there_verbatim_and_the_same_files_make_the_same_records(tmp_path: Path) -> None:
    written = recordings.write(tmp_path, seconds=10, window=4, deaths=[5.0])
    made = []
    for _ in range(2):
        recording = Recording((written.events,), "import-x", 4)
        survey = recording.survey()
        assert {ticker: extent.frames for ticker, extent in survey.markets.items()} == {
            ticker: len(lines) for ticker, lines in written.lines.items()
        }
        made.append(list(recording.records({ticker: extent.frames for ticker, extent in survey.markets.items()})))
        assert all(recording.owns(raw) for raw in made[-1])
    assert made[0] == made[1]
    for ticker, lines in written.lines.items():
        frames = [(raw.recv_us // 1000, raw.payload) for raw in made[0] if raw.kind == "FRAME" and raw.market_ticker == ticker]
        assert frames == lines
    assert {raw.market_ticker for raw in made[0] if raw.kind == "REST" and not raw.channel} == written.settled


def test_bad_lines_are_named_and_the_others_taken(tmp_path: Path) -> None:
    good = line(1000, frame("orderbook_snapshot", "KX-A", 1, 1))
    (tmp_path / "a.ndjson").write_bytes(good + b"nothing\n\n" + line(1, b'{"type":"ok","sid":1}') + good)
    cut = gzip.compress(good * 50)[:-12]
    (tmp_path / "b.jsonl.gz").write_bytes(cut)
    survey = Recording((tmp_path,), "import-x", 1).survey()
    *lines, ending = survey.bad
    assert [why.partition(": ")[0] for why in lines] == [f"{tmp_path}/a.ndjson:{number}" for number in (2, 4)]
    assert ending.startswith(f"{tmp_path}/b.jsonl.gz:") and ending.endswith("what follows is not read")
    assert 2 < survey.markets["KX-A"].frames < 52
    with pytest.raises(NotRecorded):
        Recording((tmp_path / "none",), "import-x", 1)
