"""Every event that crosses a topic, as an immutable tuple whose fields stand in the order of its Avro schema.

Units everywhere: price in 1/10,000 dollar, size in 1/100 contract, time in microseconds since the epoch (`*_us`). Named tuples
and not dataclasses, because one is made per frame and per event on every hot path and a tuple is three times cheaper.

Times of an event, never mixed: `exchange_us` is what the exchange wrote on it, `effective_us` is from when it holds in our log
(non-decreasing in a market), `recv_us` is the local clock of the gatherer that received it.
"""

from enum import StrEnum
from typing import Final, NamedTuple

from kalshibook_core.kalshi import channels

BOOK, TRADES, TICKERS = channels.OF_MARKETS
"""The exchange's channels, which our events carry as `channel`."""

EVENT, SERIES, AUDIT = "event", "series", "orderbook"
"""What a REST record holds: our words for it, in place of a channel; "" for a market's definition."""

FILLED: Final = "trade_gap_filled"
"""Likewise, of ours: REST was read over a whole gap of trades. `{"start_us": …, "end_us": …, "cause": …}`, behind its trades."""

BY_REST: Final = -1
"""The `connection` of a trade that no connection delivered; a gatherer's own marks have it too (its START, what REST told it)."""

READ_OVER: Final = -2
"""The `connection` of a gap of trades that is told once more because REST was read over it. Nothing else has it."""

IMPORTED: Final = "import-"
"""What the name of a gatherer begins with that played recorded frames in (`kb import`)."""

Level = tuple[int, int]
"""(price, size)"""


class RawKind(StrEnum):
    """What a record of the raw topic is."""

    FRAME = "FRAME"  # a websocket frame, next in its sid's order (or of a sid or frame that has no order)
    STALE = "STALE"  # kept, never applied: its sid had passed its seq already, or its connection does not have the market's book
    BREAK = "BREAK"  # from here on the connection cannot vouch for this market on this channel; `detail` is the cause
    RESUME = "RESUME"  # trades only (a book resumes by its snapshot): vouched for again from `clock_us` on
    REST = "REST"  # an object of a REST body (a trade's `channel` is "trade"); `channel` says which kind, `detail` is the path
    START = "START"  # a gatherer's process begins: whatever an earlier one said in this partition, and left unended, is over


class Cause(StrEnum):
    """Why something is not known. The words that stand in the stream, the tables, the API and the files."""

    SEQUENCE_GAP = "upstream_sequence_gap"
    DISCONNECT = "disconnect"
    SUBSCRIPTION_ERROR = "terminal_subscription_error"
    SILENT_SOCKET = "silent_socket"
    OVERFLOW = "own_overflow"
    BROKER_OUTAGE = "broker_outage"
    PARSE_FAILURE = "parse_failure"
    MAINTENANCE = "exchange_maintenance"
    TRADING_PAUSE = "trading_pause"
    MARKET_CLOSED = "market_closed"
    NOT_SUBSCRIBED = "not_yet_subscribed"
    STORAGE_OUTAGE = "storage_outage"
    CLOCK_STEP = "clock_step"
    MOVED = "moved"  # handed over to another connection of its gatherer


LET_GO: Final = frozenset({Cause.MOVED, Cause.MARKET_CLOSED})
"""Causes of a BREAK by which nothing is lost: the market was given up as planned, and whole until the exchange had answered."""


LAG_US: Final = channels.LAG_US
"""A sid that was whole up to t has lost nothing older than t - LAG_US of any market, and what it lost before a frame of t nothing
younger than t + LAG_US."""


class RawFrame(NamedTuple):
    """kalshi.raw.v1: what a gatherer received, byte for byte, and where in which of its streams. Key: `market_ticker`.

    Frames that belong to no market (acks, errors) carry "@<gatherer>" as their ticker. `generation` is one life of one
    connection (the local time in µs at its handshake, so it only grows). `clock_us` is the exchange's clock at receipt as
    the connection knows it: the local clock corrected by the skew that the handshake's Date showed, and never behind the
    greatest exchange timestamp seen on the connection. In a BREAK it is the exchange time up to which the sid was whole:
    the greatest exchange timestamp received in order on it, 0 if none. A REST record has no connection (-1) and no generation
    (0); of an order book `generation` is the local time at which it was asked for.

    A gatherer may have a market on two connections at once, to hand it over: both are its sources until one of them says a BREAK.
    That of the connection which gives the market up has the cause "moved", or "market_closed" where the market has ended, and
    as `clock_us` the exchange's clock when it acknowledged the unsubscription. A move is asked for no sooner than `LAG_US` after
    the other's first snapshot (and its RESUME), so nothing can have been lost between the two; an ended market is let go so
    long after its gatherer told the end, so nothing can have been lost of it. A new generation of a connection
    ends that connection's last one; a START, which a new process says once in each partition before all else, ends those of
    every connection. Its key is any of "@<gatherer>.<n>".
    """

    kind: str
    gatherer: str
    connection: int
    generation: int
    channel: str  # "" for frames of no channel
    sid: int  # -1 where the frame has none
    seq: int  # -1 where the frame has none
    yes_price: bool  # True: NO prices arrive as 1 - p (the subscription's use_yes_price)
    market_ticker: str
    recv_us: int
    clock_us: int
    detail: str
    payload: bytes


class BookSnapshot(NamedTuple):
    """kalshi.book.v1: the whole book, replacing what was known. Levels ascend by price.

    Where it ends a gap, `gap_start_us` and `gap_cause` say which: the gap is [gap_start_us, effective_us).
    """

    market_ticker: str
    version: int
    effective_us: int
    recv_us: int
    yes: list[Level]
    no: list[Level]
    checksum: int  # signed 64 bit, of the book after this event; orderbook.checksum
    gap_start_us: int | None
    gap_cause: str | None
    gatherer: str  # provenance: the frame this event was made of
    connection: int
    generation: int
    sid: int
    seq: int
    raw_offset: int


class BookDelta(NamedTuple):
    """kalshi.book.v1: a signed change of one level."""

    market_ticker: str
    version: int
    effective_us: int
    exchange_us: int
    recv_us: int
    side: int  # 0 yes, 1 no
    price: int
    delta: int
    checksum: int
    gatherer: str
    connection: int
    generation: int
    sid: int
    seq: int
    raw_offset: int


class Gap(NamedTuple):
    """kalshi.book.v1 and kalshi.trades.v1: from `start_us` on the market is not known.

    In the book stream it takes a version, `end_us` is None, and the snapshot that ends it says so; a market that has ended gets
    none any more. In the trades stream
    (version 0) the same gap comes twice: when it opens, and with `end_us` when it closes. A third time, with `READ_OVER`
    for its connection, it says that REST was read over all of it, and that its trades stand before.
    """

    market_ticker: str
    version: int
    effective_us: int
    channel: str
    start_us: int
    end_us: int | None
    cause: str
    recv_us: int
    checksum: int  # of the last book known, so that it stands on every version; 0 in the trades stream
    gatherer: str
    connection: int
    generation: int
    raw_offset: int


class Trade(NamedTuple):
    """kalshi.trades.v1: one trade, unique by `trade_id` but for REST's word.

    A trade that REST tells (its connection is `BY_REST`) stands there as often as it was read, whether a connection delivered it
    or not, and its `exchange_us` has microseconds where the stream has milliseconds.
    """

    market_ticker: str
    trade_id: str
    exchange_us: int
    recv_us: int
    yes_price: int
    no_price: int
    count: int  # type: ignore[assignment]  # the field's word; tuple.count is of no use here
    taker_side: int  # 0 yes, 1 no
    is_block_trade: bool | None  # None: the frame did not say (before 2026-08-13)
    gatherer: str
    connection: int
    generation: int
    sid: int
    seq: int
    raw_offset: int


def origin(trade: Trade) -> str:
    """Return where a trade came from: "stream", "rest", or the name of what was imported ("import-…", up to a dot)."""
    if trade.connection == BY_REST:
        return "rest"
    return trade.gatherer.partition(".")[0] if trade.gatherer.startswith(IMPORTED) else "stream"


class Ticker(NamedTuple):
    """kalshi.tickers.v1: the exchange's own summary of a market. Its channel has no seq, so a lost one cannot be seen.

    A field the frame did not carry is None.
    """

    market_ticker: str
    exchange_us: int
    recv_us: int
    price: int | None
    yes_bid: int | None
    yes_ask: int | None
    yes_bid_size: int | None
    yes_ask_size: int | None
    last_trade_size: int | None
    volume: int | None
    open_interest: int | None
    dollar_volume: int | None  # whole dollars, as sent
    dollar_open_interest: int | None
    raw_offset: int


class Lifecycle(NamedTuple):
    """kalshi.lifecycle.v1: something happened to a market's (or event's) definition.

    `event_type` is the exchange's word (created, activated, …, settled), its message type where it has none
    (event_lifecycle, event_fee_update), or "market", "event" or "series" for a definition read by REST: then `market_ticker` is
    the ticker of that. `body` is the JSON as sent: the frame's `msg`, or the REST object.
    """

    market_ticker: str
    event_type: str
    recv_us: int
    clock_us: int
    body: bytes
    raw_offset: int


class Checkpoint(NamedTuple):
    """kalshi.checkpoints.v1 (compacted): a market's book after `version`. Key: `market_ticker`.

    To rebuild a partition: take the last checkpoint of each market, then fold kalshi.book.v1 from the greatest
    `resume_offset` seen in the partition; every event before it is inside some checkpoint.
    """

    market_ticker: str
    version: int
    effective_us: int
    yes: list[Level]
    no: list[Level]
    checksum: int
    gap_start_us: int | None  # not None: the market was in a gap then, and the levels are the last known ones
    gap_cause: str | None
    gatherer: str  # of the event with this version
    connection: int
    generation: int
    book_offset: int  # of the event with this version, in the partition of the same number of kalshi.book.v1
    resume_offset: int


class Audited(NamedTuple):
    """kalshi.audited.v1: a book that REST had at some instant of [from_us, to_us], compared with what ours was then.

    `outcome` is match, mismatch, or unknown where ours was not known throughout. `version` and `checksum` are our book's when it
    was judged, at the local time `judged_us`.
    """

    market_ticker: str
    outcome: str
    from_us: int
    to_us: int
    rest_checksum: int
    version: int
    checksum: int
    judged_us: int


class MarketMemory(NamedTuple):
    """kb.deduplicator.v2 (compacted): all that the deduplicator knew of a market after the raw record at `raw_offset`.

    Key: the ticker. Its writer is its only reader, and alone knows what is in `state`.
    """

    market_ticker: str
    state: bytes
    raw_offset: int


class Usage(NamedTuple):
    """kb.usage.v1: one metered call. Key: `account_id`. `usage_id` makes a repeat harmless."""

    usage_id: str
    account_id: str
    key_id: str
    endpoint: str
    credits: int
    at_us: int
    status: int


Event = RawFrame | BookSnapshot | BookDelta | Gap | Trade | Ticker | Lifecycle | Checkpoint | Audited | MarketMemory | Usage
BookEvent = BookSnapshot | BookDelta | Gap
