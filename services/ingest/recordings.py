"""Recorded frames as a gatherer would have published them: files of lines in, records of the raw topic out. Reads files only;
those of a bucket are fetched first (`fetch`).

A recording is taken for what one connection received. It says of itself what a gatherer says: a START, a RESUME of the trades
of each market at its first frame, BREAKs where its recorder's connection had died (`seq` begins anew) and where the files of a
market end: of what came after, it knows nothing. A hole in `seq` cannot be seen, since the files may leave out other markets
of its sid.

The same files give the same records, in the same order. Memory holds a few words a market and one line of each open file.
"""

import gzip
import hashlib
import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import orjson

from kalshibook_core.archive.store import Bucket
from kalshibook_core.kafka.cluster import keys_of_partitions
from kalshibook_core.kalshi import markets, messages, recorded
from kalshibook_core.wire.events import BOOK, EVENT, TRADES, Cause, RawFrame, RawKind

ENDINGS: Final = (".ndjson", ".ndjson.gz", ".jsonl", ".jsonl.gz")
MOST_BAD: Final = 1000
"""Lines that are named; of others only their number is told."""

Step = Callable[[int], object]
"""Told of progress."""

Refuse = Callable[[str], object]


class Line(NamedTuple):
    """A frame of a file."""

    recv_ms: int
    payload: bytes
    channel: str
    message: messages.Envelope


@dataclass(slots=True)
class Extent:
    """What there is of one market: how many frames, and when the first one was received."""

    frames: int
    first_us: int


@dataclass(slots=True)
class Survey:
    """What is in files, before anything is taken from them. `bad` names lines that are no frames, each with why."""

    id: str
    markets: dict[str, Extent] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    bad_lines: int = 0

    def refuse(self, why: str) -> None:
        """Note a line that is no frame, or another thing that cannot be read."""
        self.bad_lines += 1
        if len(self.bad) < MOST_BAD:
            self.bad.append(why)

    @property
    def frames(self) -> int:
        """All frames of all markets."""
        return sum(extent.frames for extent in self.markets.values())


class NotRecorded(ValueError):
    """There is nothing to import."""


class Recording:
    """Files of recorded frames."""

    def __init__(self, paths: tuple[Path, ...], name: str, partitions: int) -> None:
        """`name` is that of the gatherer they are imported as. Raises NotRecorded."""
        self._files = sorted({file for path in paths for file in _files(path)})
        if not self._files:
            raise NotRecorded(f"no {', '.join(ENDINGS)} file in {', '.join(map(str, paths))}")
        self._name, self._partitions = name, partitions
        self._first_ms: dict[Path, int] = {}
        self._deaths: tuple[int, ...] = ()
        self._described: dict[str, Path] = {}
        self._has_trades = False
        self._connection = 0
        self._id = ""

    @property
    def size(self) -> int:
        """How many bytes the files have."""
        return sum(path.stat().st_size for path in self._files)

    def survey(self, step: Step = lambda _: None) -> Survey:
        """Read everything once; `step` is told of bytes. To be called before `records`."""
        digest, found = hashlib.sha256(), Survey("")
        streams: dict[tuple[str, int], tuple[int, int]] = {}  # (ticker, sid) -> last (recv_ms, seq)
        restarts: list[tuple[int, int]] = []
        for path in self._files:
            digest.update(_digest(path))
            for line in _lines(path, found.refuse):
                ticker, seq, where = line.message.market_ticker, line.message.seq, (line.message.market_ticker, line.message.sid)
                extent = found.markets.get(ticker)
                if extent is None:
                    extent = found.markets[ticker] = Extent(0, line.recv_ms * 1000)
                    self._describe(path, ticker, found.refuse)
                extent.frames += 1
                extent.first_us = min(extent.first_us, line.recv_ms * 1000)
                self._first_ms.setdefault(path, line.recv_ms)
                self._has_trades |= line.channel == TRADES
                if seq >= 0:
                    last_ms, last_seq = streams.get(where, (-1, -1))
                    if seq < last_seq and line.recv_ms >= last_ms:
                        restarts.append((last_ms, line.recv_ms))
                    streams[where] = line.recv_ms, seq
            step(path.stat().st_size)
        self._deaths = recorded.deaths(restarts)
        self._id = found.id = digest.hexdigest()
        self._connection = int(self._id[:8], 16) >> 1  # so that two recordings under one name are two connections
        return found

    def owns(self, raw: RawFrame) -> bool:
        """Return whether a record of the raw topic is one of these."""
        return raw.gatherer == self._name and (raw.connection == self._connection or raw.detail.startswith(self._id))

    def records(self, left: dict[str, int]) -> Iterator[RawFrame]:
        """Yield the records of those markets that `left` has, with the number of their frames; it is used up."""
        first_us = min(self._first_ms.values(), default=0) * 1000
        for key in keys_of_partitions(f"@{self._name}", self._partitions):
            yield self._said(RawKind.START, "", key, first_us, first_us)
        deaths, life = list(self._deaths), _Life(first_us)
        for line in self._merged():
            while deaths and line.recv_ms > deaths[0]:
                yield from (record for ticker in sorted(life.known) for record in self._breaks(life, ticker))
                life = _Life(deaths.pop(0) * 1000 + 1)
            ticker = line.message.market_ticker
            if ticker not in left:
                continue
            yield from self._frame(life, line)
            left[ticker] -= 1
            if not left[ticker]:
                recv_us = line.recv_ms * 1000
                yield from self._definitions(ticker, recv_us, life.clock_us(recv_us))
                yield from self._breaks(life, ticker)

    def _frame(self, life: "_Life", line: Line) -> Iterator[RawFrame]:
        _, sid, seq, ticker, _, exchange_us, _ = line.message
        recv_us, channel = line.recv_ms * 1000, line.channel
        if ticker not in life.known:
            life.known[ticker] = {}
            if self._has_trades:
                life.known[ticker][TRADES] = -1, -1
                since_us = min(recv_us, exchange_us or recv_us)
                where = (self._connection, life.generation, TRADES, -1, -1, False)
                yield RawFrame(RawKind.RESUME, self._name, *where, ticker, recv_us, since_us, "", b"")
        life.newest_us[channel] = max(life.newest_us.get(channel, 0), exchange_us)
        if channel == BOOK or (channel == TRADES and self._has_trades):
            life.known[ticker][channel] = sid, seq
        clock_us = life.clock_us(recv_us)
        where = (self._connection, life.generation, channel, sid, seq, False)
        yield RawFrame(RawKind.FRAME, self._name, *where, ticker, recv_us, clock_us, "", line.payload)

    def _breaks(self, life: "_Life", ticker: str) -> Iterator[RawFrame]:
        for channel, (sid, seq) in sorted(life.known.pop(ticker, {}).items()):
            whole_us = life.newest_us.get(channel, 0)
            where = (self._connection, life.generation, channel, sid, seq, False)
            yield RawFrame(RawKind.BREAK, self._name, *where, ticker, life.recv_us, whole_us, Cause.DISCONNECT, b"")

    def _definitions(self, ticker: str, recv_us: int, clock_us: int) -> Iterator[RawFrame]:
        path = self._described.get(ticker)
        if path is not None:
            event, body = _kept(path, ticker)
            yield self._said(RawKind.REST, EVENT, str(event["event_ticker"]), recv_us, clock_us, orjson.dumps(event))
            yield self._said(RawKind.REST, "", ticker, recv_us, clock_us, orjson.dumps(body))

    def _said(self, kind: str, channel: str, ticker: str, recv_us: int, clock_us: int, payload: bytes = b"") -> RawFrame:
        nowhere = (-1, 0, channel, -1, -1, False)
        return RawFrame(kind, self._name, *nowhere, ticker, recv_us, clock_us, self._id, payload)

    def _merged(self) -> Iterator[Line]:
        """Yield every frame in the order of receipt; a file keeps its own order even where its clock stepped back."""
        waiting: list[tuple[int, int, Any]] = [(ms, n, None) for n, ms in enumerate(self._first_ms.values())]
        paths = list(self._first_ms)
        heapq.heapify(waiting)
        while waiting:
            recv_ms, n, head = waiting[0]
            lines, current = head if head is not None else _first(_lines(paths[n], lambda _: None))
            following = next(lines, None)
            if following is None:
                heapq.heappop(waiting)
            else:
                heapq.heapreplace(waiting, (max(recv_ms, following.recv_ms), n, (lines, following)))
            yield current

    def _describe(self, path: Path, ticker: str, refuse: Refuse) -> None:
        """Note where the market's REST objects lie, if somebody kept them after it had ended."""
        for folder in path.absolute().parents:
            kept = folder / "metadata" / f"{ticker.rpartition('-')[0] or ticker}.json"
            if kept.is_file():
                try:
                    if _kept(kept, ticker)[1].get("status") in markets.ENDED:
                        self._described[ticker] = kept
                except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
                    refuse(f'{kept}: not a REST body {{"event": …, "markets": […]}} with {ticker}: {error!r}')
                return


def fetch(bucket: Bucket, folder: Path, step: Step = lambda _: None) -> None:
    """Copy the recordings of a bucket into a folder, and the REST bodies beside them; `step` is told of bytes.

    Raises NotRecorded, OSError; nobody is to read the folder then, since it lacks some.
    """
    for path, size in bucket.listed(""):
        if path.endswith(ENDINGS) or Path(path).parent.name == "metadata":
            if ".." in path.split("/"):
                raise NotRecorded(f"{bucket}/{path}: a file cannot have this name")
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            bucket.fetch(path, target)
            if (came := target.stat().st_size) != size:
                raise OSError(f"{bucket}/{path}: {came:,} bytes came of {size:,}; try again")
            step(size)


class _Life:
    """One life of the recorder's connection: the markets heard in it, with the last (sid, seq) by channel."""

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.known: dict[str, dict[str, tuple[int, int]]] = {}
        self.newest_us: dict[str, int] = {}  # the greatest exchange timestamp, by channel
        self.recv_us = 0

    def clock_us(self, recv_us: int) -> int:
        """Return the exchange's clock at this receipt, as far as it is known."""
        self.recv_us = recv_us
        return max(recv_us, *self.newest_us.values(), 0)


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (file for file in path.rglob("*") if file.name.endswith(ENDINGS) and file.is_file())
    elif path.is_file():
        yield path
    else:
        raise NotRecorded(f"{path}: no such file or folder")


def _lines(path: Path, refuse: Refuse) -> Iterator[Line]:
    """Yield the frames of a file; `refuse` is told what is none, and the next line is read."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for number, text in enumerate(file, 1):
                if text.strip():
                    try:
                        yield _parse(text)
                    except ValueError as error:
                        refuse(f"{path}:{number}: {error}")
    except (EOFError, OSError) as error:
        refuse(f"{path}:{number + 1}: {error}; what follows is not read")


def _parse(text: bytes) -> Line:
    recv_ms, payload = recorded.read(text)
    message = messages.envelope(payload)
    channel = messages.CHANNEL_OF_TYPE.get(message.type)
    if channel is None or not message.market_ticker:
        raise ValueError(f"a frame of type {message.type!r} is no market's")
    return Line(recv_ms, payload, channel, message)


def _first(lines: Iterator[Line]) -> tuple[Iterator[Line], Line]:
    return lines, next(lines)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _kept(path: Path, ticker: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the event and the market of a file of REST bodies."""
    document = orjson.loads(path.read_bytes())
    document = document.get("response", document)
    return document["event"], next(body for body in document["markets"] if body["ticker"] == ticker)
