"""Books and events in the form customers see: prices and sizes as decimal strings, times as RFC 3339, checksums as 16 hex digits.

Price in dollars with four decimals, size in contracts with two. One form for REST and stream.
"""

from collections.abc import Iterable
from typing import Any

from kalshibook_core.kalshi.numbers import format_price, format_size
from kalshibook_core.orderbook.checksum import to_hex
from kalshibook_core.wire.events import BookDelta, BookEvent, BookSnapshot, Gap
from services.gateway.instants import optional_text, text

SIDES = ("yes", "no")


def levels(side: Iterable[tuple[int, int]]) -> list[list[str]]:
    """Return [[price, size], …] in the order given."""
    return [[format_price(price), format_size(size)] for price, size in side]


def gap(start_us: int, end_us: int | None, cause: str) -> dict[str, Any]:
    """Return a gap [start, end); an end of None is not known yet."""
    return {"start": text(start_us), "end": optional_text(end_us), "cause": cause}


def snapshot_row(
    version: int, effective_us: int, recv_us: int, yes: Iterable[tuple[int, int]], no: Iterable[tuple[int, int]],
    checksum: int, ended: dict[str, Any] | None,
) -> dict[str, Any]:  # fmt: skip
    """Return a snapshot; `ended` is the gap it ends. The exchange writes no time on one, so exchange_at is null."""
    return {
        "type": "snapshot", "version": version, "effective_at": text(effective_us), "exchange_at": None, "recv_at": text(recv_us),
        "yes": levels(yes), "no": levels(no), "checksum": to_hex(checksum), "gap": ended,
    }  # fmt: skip


def delta_row(
    version: int, effective_us: int, exchange_us: int, recv_us: int, side: int, price: int, delta: int, checksum: int
) -> dict[str, Any]:
    """Return a signed change of one level."""
    return {
        "type": "delta", "version": version, "effective_at": text(effective_us), "exchange_at": text(exchange_us),
        "recv_at": text(recv_us), "side": SIDES[side], "price": format_price(price), "delta": format_size(delta),
        "checksum": to_hex(checksum),
    }  # fmt: skip


def gap_row(
    version: int, effective_us: int, recv_us: int, checksum: int, start_us: int, end_us: int | None, cause: str
) -> dict[str, Any]:
    """Return the opening of a gap; the checksum is of the last book known."""
    return {
        "type": "gap", "version": version, "effective_at": text(effective_us), "exchange_at": None, "recv_at": text(recv_us),
        "checksum": to_hex(checksum), **gap(start_us, end_us, cause),
    }  # fmt: skip


def of_event(event: BookEvent) -> dict[str, Any]:
    """Return a canonical book event as the same row that /v1/deltas gives."""
    match event:
        case BookDelta():
            return delta_row(
                event.version, event.effective_us, event.exchange_us, event.recv_us,
                event.side, event.price, event.delta, event.checksum,
            )  # fmt: skip
        case BookSnapshot():
            ended = None
            if event.gap_start_us is not None:
                ended = gap(event.gap_start_us, event.effective_us, event.gap_cause or "")
            return snapshot_row(event.version, event.effective_us, event.recv_us, event.yes, event.no, event.checksum, ended)
        case Gap():
            return gap_row(
                event.version, event.effective_us, event.recv_us, event.checksum, event.start_us, event.end_us, event.cause
            )
