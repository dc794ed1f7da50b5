"""Frames for the benchmarks, built by hand in the documented form of orderbook_delta, and the events around them."""

from kalshibook_core.wire import events

MARKETS = 200
_GENERATION = 1_767_225_599_000_000


def ticker(number: int) -> str:
    """Return one of MARKETS tickers."""
    return f"KXGOLD15M-26JAN01-T{number % MARKETS}"


def payload(number: int) -> bytes:
    """Return a delta frame of about 230 bytes."""
    return (
        b'{"type":"orderbook_delta","sid":2,"seq":%d,"msg":{"market_ticker":"%s","market_id":"7a6f2c1e-0000-4000-8000-%012d",'
        b'"price_dollars":"0.%04d","delta_fp":"%d.00","side":"%s","ts":"2026-01-01T00:00:00.%06dZ"}}'
    ) % (
        number,
        ticker(number).encode(),
        number % MARKETS,
        100 * (1 + number % 99),
        (number * 7919) % 1000 - 500,
        (b"yes", b"no")[number % 2],
        number % 1_000_000,
    )


def raw(number: int) -> events.RawFrame:
    """Return the raw record of frame `number`."""
    now = 1_767_225_600_000_000 + number * 100
    frame = payload(number)
    return events.RawFrame(
        "FRAME", "g1", 3, 1_767_225_599_000_000, events.BOOK, 2, number, False, ticker(number), now, now, "", frame
    )


def delta(number: int) -> events.BookDelta:
    """Return the book event of frame `number`; its checksum is some number of 64 bits, as they are."""
    now = 1_767_225_600_000_000 + number * 100
    checksum = (number * 0x9E3779B97F4A7C15) % 2**64 - 2**63
    market, version = ticker(number), number // MARKETS
    return events.BookDelta(
        market, version, now, now, now, number % 2, 4800, -5400, checksum, "g1", 3, _GENERATION, 2, number, number
    )
