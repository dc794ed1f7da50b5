"""The book at an instant by brute force: every frame of a recording from the first one on, with nothing of ours in between.

Frames are read as the exchange documents them (dollar strings, signed deltas) into plain integers; a book is two dicts. Nothing
here imports the product.
"""

import gzip
import json
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

Book = tuple[dict[int, int], dict[int, int]]


def scaled(text: str, scale: int) -> int:
    """Return a decimal string as an integer."""
    value = Decimal(text) * scale
    assert value == int(value)
    return int(value)


def micros(text: str) -> int:
    """Return an RFC 3339 time in microseconds, exactly."""
    whole, _, rest = text.removesuffix("Z").partition(".")
    seconds = int(datetime.fromisoformat(whole + "+00:00").timestamp())
    return seconds * 1_000_000 + int(rest[:6].ljust(6, "0"))


def rfc3339(us: int) -> str:
    """Return microseconds as the API prints times."""
    return datetime.fromtimestamp(us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{us % 1_000_000:06d}Z"


def shown(book: Book) -> dict[str, list[list[str]]]:
    """Return a book as the API prints it."""
    yes, no = (
        [[f"{price // 10000}.{price % 10000:04d}", f"{size // 100}.{size % 100:02d}"] for price, size in sorted(side.items())]
        for side in book
    )
    return {"yes": yes, "no": no}


@dataclass(slots=True)
class Fold:
    """A market's books by the effective time of the event that made them; `books[i]` holds from `times[i]` on."""

    times: list[int]
    books: list[Book]
    kinds: list[str]

    def at(self, us: int) -> tuple[int, Book] | None:
        """Return (version, book) at an instant, None before the first."""
        number = bisect_right(self.times, us)
        return (number, self.books[number - 1]) if number else None


def fold(frames: Iterable[bytes], snapshot_times: dict[int, int]) -> Fold:
    """Fold a market's recorded book frames; `snapshot_times` says from when each version that is a snapshot holds."""
    out = Fold([], [], [])
    yes: dict[int, int] = {}
    no: dict[int, int] = {}
    for frame in frames:
        message: dict[str, Any] = json.loads(frame)
        kind, msg = message["type"], message["msg"]
        if kind == "orderbook_snapshot":
            yes, no = (
                {scaled(price, 10_000): scaled(size, 100) for price, size in msg.get(name) or []}
                for name in ("yes_dollars_fp", "no_dollars_fp")
            )
            at = snapshot_times[len(out.times) + 1]
        elif kind == "orderbook_delta":
            yes, no = dict(yes), dict(no)
            side = yes if msg["side"] == "yes" else no
            price = scaled(msg["price_dollars"], 10_000)
            size = side.pop(price, 0) + scaled(msg["delta_fp"], 100)
            assert size >= 0
            if size:
                side[price] = size
            at = micros(msg["ts"])
        else:
            continue
        out.times.append(max(at, out.times[-1] if out.times else at))
        out.books.append((yes, no))
        out.kinds.append(kind)
    return out


def trades(frames: Iterable[bytes]) -> list[str]:
    """Return the ids of the trades among a market's frames."""
    messages = map(json.loads, frames)
    return [message["msg"]["trade_id"] for message in messages if message["type"] == "trade"]


def read(folder: Path) -> dict[str, list[tuple[int, bytes]]]:
    """Return the frames of a folder of recordings, by market, in order of receipt."""
    lines: dict[str, list[tuple[int, bytes]]] = {}
    for path in sorted((*folder.rglob("*.ndjson"), *folder.rglob("*.ndjson.gz"))):
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as content:
            for line in content:
                message = json.loads(line)
                frames = lines.setdefault(message["event"]["msg"]["market_ticker"], [])
                frames.append((message["recv_ms"], json.dumps(message["event"]).encode()))
    return lines
