"""What all gatherers lose at once is a gap with its cause, and outside of gaps every book and every trade is the true one.

(What one of three loses is not missed at all: `test_recording` plays a recording so, too.)
"""

import asyncio
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.e2e import brute
from tests.e2e.running import Up, kb
from tests.support import recordings

pytestmark = pytest.mark.timeout(900)
AT_ONCE = 16
CAUSES = {"upstream_sequence_gap", "disconnect", "terminal_subscription_error"}
LABELS = {"drop": "sequence_gap", "duplicate": "duplicate", "reset": "reconnect", "error_25": "terminal_error"}


def until_the_close(frames: Iterable[bytes]) -> Iterator[bytes]:
    """Yield a market's frames up to the empty book that it closes with: from when that held depends on who heard it."""
    snapshots = 0
    for frame in frames:
        snapshots += b'"orderbook_snapshot"' in frame
        if snapshots > 1:
            return
        yield frame


async def test_what_all_lose_is_a_gap_and_all_else_is_true(tmp_path: Path) -> None:
    written = recordings.write(tmp_path / "recording", seconds=150, rate=12, window=60)
    home = tmp_path / "home"
    hurt = ("--gatherers", "2", "--faults", "7", "--faults-overlap")
    async with Up(home, "--recording", str(written.events), "--speed", "max", "--keep-running", *hurt) as up:
        await up.says("the merged stream has")
        status = json.loads(kb(home, "status", "--json").stdout)
        faults = status["faults"]
        for gatherer in ("g1", "g2"):
            injected = {kind: faults["injected"][gatherer][kind] for kind in LABELS}
            assert injected == {kind: faults["labelled"][gatherer][label] for kind, label in LABELS.items()}
            assert min(injected.values()) > 0
        assert sum(faults["gaps"].values()) == len(status["gaps"]) > 0
        assert faults["gaps"].keys() | faults["trade_gaps"].keys() <= CAUSES
        assert all(gap["end"] for gap in status["gaps"])

        chance = random.Random(7)
        gate = asyncio.Semaphore(AT_ONCE)
        exact = hidden = 0

        async def compare(ticker: str, fold: brute.Fold, at: int) -> None:
            nonlocal exact, hidden
            async with gate:
                answer = await up.get(f"/v1/orderbook/{ticker}", at=str(at))
            known = fold.at(at)
            if known is None:
                assert answer.status_code == 404, answer.text
                return
            assert answer.status_code == 200, (ticker, at, answer.text)
            body = answer.json()
            if body["quality"]["gap"] is not None:
                hidden += 1
                return
            assert {"yes": body["yes"], "no": body["no"]} == brute.shown(known[1]), (ticker, brute.rfc3339(at))
            exact += 1

        async with asyncio.TaskGroup() as tasks:
            for ticker, lines in written.lines.items():
                rows = await up.list(f"/v1/deltas/{ticker}", limit=1000)
                assert [row["version"] for row in rows] == list(range(1, len(rows) + 1)), ticker
                fold = brute.fold(until_the_close(frame for _, frame in lines), {1: brute.micros(rows[0]["effective_at"])})
                ends = [
                    brute.micros(gap[end]) for gap in status["gaps"] if gap["market_ticker"] == ticker for end in ("start", "end")
                ]
                times = chance.sample(fold.times, min(40, len(fold.times)))
                for at in {edge + off for edge in (*ends, *times) for off in (-1, 0, 1)}:
                    if at < fold.times[-1]:
                        tasks.create_task(compare(ticker, fold, at))
        assert exact > 10 * len(written.lines)
        assert hidden > 0

        # What the block of an answer lists is exactly that: no gap is missing from it, and none is made up.
        for ticker in written.lines:
            rows = await up.list(f"/v1/deltas/{ticker}", limit=1000)
            span = {"from": rows[0]["effective_at"], "to": rows[-1]["effective_at"]}
            lost = [
                {name: gap[name] for name in ("start", "end", "cause")}
                for gap in status["gaps"]
                if gap["market_ticker"] == ticker and gap["start"] < span["to"] and gap["end"] > span["from"]
            ]
            quality = (await up.get(f"/v1/deltas/{ticker}", limit="1000", **span)).json()["quality"]
            assert quality["gaps"] == sorted(lost, key=lambda gap: gap["start"]), ticker
            assert quality["state"] == ("gap" if lost else "complete")
            assert (await up.get(f"/v1/deltas/{ticker}", limit="1000", strict="true", **span)).status_code == (
                409 if lost else 200
            )

        for ticker, lines in written.lines.items():
            served = {row["trade_id"] for row in await up.list(f"/v1/trades/{ticker}", limit=1000)}
            gaps = [
                (brute.micros(gap["start"]), brute.micros(gap["end"]))
                for gap in status["trade_gaps"]
                if gap["market_ticker"] == ticker
            ]
            for _, frame in lines:
                message = json.loads(frame)
                if message["type"] == "trade" and message["msg"]["trade_id"] not in served:
                    at = message["msg"]["ts_ms"] * 1000
                    assert any(start - 1000 < at < end for start, end in gaps), (ticker, at)
