"""`kb up` as on a first day: what it prints works, what is killed comes back, what it serves was true, Ctrl-C ends all."""

import contextlib
import json
import os
import re
import resource
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.running import START_WITHIN, Up, alive, kb
from tests.support.service import until

pytestmark = pytest.mark.timeout(900)  # a minute alone, many on a machine that has others to serve
STATUS_KEYS = {"state", "gateway", "demo_key", "services", "recording", "gaps", "trade_gaps", "faults"}
SERVICES = {"ingest", "deduplicator", "persister", "archive", "reconstructor", "gateway", "backfill"}
RESTS = {"disconnect", "exchange_maintenance"}
"""What the end of a connection is told as: the latter while the exchange has its weekly pause, by the real clock."""
FAULTS = {
    "malformed": None,
    "unknown_type": None,
    "big_frame": None,
    "duplicate": None,
    "negative_level": {"parse_failure"},
    "unparsable": {"parse_failure"},
    "drop": {"upstream_sequence_gap"},
    "error_25": {"terminal_subscription_error"},
    "reset": RESTS,
}
"""What is done to the stream, and the cause of the gap it leaves."""
GENERATED = ("--markets", "12", "--rate", "120")
"""At more, the simulator forgets what was true of the busiest market before a slow machine ends its first day."""


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def truth_book(rows: list[dict[str, Any]]) -> tuple[dict[int, int], dict[int, int]]:
    """Fold what the exchange says was true, in plain integers."""
    sides: dict[str, dict[int, int]] = {"yes": {}, "no": {}}
    for row in rows:
        if row["type"] == "snapshot":
            sides = {name: {price: size for price, size in row[name]} for name in sides}
        elif row["type"] == "delta":
            side = sides[row["side"]]
            side[row["price"]] = side.get(row["price"], 0) + row["delta"]
            if not side[row["price"]]:
                del side[row["price"]]
    return sides["yes"], sides["no"]


def served_book(body: dict[str, Any]) -> tuple[dict[int, int], dict[int, int]]:
    """Return a book of the API in plain integers."""
    return tuple(  # type: ignore[return-value]
        {int(price.replace(".", "")): int(size.replace(".", "")) for price, size in body[side]} for side in ("yes", "no")
    )


async def equal_to_the_truth(up: Up) -> set[str]:
    """Pause the exchange; every book must come to equal what was true, now and through the database, versions without a hole.

    Return whose: not of a market that has closed, as some do each quarter of an hour. It is not in the list that a gatherer reads
    which comes later, so what that one missed of it, or all of it, stays in a gap.
    """
    info = json.loads((up.home / "simulator.json").read_text())
    control = info["control_url"]
    (await up.client.post(f"{control}/pause")).raise_for_status()
    listed = await up.client.get(info["rest_url"] + "/markets", params={"status": "open,unopened", "limit": "1000"})
    tickers = {market["ticker"] for market in listed.raise_for_status().json()["markets"]}
    assert len(tickers) > 10
    for ticker in tickers:
        truth = [json.loads(line) for line in (await up.client.get(f"{control}/truth/{ticker}")).text.splitlines()]
        expected = truth_book(truth)

        async def settled(ticker: str = ticker, expected: object = expected) -> bool:
            try:
                now = await up.get(f"/v1/orderbook/{ticker}")
                then = await up.get(f"/v1/orderbook/{ticker}", at="9999-12-31T00:00:00Z")
                if now.status_code != 200 or then.status_code != 200 or now.json()["quality"]["gap"]:
                    return False
                if not served_book(now.json()) == served_book(then.json()) == expected:
                    return False
                rows = await up.list(f"/v1/deltas/{ticker}", limit=1000)
            except httpx.TransportError:  # the gateway may end with the broker, and is started again
                return False
            assert [row["version"] for row in rows] == list(range(1, len(rows) + 1)), ticker
            return True

        try:
            await until(settled, START_WITHIN)
        except TimeoutError:
            now = await up.get(f"/v1/orderbook/{ticker}")
            then = await up.get(f"/v1/orderbook/{ticker}", at="9999-12-31T00:00:00Z")
            raise AssertionError(f"{ticker}: served now {now.text}\nat the end of time {then.text}\ntrue {expected}") from None
    (await up.client.post(f"{control}/resume")).raise_for_status()
    return tickers


async def test_the_first_day(tmp_path: Path) -> None:
    home = tmp_path / "home"
    async with Up(home, *GENERATED, KB_ARCHIVE=str(home / "archive"), KB_ARCHIVE_SECONDS="2") as up:
        # The screen: three queries that work as printed.
        await up.says("?at=")
        lines = re.findall(r"^\s*(curl .*)$", up.screen, re.MULTILINE)
        assert len(lines) == 3
        for line in lines:
            told = run([*shlex.split(line), "-sS", "--fail"])
            assert told.returncode == 0, (line, told.stderr, told.stdout)
            assert json.loads(told.stdout)

        # kb status --json: the object scripts rely on.
        status = json.loads(kb(home, "status", "--json").stdout)
        assert status.keys() == STATUS_KEYS
        assert status["state"] == "running"
        assert (await up.client.get(status["gateway"]["url"] + "/healthz")).status_code == 200
        assert status["services"].keys() >= SERVICES
        for service in status["services"].values():
            assert service.keys() == {"pid", "state", "restarts", "counters"}
            assert service["restarts"] == 0

        async def all_run() -> bool:
            return all(service["state"] == "running" for service in up.state()["services"].values())

        await until(all_run, START_WITHIN)  # one that is too busy to answer is not said to run

        # A second one in the same home is refused in one line; so is a reset.
        second = kb(home, "up")
        assert (second.returncode, second.stderr.count("\n")) == (1, 1)
        assert "kb down" in second.stderr
        assert kb(home, "reset", "--yes").returncode == 1
        await equal_to_the_truth(up)

        # SIGKILL each in turn: it is told, started again and counted, and nothing of the truth is lost.
        for name in (
            "simulator",
            "ingest",
            "deduplicator",
            "persister",
            "archive",
            "reconstructor",
            "gateway",
            "redis",
            "postgres",
            "kafka",
        ):
            os.kill(up.pids()[name], signal.SIGKILL)

            async def back(name: str = name) -> bool:
                service = up.state()["services"][name]
                return bool(service["restarts"] and service["state"] == "running")

            await until(back, START_WITHIN)
            assert f"{name} was ended by signal 9" in up.screen
        equal = await equal_to_the_truth(up)

        async def all_ended() -> bool:
            return all(gap["end"] for gap in up.state()["gaps"] if gap["market_ticker"] in equal)

        await until(all_ended, START_WITHIN)
        status = json.loads(kb(home, "status", "--json").stdout)
        assert {gap["cause"] for gap in status["gaps"]} <= RESTS
        versions = await versions_of(up)

        # Ctrl-C leaves nothing running, and the next start goes on where the data stands.
        pids = up.pids()
        assert await up.interrupt() == 0
        assert alive(pids) == {}
        assert json.loads(kb(home, "status", "--json").stdout)["state"] == "stopped"
        key = status["demo_key"]
        up.start()
        await up.says("?at=")
        assert up.state()["demo_key"] == key
        after = await versions_of(up)
        assert all(after[ticker] >= version for ticker, version in versions.items())
        await equal_to_the_truth(up)

        # What stands in the archive and in the database is what the raw frames say: every table, version and checksum.
        proved = kb(home, "verify", "--json")
        assert proved.returncode == 0, proved.stdout + proved.stderr
        counts = json.loads(proved.stdout)["counts"]
        assert min(counts["events_proved"], counts["rows_proved"]) > 1000, counts


async def versions_of(up: Up) -> dict[str, int]:
    """Return how far each market is that has a book."""
    books = {market["ticker"]: await up.get(f"/v1/orderbook/{market['ticker']}") for market in await up.list("/v1/markets")}
    return {ticker: book.json()["version"] for ticker, book in books.items() if book.status_code == 200}


async def test_detached_and_killed_what_it_left_is_told_and_cleaned_up_after(tmp_path: Path) -> None:
    home = tmp_path / "home"
    asked = Up(home)
    try:
        up = kb(home, "up", "--detach", *GENERATED)
        assert up.returncode == 0, up.stdout + up.stderr
        assert up.stdout.count("curl ") == 3
        status = json.loads(kb(home, "status", "--json").stdout)
        assert status["state"] == "running"
        made = kb(home, "keys", "create", "--account", "alice", "--plan", "free")
        assert made.stdout.startswith("kb_live_")
        assert "alice" in kb(home, "keys", "list").stdout
        assert "applied 0 migrations" in kb(home, "migrate").stdout

        left = asked.pids()
        killed = psutil.Process(asked.state()["pid"])
        killed.kill()
        await until(lambda: gone(killed))
        assert alive(left) == left
        status = json.loads(kb(home, "status", "--json").stdout)
        assert (status["state"], status["gateway"]["url"]) == ("stopped", None)
        assert {name for name, service in status["services"].items() if service["state"] == "leftover"} == left.keys()
        assert kb(home, "reset", "--yes").returncode == 1

        again = kb(home, "up", "--detach", *GENERATED)
        assert again.returncode == 0, again.stdout + again.stderr
        assert alive(left) == {}
        await equal_to_the_truth(asked)
        assert sum((await versions_of(asked)).values()) > 0
        pids = asked.pids()
        assert alive(pids) == pids
    finally:
        await asked.client.aclose()
        down = kb(home, "down")
    assert (down.returncode, down.stdout) == (0, "stopped\n")
    assert alive(pids) == {}


async def gone(process: psutil.Process) -> bool:
    """Return whether a process has ended."""
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


async def test_bad_input_is_kept_counted_and_told_and_ends_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    # In asyncio's debug mode, where a call from the wrong thread ends a service: every one of them, through all of this.
    env = {"PYTHONASYNCIODEBUG": "1", "KB_ARCHIVE": str(home / "archive"), "KB_ARCHIVE_SECONDS": "2"}
    async with Up(home, *GENERATED, **env) as up:
        await up.says("?at=")
        control = json.loads((home / "simulator.json").read_text())["control_url"]
        ticker = next(iter(await versions_of(up)))
        for kind, causes in FAULTS.items():
            known = {(gap["market_ticker"], gap["start"]) for gap in up.state()["gaps"]}

            async def healed(causes: set[str] | None = causes, known: set[tuple[str, str]] = known) -> bool:
                gaps = up.state()["gaps"]
                found = {gap["cause"] for gap in gaps if (gap["market_ticker"], gap["start"]) not in known}
                return all(gap["end"] for gap in gaps) and (causes is None or not found.isdisjoint(causes))

            # A bad frame that comes while its market lies in a gap already makes no other one: then it is sent again.
            for _ in range(6):
                answer = await up.client.post(f"{control}/faults", json={"kind": kind, "channel": "orderbook_delta"})
                assert answer.status_code == 200, answer.text
                with contextlib.suppress(TimeoutError):
                    await until(healed, 10)
                    break
            else:
                raise AssertionError(f"{kind} left no {causes}: {up.state()['gaps']}")
        off_grid = {"kind": "off_grid", "market_ticker": ticker}
        assert (await up.client.post(f"{control}/faults", json=off_grid)).status_code == 200
        await equal_to_the_truth(up)
        assert {service["restarts"] for service in up.state()["services"].values()} == {0}

        # A full disk under KB_HOME ends nothing; what dies meanwhile is started again when there is room.
        assert up.process is not None
        limit = resource.prlimit(up.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(up.process.pid, resource.RLIMIT_FSIZE, (0, limit[1]))
        os.kill(up.pids()["gateway"], signal.SIGKILL)

        async def is_full() -> bool:
            return time.time() - (home / "state.json").stat().st_mtime > 3  # noqa: TID251

        await until(is_full, START_WITHIN)
        resource.prlimit(up.process.pid, resource.RLIMIT_FSIZE, limit)

        async def back() -> bool:
            gateway = up.state()["services"]["gateway"]
            return bool(gateway["restarts"]) and gateway["state"] == "running"

        await until(back, START_WITHIN)

        unknown = await up.get("/v1/orderbook/NO-SUCH")
        bad = await up.get(f"/v1/orderbook/{ticker}", at="yesterday")
        without = await up.client.get(up.state()["gateway"]["url"] + "/v1/markets")
        assert [answer.status_code for answer in (unknown, bad, without)] == [404, 422, 401]
        for answer in (unknown, bad, without):
            assert answer.json()["error"].keys() >= {"code", "message"}


@pytest.mark.parametrize("port", ["gateway", "simulator"])
async def test_a_port_in_use_is_told_in_one_line(tmp_path: Path, port: str) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        told = kb(tmp_path / "home", "up", f"--{port}-port", str(number))
    assert told.returncode == 1
    assert f"port {number} is in use" in told.stderr
    assert told.stderr.count("\n") == 1
