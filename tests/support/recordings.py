"""Writes recordings of generated markets in the format of recorded ones, so that a test can play any and know what is in it.

The order flow is the simulator's; the recorder is imagined here: one connection, book frames on sid 1 and trades on sid 2 with
one `seq` each across all markets, receive times a little after the exchange's, and at each of `deaths` a connection that dies,
stays away, and begins again with seq 1 and a snapshot of each open market. Same arguments, same bytes.
"""

import gzip
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any

import orjson

from kalshibook_core.orderbook import Book
from kalshibook_tools.simulator import frames
from kalshibook_tools.simulator.flow import SECOND, Changed, Flow, Listed
from kalshibook_tools.simulator.market import Delta, Notice, Snapshot, Summary, Trade

MIDNIGHT_US = int(datetime(2026, 9, 2, tzinfo=UTC).timestamp()) * SECOND


@dataclass(slots=True)
class Written:
    """What was written. `lines` are all frames of a market in order of receipt, as (recv_ms, the frame's own bytes)."""

    folder: Path
    lines: dict[str, list[tuple[int, bytes]]] = field(default_factory=lambda: defaultdict(list))
    settled: set[str] = field(default_factory=set)
    deaths_us: list[int] = field(default_factory=list)  # when a connection died
    known_at_death: list[set[str]] = field(
        default_factory=list
    )  # the markets, still to be heard of, that had a book then: a gap each

    @property
    def events(self) -> Path:
        """The folder to play."""
        return self.folder / "events"

    @property
    def frames(self) -> int:
        """All frames of all markets."""
        return sum(map(len, self.lines.values()))


def write(
    folder: Path,
    *,
    seed: int = 1,
    markets: int = 6,
    seconds: float = 40.0,
    rate: float = 50.0,
    window: float = 15.0,
    start_us: int = MIDNIGHT_US - 20 * SECOND,
    deaths: Iterable[float] = (),
    away: float = 0.5,
) -> Written:
    """Record `seconds` of `markets` markets from `start_us` (over UTC midnight) into `folder`/events and `folder`/metadata."""
    flow = Flow(seed=seed, markets=markets, start_us=start_us, window_us=round(window * SECOND))
    recorder = _Recorder(Random(seed), Written(folder), [(start_us + round(at * SECOND), away) for at in deaths])
    for happening in flow.opening():
        recorder.receive(start_us, happening)
    for at_us, happening in flow.advance(start_us + round(seconds * SECOND), rate):
        recorder.receive(at_us, happening)
    recorder.finish()
    return recorder.written


class _Recorder:
    def __init__(self, random: Random, written: Written, deaths: list[tuple[int, float]]) -> None:
        self.written = written
        self._random = random
        self._deaths = sorted(deaths)
        self._back_us: int | None = None  # while the connection is away: when it is back
        self._seq = {1: 0, 2: 0}
        self._books: dict[str, Book] = {}
        self._bodies: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {}
        self._recv_ms = 0
        self._heard_at_death: list[dict[str, int]] = []

    def receive(self, at_us: int, happening: Any) -> None:
        """Let one thing of the flow happen; write it down if the connection stands."""
        if self._back_us is not None and at_us >= self._back_us:
            back_us, self._back_us = self._back_us, None
            self._seq = {1: 0, 2: 0}
            for ticker in sorted(self._books):
                book = self._books[ticker]
                self._write(back_us, ticker, frames.snapshot(ticker, self._bodies[ticker][2], book), 1)
        if self._deaths and at_us >= self._deaths[0][0]:
            died_us, away = self._deaths.pop(0)
            self._back_us = died_us + round(away * SECOND)
            self.written.deaths_us.append(died_us)
            self._heard_at_death.append({ticker: len(lines) for ticker, lines in self.written.lines.items()})
        match happening:
            case Listed(body, event, market_id):
                self._bodies[body["ticker"]] = dict(body), event, market_id
            case Changed(ticker, changes) | Notice(ticker, _, changes):
                if ticker in self._bodies:
                    self._bodies[ticker][0].update(changes)
                if changes.get("status") == "finalized":
                    self._books.pop(ticker)  # a settled market is unsubscribed
                    self.written.settled.add(ticker)
            case Snapshot(ticker, frame, yes, no):
                self._books[ticker] = Book(yes, no)
                self._write(at_us, ticker, frame, 1)
            case Delta(ticker, frame, ts_us, side, price, size):
                self._books[ticker].apply(side, price, size)
                self._write(ts_us, ticker, frame, 1)
            case Trade(ticker, frame, ts_us):
                self._write(ts_us, ticker, frame, 2)
            case Summary():
                pass  # the recorder had no ticker subscription

    def finish(self) -> None:
        """Write the files: a day a file, beside them what REST showed in the end."""
        for heard in self._heard_at_death:
            self.written.known_at_death.append({t for t, count in heard.items() if len(self.written.lines[t]) > count})
        for ticker, lines in self.written.lines.items():
            days: dict[str, list[bytes]] = defaultdict(list)
            for recv_ms, frame in lines:
                day = datetime.fromtimestamp(recv_ms / 1000, UTC).date().isoformat()
                days[day].append(b'{"recv_ms":%d,"event":%b}\n' % (recv_ms, frame))
            for day, texts in days.items():
                path = self.written.events / ticker / f"{day}.ndjson.gz"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(gzip.compress(b"".join(texts), compresslevel=1, mtime=0))
        by_event: dict[str, list[str]] = defaultdict(list)
        for ticker in self.written.lines:
            by_event[self._bodies[ticker][1]["event_ticker"]].append(ticker)
        metadata = self.written.folder / "metadata"
        metadata.mkdir(parents=True, exist_ok=True)
        for event_ticker, tickers in by_event.items():
            response = {"event": self._bodies[tickers[0]][1], "markets": [self._bodies[ticker][0] for ticker in tickers]}
            (metadata / f"{event_ticker}.json").write_bytes(orjson.dumps({"response": response, "status": 200}))

    def _write(self, ts_us: int, ticker: str, frame: frames.Frame, sid: int) -> None:
        if self._back_us is not None:
            return
        self._seq[sid] += 1
        # From a clock a little behind the exchange's to a slow network; one connection, so the order is the order of sending.
        self._recv_ms = max(self._recv_ms, ts_us // 1000 + self._random.choice((-20, 5, 12, 40, 300)))
        self.written.lines[ticker].append((self._recv_ms, frame.render(sid, self._seq[sid]).rstrip(b"\n")))
