"""Recorded frames as files: `{"recv_ms": …, "event": {the frame as the exchange sent it}}`, a line a frame, gzipped or not.

`scan` reads everything once and refuses what is not that, by file and line, before anything is played; `play` streams the
lines of all files in the order of `recv_ms`, holding one line of each open file. A file is opened when its first line is due,
so a folder of thousands needs no more open files than overlap.
"""

import gzip
import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from kalshibook_core.kalshi import channels, messages, recorded
from kalshibook_tools.simulator import frames
from kalshibook_tools.simulator.market import Delta, Notice, Snapshot, Trade, definition, fitting_structure

Recordable = Snapshot | Delta | Trade | Notice
_WEEK_US = 7 * 86_400 * 1_000_000


class UnreadableRecording(ValueError):
    """A file or line is no recorded frame; the text says where and why."""


class Played(NamedTuple):
    """One recorded frame, cut for replay."""

    recv_ms: int
    event: Recordable


@dataclass(slots=True)
class Recorded:
    """One market of the recording: how many frames, its definition at the beginning and at the end."""

    frames: int
    market_id: str
    body: dict[str, Any]
    event: dict[str, Any]
    final: dict[str, Any] | None  # the market object as REST showed it after settlement; None where nobody recorded it
    snapshots: list[tuple[int, int]] = field(default_factory=list)  # (receipt of the book frame before it, its own)
    last_book_ms: int = -1

    def begins_anew_after(self, ms: int) -> bool:
        """Return whether the next book frame after this instant is a snapshot."""
        return any(before <= ms < at for before, at in self.snapshots)


@dataclass(frozen=True, slots=True)
class Recording:
    """A checked recording."""

    files: tuple[tuple[int, Path], ...]  # (first recv_ms, path)
    markets: dict[str, Recorded]
    frames: int
    deaths: tuple[int, ...]  # after which receive times the recorder's connection had died

    @property
    def first_ms(self) -> int:
        """The recording's first instant."""
        return min(first for first, _ in self.files)


def scan(paths: tuple[Path, ...]) -> Recording:
    """Find the files under these paths, check every line, learn the markets. UnreadableRecording says what is wrong."""
    files: list[tuple[int, Path]] = []
    markets: dict[str, Recorded] = {}
    streams: dict[tuple[str, int], tuple[int, int]] = {}  # (ticker, sid) -> last (recv_ms, seq)
    restarts: list[tuple[int, int]] = []
    total = 0
    for path in _files(paths):
        first_ms = -1
        for recv_ms, event, envelope in _lines(path):
            first_ms = recv_ms if first_ms < 0 else first_ms
            total += 1
            market = markets.get(event.ticker)
            if market is None:
                market = markets[event.ticker] = _learn(path, recv_ms, event, envelope)
            market.frames += 1
            if event.frame.channel == channels.BOOK:
                if isinstance(event, Snapshot):
                    market.snapshots.append((market.last_book_ms, recv_ms))
                market.last_book_ms = recv_ms
            if envelope.seq >= 0:
                last_ms, last_seq = streams.get((event.ticker, envelope.sid), (-1, -1))
                if envelope.seq <= last_seq and recv_ms >= last_ms:
                    restarts.append((last_ms, recv_ms))
                streams[event.ticker, envelope.sid] = recv_ms, envelope.seq
        if first_ms >= 0:
            files.append((first_ms, path))
    if not files:
        where = ", ".join(map(str, paths))
        raise UnreadableRecording(f"no frame in {where}: give .ndjson or .ndjson.gz files, or a folder of them")
    return Recording(tuple(files), markets, total, recorded.deaths(restarts))


def play(recording: Recording) -> Iterator[Played]:
    """Yield every frame in the order of receipt; of equal times the file given first comes first."""
    waiting: list[tuple[int, int, Any]] = [(first, n, None) for n, (first, _) in enumerate(recording.files)]
    heapq.heapify(waiting)
    while waiting:
        recv_ms, n, head = waiting[0]
        if head is None:
            lines = _lines(recording.files[n][1])
            current = next(lines)
        else:
            lines, current = head
        following = next(lines, None)
        if following is None:
            heapq.heappop(waiting)
        else:
            # A file keeps its own order even where its clock stepped back.
            heapq.heapreplace(waiting, (max(recv_ms, following[0]), n, (lines, following)))
        yield Played(recv_ms, current[1])


def _files(paths: tuple[Path, ...]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.name.endswith((".ndjson", ".ndjson.gz")) and p.is_file())
        elif path.is_file():
            yield path
        else:
            raise UnreadableRecording(f"{path}: no such file or folder")


def _lines(path: Path) -> Iterator[tuple[int, Recordable, messages.Envelope]]:
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            for number, line in enumerate(lines, 1):  # noqa: B007  (told where it fails)
                if line.strip():
                    yield _parse(line)
    except (ValueError, EOFError, OSError) as error:
        raise UnreadableRecording(f"{path}:{number + isinstance(error, EOFError | OSError)}: {error}") from None


def _parse(line: bytes) -> tuple[int, Recordable, messages.Envelope]:
    recv_ms, raw = recorded.read(line)
    envelope = messages.envelope(raw)
    ticker, channel = envelope.market_ticker, messages.CHANNEL_OF_TYPE.get(envelope.type)
    if channel is None or not ticker:
        raise ValueError(f"a frame of type {envelope.type!r} is no market's, so it cannot be played")
    frame = frames.cut(raw, channel)
    event: Recordable
    if channel == channels.BOOK:
        content = messages.parse_book(envelope, yes_price=False)
        if isinstance(content, messages.Snapshot):
            event = Snapshot(ticker, frame, content.yes, content.no)
        else:
            event = Delta(ticker, frame, content.exchange_us, content.side, content.price, content.delta)
    elif channel == channels.TRADES:
        traded = messages.parse_trade(envelope)
        event = Trade(ticker, frame, traded.exchange_us, traded.trade_id, traded.yes_price, traded.size, traded.taker_side)
    else:
        event = Notice(ticker, frame, {})
    return recv_ms, event, envelope


def _learn(path: Path, recv_ms: int, event: Recordable, envelope: messages.Envelope) -> Recorded:
    """Return what is known of a market from its first frame and, where somebody kept them, its REST bodies."""
    ticker, market_id = event.ticker, str(envelope.msg.get("market_id", ""))
    event_ticker = ticker.rpartition("-")[0] or ticker
    for folder in path.absolute().parents:
        kept = folder / "metadata" / f"{event_ticker}.json"
        if kept.is_file():
            try:
                document = orjson.loads(kept.read_bytes())
                document = document.get("response", document)
                final = next((body for body in document["markets"] if body["ticker"] == ticker), None)
                about = document["event"]
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UnreadableRecording(f'{kept}: not a REST body {{"event": …, "markets": […]}}: {error!r}') from None
            if final is not None:
                settled = final if final.get("status") in ("determined", "finalized") else None
                return Recorded(0, market_id, _before(final), about, settled)
    body, about = definition(
        ticker,
        open_us=recv_ms * 1000,
        close_us=recv_ms * 1000 + _WEEK_US,
        status="active",
        structure=fitting_structure(event.yes + event.no) if isinstance(event, Snapshot) else "linear_cent",
    )
    return Recorded(0, market_id, body, about, None)


def _before(final: dict[str, Any]) -> dict[str, Any]:
    """Return a settled market's object as it was while it traded."""
    body = {key: value for key, value in final.items() if key not in ("settlement_ts", "settlement_value_dollars")}
    return {**body, "status": "active", "result": "", "expiration_value": "", "updated_time": final.get("created_time", "")}
