"""A recording through the whole pipeline: the gateway's book equals a brute-force fold at any instant, and at every edge.

Once through one gatherer, and once through three of which one after the other is hurt: then nothing at all may differ.
"""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.e2e import brute
from tests.e2e.running import Up, alive
from tests.support import recordings

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(900)]
INSTANTS = 2_000
AT_ONCE = 16


class Played:
    """A recording that was played, with the fold of each market's frames."""

    def __init__(self, up: Up, folds: dict[str, brute.Fold], trades: dict[str, list[str]], instants: int) -> None:
        self.up, self.folds, self.trades, self.instants = up, folds, trades, instants


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["generated", "hurt", "recorded"])
async def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Played]:
    folder = tmp_path_factory.mktemp(request.param)
    hurt: tuple[str, ...] = ()
    if request.param == "generated":
        lines = recordings.write(folder / "recording", seconds=60, rate=60).lines
        source = folder / "recording" / "events"
    elif request.param == "hurt":
        lines = recordings.write(folder / "recording", seconds=300, rate=8, window=100).lines
        source = folder / "recording" / "events"
        hurt = ("--gatherers", "3", "--faults", "7")
    else:
        given = os.getenv("KB_RECORDINGS")
        if not given:
            pytest.skip("KB_RECORDINGS names no folder of real recordings")
        source = Path(given).resolve()
        lines = brute.read(source)
    async with Up(folder / "home", "--recording", str(source), "--speed", "max", "--keep-running", *hurt) as up:
        await up.says("last read back")
        folds = {}
        for ticker in lines:
            rows = await up.list(f"/v1/deltas/{ticker}", limit=1000)
            told = {row["version"]: brute.micros(row["effective_at"]) for row in rows if row["type"] == "snapshot"}
            folds[ticker] = brute.fold([frame for _, frame in lines[ticker]], told)
        trades = {ticker: brute.trades(frame for _, frame in frames) for ticker, frames in lines.items()}
        yield Played(up, folds, trades, INSTANTS // 8 if hurt else INSTANTS)
        pids = up.pids()
        assert await up.interrupt() == 0
        assert alive(pids) == {}


async def same(played: Played, ticker: str, at: int, form: str = "rfc3339") -> None:
    """Compare the gateway's answer at an instant with the fold's."""
    text = {"rfc3339": brute.rfc3339(at), "microseconds": str(at), "seconds": f"{at // 1_000_000}.{at % 1_000_000:06d}"}[form]
    answer = await played.up.get(f"/v1/orderbook/{ticker}", at=text)
    expected = played.folds[ticker].at(at)
    if expected is None:
        assert answer.status_code == 404, answer.text
        assert answer.json()["error"]["code"] == "not_recorded_yet"
        return
    assert answer.status_code == 200, answer.text
    version, book = expected
    body = answer.json()
    assert {"yes": body["yes"], "no": body["no"]} == brute.shown(book), (ticker, text)
    assert (body["version"], body["market_ticker"], body["at"]) == (version, ticker, brute.rfc3339(at))
    assert body["quality"]["gap"] is None


async def all_the_same(played: Played, instants: list[tuple[str, int]], form: str = "rfc3339") -> None:
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(ticker: str, at: int) -> None:
        async with gate:
            await same(played, ticker, at, form)

    async with asyncio.TaskGroup() as tasks:
        for ticker, at in instants:
            tasks.create_task(one(ticker, at))


async def test_random_instants(played: Played) -> None:
    chance = random.Random(7)
    tickers = sorted(played.folds)
    instants = []
    for _ in range(played.instants):
        ticker = chance.choice(tickers)
        times = played.folds[ticker].times
        instants.append((ticker, chance.randint(times[0], times[-1] + 1_000_000)))
    await all_the_same(played, instants)


@pytest.mark.parametrize("form", ["rfc3339", "microseconds", "seconds"])
async def test_the_microsecond_of_a_delta_and_its_neighbours(played: Played, form: str) -> None:
    chance = random.Random(8)
    instants = []
    for ticker, fold in sorted(played.folds.items()):
        for at in chance.sample(fold.times, min(15, len(fold.times))):
            instants += [(ticker, at - 1), (ticker, at), (ticker, at + 1)]
    await all_the_same(played, instants, form)


async def test_before_the_first_snapshot_there_is_nothing_and_it_says_why(played: Played) -> None:
    ticker, fold = sorted(played.folds.items())[0]
    await same(played, ticker, fold.times[0] - 1)
    answer = await played.up.get(f"/v1/orderbook/{ticker}", at=str(fold.times[0] - 1))
    assert brute.rfc3339(fold.times[0]) in answer.text


async def test_after_the_close_and_at_midnight(played: Played) -> None:
    day = 86_400_000_000
    instants = []
    for ticker, fold in sorted(played.folds.items()):
        instants += [(ticker, fold.times[-1]), (ticker, fold.times[-1] + 3_600_000_000)]
        midnight = fold.times[-1] // day * day
        instants += [(ticker, midnight + around) for around in (-1, 0, 1)]
    await all_the_same(played, instants)


async def test_every_event_is_there_once_and_in_order(played: Played) -> None:
    for ticker, fold in played.folds.items():
        rows = await played.up.list(f"/v1/deltas/{ticker}", limit=1000)
        assert [row["version"] for row in rows] == list(range(1, len(fold.times) + 1))
        assert [brute.micros(row["effective_at"]) for row in rows] == fold.times
        assert ["orderbook_" + row["type"] for row in rows] == fold.kinds


async def test_every_trade_is_there_once(played: Played) -> None:
    for ticker, ids in played.trades.items():
        rows = await played.up.list(f"/v1/trades/{ticker}", limit=1000)
        assert sorted(row["trade_id"] for row in rows) == sorted(ids)


async def test_the_latest_book_is_the_last_one(played: Played) -> None:
    for ticker, fold in played.folds.items():
        answer: dict[str, Any] = (await played.up.get(f"/v1/orderbook/{ticker}")).json()
        assert answer["version"] == len(fold.times)
        assert {"yes": answer["yes"], "no": answer["no"]} == brute.shown(fold.books[-1])


async def test_the_state_tells_of_it(played: Played) -> None:
    state = played.up.state()
    events = sum(len(fold.times) for fold in played.folds.values()) + sum(map(len, played.trades.values()))
    assert state["recording"]["done"] is True
    assert state["recording"]["events"] == events
    assert state["gaps"] == state["trade_gaps"] == []
    if faults := state["faults"]:
        injected = {kind for kinds in faults["injected"].values() for kind in kinds}
        assert injected == {"drop", "duplicate", "reset", "error_25", "delay"}
        assert all(each["breaks"] for each in faults["labelled"].values())
