"""The same recording gives the same canonical stream at every speed, and says exactly which gaps there are."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import brute
from tests.e2e.running import Up, alive, kb
from tests.support import recordings

pytestmark = pytest.mark.timeout(900)
Stream = dict[str, list[dict[str, Any]]]


async def play(home: Path, recording: Path, speed: str) -> tuple[Stream, dict[str, Any], list[dict[str, Any]]]:
    """Play a recording in a home, and return its canonical stream, the state as `kb status` tells it, and its trades."""
    async with Up(home, "--recording", str(recording), "--speed", speed, "--keep-running") as up:
        await up.says("last read back")
        tickers = [market["ticker"] for market in await up.list("/v1/markets", limit=100)]
        stream = {ticker: await up.list(f"/v1/deltas/{ticker}", limit=1000) for ticker in tickers}
        trades = [row for ticker in tickers for row in await up.list(f"/v1/trades/{ticker}", limit=1000)]
        status = json.loads(kb(home, "status", "--json").stdout)
        pids = up.pids()
        assert await up.interrupt() == 0
        assert alive(pids) == {}
    for row in [row for rows in stream.values() for row in rows] + trades:
        del row["recv_at"]  # the local clock's, and nothing else may differ
    return stream, status, trades


def differences(one: Stream, other: Stream) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Return where two streams differ.

    A connection's first snapshots may: their effective time is when the handshake's clock says they came. So may what
    that time holds back: events the exchange stamped earlier and gaps, which take it for theirs; and the end of the gap it ends.
    """
    found = []
    for ticker in one.keys() | other.keys():
        rows = zip(one.get(ticker, []), other.get(ticker, []), strict=True)
        firsts = ["", ""]
        for left, right in rows:
            if left["version"] == 1 or left.get("gap"):
                firsts = [left["effective_at"], right["effective_at"]]
            times = left.pop("effective_at"), right.pop("effective_at")
            gaps = [row.get("gap") or row for row in (left, right)]
            bounded = any(gap.get("start") == first for gap, first in zip(gaps, firsts, strict=True))  # in one play, or both
            for gap in gaps:
                gap.pop("end", None)
                if bounded or left["type"] == "snapshot":
                    gap.pop("start", None)  # a gap's own row has it
            held_back = times[0] == firsts[0] or times[1] == firsts[1]
            if left != right or (times[0] != times[1] and not held_back):
                found.append((ticker, left | {"effective_at": times[0]}, right | {"effective_at": times[1]}))
    return found


async def test_the_speed_changes_nothing(tmp_path: Path) -> None:
    written = recordings.write(tmp_path / "recording", seconds=60, rate=40, deaths=[3])
    fast, _, fast_trades = await play(tmp_path / "fast", written.events, "max")
    slow, _, slow_trades = await play(tmp_path / "slow", written.events, "60")
    assert sum(map(len, fast.values())) > 1_000
    found = differences(fast, slow)
    assert not found, found[:3]
    assert fast_trades == slow_trades


async def test_where_seq_starts_over_there_is_a_gap_for_whoever_had_a_book(tmp_path: Path) -> None:
    written = recordings.write(tmp_path / "recording", seconds=60, rate=40, deaths=[15, 40], away=2.0)
    home = tmp_path / "home"
    stream, status, _ = await play(home, written.events, "max")
    told = sorted((gap["market_ticker"], gap["cause"]) for gap in status["gaps"])
    assert told == sorted((ticker, "disconnect") for known in written.known_at_death for ticker in known)
    for gap in status["gaps"]:
        died = [at for at in written.deaths_us if brute.micros(gap["start"]) <= at < brute.micros(gap["end"])]
        assert len(died) == 1, gap
        assert died[0] - brute.micros(gap["start"]) <= 10_500_000
    for ticker, rows in stream.items():
        assert [row["version"] for row in rows] == list(range(1, len(rows) + 1)), ticker
        opened = [row for row in rows if row["type"] == "gap"]
        ended = [row for row in rows if row["type"] == "snapshot" and row["gap"]]
        assert len(opened) == len(ended) == sum(ticker in known for known in written.known_at_death)

    # Once more in the same home: appended behind, numbered on, never back in time; trades known by their ids do not repeat.
    again, status, trades = await play(home, written.events, "max")
    for ticker, rows in again.items():
        assert [row["version"] for row in rows] == list(range(1, len(rows) + 1))
        assert len(rows) > len(stream[ticker])
        assert rows[: len(stream[ticker]) - 1] == stream[ticker][:-1]
        times = [row["effective_at"] for row in rows]
        assert times == sorted(times)
    ids = [row["trade_id"] for row in trades]
    assert len(ids) == len(set(ids))


async def test_a_recording_ends_by_itself(tmp_path: Path) -> None:
    written = recordings.write(tmp_path / "recording", seconds=10, rate=30)
    home = tmp_path / "home"
    async with Up(home, "--recording", str(written.events), "--speed", "max") as up:
        assert await up.ended() == 0, up.screen
        assert f"{len(written.lines)} markets" in up.screen
        assert "0 gaps" in up.screen
        assert alive(up.pids()) == {}
    status = json.loads(kb(home, "status", "--json").stdout)
    assert status["state"] == "stopped"
    assert status["recording"]["done"] is True
    assert kb(home, "reset", "--yes").returncode == 0
    assert not home.exists()


async def test_what_is_no_recording_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.ndjson").write_text('{"recv_ms": 1}\n')
    async with Up(tmp_path / "home", "--recording", str(tmp_path / "bad.ndjson"), "--speed", "max") as up:
        assert await up.ended() == 1
        assert "bad.ndjson:1" in up.screen
        assert "Traceback" not in up.screen
