"""The answers' forms, for the OpenAPI document: answers are written straight to JSON, and a test holds them to these models."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

AT = "2025-11-03T14:30:00.123456Z"
PRICE_SIZE = Field(examples=[[["0.4800", "12.00"], ["0.4900", "150.00"]]])


class Model(BaseModel):
    """What all of them are: exactly the fields listed."""

    model_config = ConfigDict(extra="forbid")


class Problem(Model):
    """What went wrong."""

    code: str = Field(description="Stable; switch on this.", examples=["unknown_market"])
    message: str = Field(description="For a person; may change.")
    details: dict[str, Any] | None = Field(None, description="Depends on the code.")


class Envelope(Model):
    """Every error, of every path."""

    error: Problem


class GapSpan(Model):
    """The book is not known in [start, end)."""

    start: str = Field(examples=[AT])
    end: str | None = Field(description="null while the gap is open.")
    cause: str = Field(examples=["disconnect"])


class Checkpoint(Model):
    """Where the fold began."""

    version: int
    effective_at: str = Field(examples=[AT])
    source: Literal["checkpoint", "snapshot", "live"] = Field(
        description="A stored checkpoint, the market's first snapshot, or the latest live book."
    )


class Proof(Model):
    """How the answer was made, so that it can be made again from /v1/deltas."""

    checkpoint: Checkpoint
    events_applied: int = Field(description="Events folded after the checkpoint, up to and including `version`.")
    last_event_at: str = Field(description="Effective time of the event with `version`.", examples=[AT])
    last_event_received_at: str | None = Field(
        description="Our receive time of it; null where the checkpoint itself is the last event."
    )
    staleness_us: int = Field(description="Microseconds from the last event to `at` (for now: to our clock).")
    recorded_through: str = Field(description="Up to this instant the stored history of the market is known to be whole.")


class Quality(Model):
    """What is not known in [from, to): of a list, the span that this page covers; of a book, the microsecond of `at`."""

    state: Literal["complete", "gap", "pending", "ended"] = Field(
        description="The worst of any instant. complete: all that happened is in the answer. gap: it touches a gap; of a book, "
        "the levels are the last ones known. pending: it reaches past `recorded_through`; events may still come. ended: the "
        "same, but the market was determined or settled and its recording ended with it."
    )
    from_: str = Field(alias="from", examples=[AT])
    to: str = Field(examples=[AT])
    gap: GapSpan | None = Field(description="The first of `gaps`.")
    gaps: list[GapSpan] = Field(description="Gaps that touch it, by start; at most 100.")
    more: bool = Field(description="There are more gaps than are listed; /v1/gaps has all.")
    uncovered_us: int = Field(description="Microseconds up to `recorded_through` that lie in a gap.")
    completeness_ppm: int | None = Field(
        description="Covered microseconds in parts per million of those in which there was anything to record, rounded down; "
        "null if there was none. Gaps of the causes exchange_maintenance, trading_pause and market_closed do not lower it."
    )
    recorded_through: str = Field(description="Up to this instant all that will ever come is recorded.", examples=[AT])
    pending: bool = Field(description="Part of the span is later than that, and the market has not ended.")


class CutBids(Model):
    """How many levels of each side `depth` left out."""

    yes: int
    no: int


class CutSides(Model):
    """How many levels of each side `depth` left out."""

    bids: int
    asks: int


class Bids(Model):
    """Bids only, on two ladders, ascending; the YES ask is 1 minus the best NO bid."""

    yes: list[tuple[str, str]] = PRICE_SIZE
    no: list[tuple[str, str]] = PRICE_SIZE
    cut: CutBids | None = Field(description="null: every level is shown. The checksum is of the whole book in any case.")


class YesSide(Model):
    """Both sides of YES, the best level first: an ask of YES at a price is a bid of NO at 1 minus that price."""

    bids: list[tuple[str, str]] = PRICE_SIZE
    asks: list[tuple[str, str]] = PRICE_SIZE
    mid: str | None = Field(description="Exact, with five decimals; null unless both sides have a level.", examples=["0.48500"])
    spread: str | None = Field(examples=["0.0100"])
    bid_total: str = Field(description="Contracts bid for YES at all levels, shown or not.", examples=["1250.00"])
    ask_total: str = Field(description="Contracts offered of YES at all levels, shown or not.")
    cut: CutSides | None = Field(description="null: every level is shown. The checksum is of the whole book in any case.")


class Proven(Model):
    """A book of one market, its place in the history, how it was made and what is not known about it."""

    market_ticker: str
    at: str = Field(description="The instant the book is of; where none was asked for, that of the last event.", examples=[AT])
    version: int = Field(description="Of the last event in the book: 1, 2, 3, … in each market, without a hole.")
    checksum: str = Field(description="16 hex digits; recompute it from the levels to check them.", examples=["9f86d081884c7d65"])
    proof: Proof
    quality: Quality


class Book(Proven, Bids):
    """The book of one market as bids."""


class YesBook(Proven, YesSide):
    """The book of one market as both sides of YES (`view=yes`)."""


class Sample(Model):
    """A book at one of many instants."""

    at: str = Field(examples=[AT])
    state: Literal["complete", "gap", "pending", "ended", "not_recorded"] = Field(
        description="As in `quality` of one book; not_recorded: before the market's first snapshot, all else is null."
    )
    version: int | None
    checksum: str | None = Field(description="Of the whole book, however few of its levels are shown.")


class BidsSample(Sample):
    """The levels as bids, ascending."""

    yes: list[tuple[str, str]] | None = PRICE_SIZE
    no: list[tuple[str, str]] | None = PRICE_SIZE


class YesSample(Sample):
    """The levels as both sides of YES, the best first (`view=yes`)."""

    bids: list[tuple[str, str]] | None = PRICE_SIZE
    asks: list[tuple[str, str]] | None = PRICE_SIZE
    mid: str | None = Field(examples=["0.48500"])
    spread: str | None = Field(examples=["0.0100"])


class Samples(Model):
    """A page of books at instants."""

    data: list[BidsSample | YesSample]
    next_cursor: str | None
    quality: Quality


class Top(Model):
    """The best levels of YES from a version on, until the next row."""

    version: int
    effective_at: str = Field(examples=[AT])
    state: Literal["complete", "gap"] = Field(description="gap: nothing is known from here on until the next row.")
    bid: tuple[str, str] | None = Field(description="Price and size; null where nobody bids.", examples=[["0.4800", "12.00"]])
    ask: tuple[str, str] | None = Field(examples=[["0.4900", "150.00"]])
    mid: str | None = Field(examples=["0.48500"])
    spread: str | None = Field(examples=["0.0100"])


class Tops(Model):
    """A page of the changes of the best levels."""

    data: list[Top]
    next_cursor: str | None
    quality: Quality


class Four(Model):
    """Of the instants of an interval at which there is one; all null if there is none."""

    open: str | None = Field(examples=["0.4800"])
    high: str | None
    low: str | None
    close: str | None


class CandleState(Model):
    """What is known of an interval."""

    state: Literal["complete", "gap", "pending", "ended", "not_recorded"] = Field(
        description="gap: part of the interval lies in one. not_recorded: it begins before the market's first snapshot. pending "
        "and ended: it ends later than what is recorded."
    )


class CandleTrades(CandleState, Four):
    """The trades of an interval, at YES prices, without block trades."""

    volume: str = Field(description="Contracts.", examples=["1250.00"])
    notional: str = Field(description="Sum of price times size in dollars, exact.", examples=["612.500000"])
    vwap: str | None = Field(description="notional / volume, rounded half to even at six decimals.", examples=["0.490000"])
    count: int
    block_volume: str = Field(description="Contracts of block trades, which are made off the book and are in nothing else here.")
    block_count: int


class Candle(CandleState):
    """One interval."""

    at: str = Field(description="Its first instant.", examples=[AT])
    bid: Four
    ask: Four
    mid: Four = Field(description="With five decimals.")
    trades: CandleTrades


class Candles(Model):
    """A page of candles."""

    data: list[Candle]
    next_cursor: str | None
    quality: Quality = Field(description="Of the book.")
    trades_quality: Quality


class Snapshot(Model):
    """A whole book, which replaces what was known."""

    type: Literal["snapshot"]
    version: int
    effective_at: str = Field(examples=[AT])
    exchange_at: None = Field(description="The exchange writes no time on a snapshot.")
    recv_at: str
    yes: list[tuple[str, str]] = PRICE_SIZE
    no: list[tuple[str, str]] = PRICE_SIZE
    checksum: str
    gap: GapSpan | None = Field(description="The gap this snapshot ends.")


class Delta(Model):
    """A signed change of one level; the level is gone at exactly 0."""

    type: Literal["delta"]
    version: int
    effective_at: str = Field(examples=[AT])
    exchange_at: str = Field(description="As the exchange wrote it; may be earlier than effective_at.")
    recv_at: str
    side: Literal["yes", "no"]
    price: str = Field(examples=["0.4800"])
    delta: str = Field(examples=["-54.00"])
    checksum: str = Field(description="Of the book after this delta.")


class GapEvent(Model):
    """From `start` on the book is not known, until the next snapshot."""

    type: Literal["gap"]
    version: int
    effective_at: str
    exchange_at: None
    recv_at: str
    checksum: str = Field(description="Of the last book known.")
    start: str
    end: str | None
    cause: str


class Deltas(Model):
    """A page of book events."""

    data: list[Snapshot | Delta | GapEvent]
    next_cursor: str | None
    quality: Quality


class Trade(Model):
    """One trade, unique by trade_id."""

    trade_id: str
    market_ticker: str
    exchange_at: str = Field(examples=[AT])
    recv_at: str
    yes_price: str = Field(examples=["0.4800"])
    no_price: str = Field(examples=["0.5200"])
    count: str = Field(examples=["12.00"])
    taker_side: Literal["yes", "no"]
    is_block_trade: bool | None = Field(description="null where the exchange did not say (before 2026-08-13).")
    origin: str = Field(
        description="stream: received as it happened. rest: read from the exchange's trade history later; `recv_at` is of then. "
        "import-…: from a recording of that name.",
        examples=["stream", "rest", "import-gold"],
    )


class Trades(Model):
    """A page of trades."""

    data: list[Trade]
    next_cursor: str | None
    quality: Quality


class Gap(GapSpan):
    """A gap of one market on one channel."""

    market_ticker: str
    channel: Literal["orderbook_delta", "trade"]
    filled: Literal["rest"] | None = Field(
        description="rest: the exchange's trade history was read over all of the gap: its trades are here. Only of channel trade."
    )
    filled_at: str | None


class Gaps(Model):
    """A page of gaps."""

    data: list[Gap]
    next_cursor: str | None


class Market(Model):
    """A market as the exchange last described it."""

    ticker: str
    event_ticker: str | None
    series_ticker: str | None
    title: str | None
    status: str | None = Field(description="The exchange's word.", examples=["active"])
    result: str | None = Field(description="yes, no or scalar, once determined.")
    settlement_value: str | None = Field(description="Dollars that a YES contract paid.", examples=["1.0000"])
    open_at: str | None
    close_at: str | None
    settled_at: str | None
    updated_at: str


class Source(Model):
    """Where all of it comes from, and whose terms apply."""

    exchange: str
    terms: str
    note: str


class OneMarket(Market):
    """One market, with the exchange's own JSON object."""

    exchange_object: dict[str, Any] | None = Field(description="The last REST object of the exchange, as sent.")
    source: Source


class Markets(Model):
    """A page of markets."""

    data: list[Market]
    next_cursor: str | None
    source: Source


class Event(Model):
    """An event, which has one market or more, as the exchange last described it."""

    ticker: str
    series_ticker: str | None
    title: str | None
    category: str | None
    updated_at: str = Field(examples=[AT])


class OneEvent(Event):
    """One event, with the exchange's own JSON object."""

    exchange_object: dict[str, Any] = Field(description="The last REST object of the exchange, as sent.")
    source: Source


class Events(Model):
    """A page of events."""

    data: list[Event]
    next_cursor: str | None
    source: Source


class Series(Model):
    """A series, whose events come again and again, as the exchange last described it."""

    ticker: str
    title: str | None
    category: str | None
    updated_at: str = Field(examples=[AT])


class OneSeries(Series):
    """One series, with the exchange's own JSON object."""

    exchange_object: dict[str, Any] = Field(description="The last REST object of the exchange, as sent.")
    source: Source


class AllSeries(Model):
    """A page of series."""

    data: list[Series]
    next_cursor: str | None
    source: Source


class Lifecycle(Model):
    """Something that happened to a market, or its definition as REST told it."""

    event_type: str = Field(
        description="The exchange's word (created, activated, determined, settled, …), or `market`: a definition read by REST.",
        examples=["determined"],
    )
    at: str = Field(description="The exchange's clock at receipt; the frames themselves carry no time.", examples=[AT])
    recv_at: str
    exchange_object: dict[str, Any] = Field(description="The frame's `msg`, or the REST object, as sent.")


class Lifecycles(Model):
    """A page of what happened to a market."""

    data: list[Lifecycle]
    next_cursor: str | None
    source: Source


class UsageDay(Model):
    """Calls and credits of one UTC day and endpoint."""

    day: str = Field(examples=["2025-11-03"])
    endpoint: str = Field(examples=["orderbook_at"])
    calls: int
    credits: int


class Usage(Model):
    """What your account used this month, as the ledger has it."""

    account: str
    plan: str
    period_start: str
    credits_used: int = Field(description="In this period, by the ledger; calls of the last seconds may not be in it yet.")
    credits_allowed: int | None = Field(description="Per period; null: not limited.")
    credits_remaining: int | None
    data: list[UsageDay]


class AuditCounts(Model):
    """Our live books against the exchange's own, by REST."""

    matched: int
    mismatched: int


class HourAudits(AuditCounts):
    """The same of one market."""

    unknown: int = Field(description="Ours was not known all the while, so nothing can be said.")


class CaptureLatency(Model):
    """From what the exchange wrote on an event to our clock at receipt, of deltas and trades."""

    events: int
    p50_us: int | None = Field(description="Upper bound of the histogram's bucket that the median lies in.")
    p99_us: int | None
    max_us: int | None


class Coverage(Model):
    """One hour or day of a market."""

    start: str = Field(examples=[AT])
    end: str
    events: int = Field(description="Of the book: snapshots, deltas and gaps.")
    events_lost: int | None = Field(description="null: the exchange's sequence numbers do not say how many a market lost.")
    trades: int
    first_version: int | None
    last_version: int | None
    quality: Quality = Field(description="Of the book.")
    trades_quality: Quality
    audits: HourAudits
    latency: CaptureLatency
    revision: int = Field(description="Grows whenever more is learnt of it; of a day, the sum over its hours; 0: not closed yet.")
    changed_at: str | None = Field(description="When the last revision was made.")


class MarketQuality(Model):
    """How good the record of a market is."""

    market_ticker: str
    by: Literal["hour", "day"]
    quality: Quality = Field(description="Of the book in the whole range.")
    trades_quality: Quality
    data: list[Coverage]


class Condition(Model):
    """One UTC day over all markets."""

    day: str = Field(examples=["2025-11-03"])
    condition: Literal["available", "degraded", "pending", "missing"]
    changed_at: str | None
    revision: int
    events: int
    trades: int
    markets: int = Field(description="Of which something was recorded.")
    markets_with_gap: int
    uncovered_us: int = Field(description="Over all markets, of the hours in which something was recorded.")
    audits: AuditCounts


class Conditions(Model):
    """Days, by date."""

    data: list[Condition]


class MarketCondition(Model):
    """One UTC day of one market."""

    day: str
    condition: Literal["available", "degraded", "pending", "missing"]
    changed_at: str | None
    revision: int
    quality: Quality = Field(description="Of the book.")


class MarketConditions(Model):
    """Days of one market, by date."""

    market_ticker: str
    data: list[MarketCondition]


class Incident(Model):
    """A span in all of which many markets were in a gap of the same cause."""

    cause: str = Field(examples=["disconnect"])
    channel: Literal["orderbook_delta", "trade"]
    start: str
    end: str | None = Field(description="null while it lasts.")
    markets: int
    at_once: int = Field(description="The most at any one instant.")


class Incidents(Model):
    """Incidents, by start."""

    data: list[Incident]
