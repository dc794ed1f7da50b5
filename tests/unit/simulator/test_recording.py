"""Recordings are read as they stand: bytes, order, deaths; what is none is refused by file and line."""

import gzip
from pathlib import Path

import orjson
import pytest

from kalshibook_tools.simulator import frames, recording
from kalshibook_tools.simulator.recording import UnreadableRecording
from tests.support import recordings

GOOD = b'{"recv_ms":1000,"event":{"type":"orderbook_snapshot","sid":1,"seq":5,"msg":{"market_ticker":"KXA-1","market_id":""}}}\n'


def test_every_frame_comes_with_its_own_bytes_in_the_order_of_receipt(tmp_path: Path):
    written = recordings.write(tmp_path, seconds=20)
    played = list(recording.play(recording.scan((tmp_path,))))
    assert [p.recv_ms for p in played] == sorted(p.recv_ms for p in played)
    for ticker, lines in written.lines.items():
        mine = [p for p in played if p.event.ticker == ticker]
        assert [p.recv_ms for p in mine] == [recv_ms for recv_ms, _ in lines]
        for p, (_, event) in zip(mine, lines, strict=True):
            original = orjson.loads(event)
            assert p.event.frame.render(original["sid"], original["seq"]) == event + b"\n"


def test_markets_are_described_by_what_stands_beside_them(tmp_path: Path):
    written = recordings.write(tmp_path, seconds=40)
    known = recording.scan((tmp_path / "events",)).markets
    assert set(known) == set(written.lines) and written.settled
    for ticker, market in known.items():
        assert market.body["status"] == "active" and market.body["ticker"] == ticker
        assert (market.final is not None) == (ticker in written.settled)


def test_a_recording_without_metadata_is_given_a_plausible_market(tmp_path: Path):
    path = tmp_path / "one.ndjson"
    path.write_bytes(GOOD.replace(b'"market_id":""', b'"market_id":"","yes_dollars_fp":[["0.4850","1.00"]]'))
    market = recording.scan((path,)).markets["KXA-1"]
    assert (market.body["event_ticker"], market.event["series_ticker"]) == ("KXA", "KXA")
    assert market.body["price_level_structure"] == "deci_cent" and market.final is None


@pytest.mark.parametrize("deaths", [(), (8.0,), (8.0, 21.0)])
def test_each_death_of_the_recorder_is_found_once(tmp_path: Path, deaths: tuple[float, ...]):
    written = recordings.write(tmp_path, seconds=40, deaths=deaths)
    found = recording.scan((tmp_path,))
    assert len(found.deaths) == len(deaths)
    for died_ms, known in zip(found.deaths, written.known_at_death, strict=True):
        assert known == {t for t, m in found.markets.items() if m.snapshots[0][1] <= died_ms and m.begins_anew_after(died_ms)}


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (b"not json\n", "not a line"),
        (b'{"recv_ms":"1000","event":{}}\n', "not a line"),
        (b'{"recv_ms":1000,"event":{"type":"orderbook_delta"\n', "not a line"),
        (b'{"recv_ms":1000,"event":{"type":"orderbook_delta",,}}\n', "JSON"),
        (b'{"recv_ms":1000,"event":{"type":"subscribed","sid":1,"msg":{"market_ticker":"KXA-1"}}}\n', "no market's"),
        (GOOD.replace(b"snapshot", b"delta"), "orderbook_delta"),
        (GOOD.replace(b'"sid":1,', b""), "no sid"),
    ],
)
def test_a_line_that_is_no_frame_is_refused_with_its_place(tmp_path: Path, bad: bytes, why: str):
    path = tmp_path / "events.ndjson.gz"
    path.write_bytes(gzip.compress(GOOD + bad))
    with pytest.raises(UnreadableRecording, match=why) as refusal:
        recording.scan((tmp_path,))
    assert f"{path}:2:" in str(refusal.value)


def test_what_is_no_recording_is_refused(tmp_path: Path):
    with pytest.raises(UnreadableRecording, match="no such file"):
        recording.scan((tmp_path / "none",))
    with pytest.raises(UnreadableRecording, match="no frame"):
        recording.scan((tmp_path,))
    cut = tmp_path / "cut.ndjson.gz"
    cut.write_bytes(gzip.compress(GOOD * 100)[:-20])
    with pytest.raises(UnreadableRecording, match=r"ended"):
        recording.scan((cut,))


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (b'{"type":"trade","sid":7,"seq":123456,"msg":{}}', b'{"type":"trade","sid":2,"seq":9,"msg":{}}\n'),
        (b'{"msg":{}, "seq": 123, "sid": 7,"type":"trade"}', b'{"msg":{}, "seq": 9, "sid": 2,"type":"trade"}\n'),
        (b'{"type":"ticker","sid":11,"msg":{}}', b'{"type":"ticker","sid":2,"msg":{}}\n'),
        (
            b'{"type":"trade","sid":1,"seq":2,"msg":{"t":"\\"sid\\":5"}}',
            b'{"type":"trade","sid":2,"seq":9,"msg":{"t":"\\"sid\\":5"}}\n',
        ),
    ],
)
def test_only_sid_and_seq_are_renumbered(event: bytes, expected: bytes):
    assert frames.cut(event, "trade").render(2, 9) == expected


def test_times_are_printed_as_the_exchange_prints_them():
    printed = [frames.rfc3339(us) for us in (1_786_000_000_000_000, 1_786_000_000_427_840, 1_786_000_000_000_001)]
    assert printed == ["2026-08-06T07:06:40Z", "2026-08-06T07:06:40.42784Z", "2026-08-06T07:06:40.000001Z"]
