"""One connection's life as a gatherer would publish it: raw records in the exchange's documented form, built by hand."""

from dataclasses import dataclass, field

import orjson

from kalshibook_core.kalshi.numbers import format_price, format_size
from kalshibook_core.wire.events import RawFrame

T0 = 1_790_000_000_000_000  # µs; any instant will do
TICKER = "KXTEST-26NOV21-T0.5"


@dataclass
class Source:
    """A generation of a connection; each method returns the raw record of one frame. Times are µs after T0."""

    gatherer: str = "g1"
    connection: int = 0
    generation: int = T0
    ticker: str = TICKER
    seq: int = field(default=0)

    def raw(self, kind: str, channel: str, clock: int, payload: bytes = b"", detail: str = "", sid: int = 1) -> RawFrame:
        self.seq += 1
        return RawFrame(
            kind, self.gatherer, self.connection, self.generation, channel, sid, self.seq, False, self.ticker,
            T0 + clock + 500, T0 + clock, detail, payload,
        )  # fmt: skip

    def frame(self, channel: str, clock: int, message: dict[str, object], kind: str = "FRAME") -> RawFrame:
        sid = {"orderbook_delta": 1, "trade": 2, "ticker": 3, "market_lifecycle_v2": 4}[channel]
        return self.raw(kind, channel, clock, orjson.dumps({**message, "sid": sid, "seq": self.seq + 1}) + b"\n", sid=sid)

    def snapshot(
        self, clock: int, yes: dict[int, int], no: dict[int, int], solicited: bool = False, kind: str = "FRAME"
    ) -> RawFrame:
        msg: dict[str, object] = {"market_ticker": self.ticker, "market_id": ""}
        for name, levels in (("yes_dollars_fp", yes), ("no_dollars_fp", no)):
            if levels:
                msg[name] = [[format_price(p), format_size(s)] for p, s in sorted(levels.items())]
        message = {"type": "orderbook_snapshot", "msg": msg}
        return self.frame("orderbook_delta", clock, {**message, "id": 7} if solicited else message, kind)

    def delta(self, at: int, side: str, price: int, change: int, kind: str = "FRAME", clock: int | None = None) -> RawFrame:
        return self.frame("orderbook_delta", at if clock is None else clock, {"type": "orderbook_delta", "msg": {
            "market_ticker": self.ticker, "market_id": "", "price_dollars": format_price(price), "delta_fp": format_size(change),
            "side": side, "ts": rfc3339(T0 + at), "ts_ms": (T0 + at) // 1000,
        }}, kind)  # fmt: skip

    def trade(self, at: int, trade_id: str, kind: str = "FRAME") -> RawFrame:
        return self.frame("trade", at, {"type": "trade", "msg": {
            "trade_id": trade_id, "market_ticker": self.ticker, "yes_price_dollars": "0.3600", "no_price_dollars": "0.6400",
            "count_fp": "136.00", "taker_side": "no", "ts": (T0 + at) // 1_000_000, "ts_ms": (T0 + at) // 1000,
        }}, kind)  # fmt: skip

    def lifecycle(self, clock: int, **msg: object) -> RawFrame:
        message = {"type": "market_lifecycle_v2", "msg": {"market_ticker": self.ticker, **msg}}
        return self.frame("market_lifecycle_v2", clock, message)

    def rest(self, clock: int, **body: object) -> RawFrame:
        payload = orjson.dumps({"ticker": self.ticker, **body})
        return self.raw("REST", "", clock, payload, "/trade-api/v2/markets", sid=-1)

    def broken(self, clock: int, channel: str = "orderbook_delta", cause: str = "disconnect") -> RawFrame:
        return self.raw("BREAK", channel, clock, detail=cause)

    def started(self, clock: int) -> RawFrame:
        key = f"@{self.gatherer}.0"
        return RawFrame("START", self.gatherer, -1, 0, "", -1, -1, False, key, T0 + clock, T0 + clock, "", b"")

    def resumed(self, clock: int) -> RawFrame:
        return self.raw("RESUME", "trade", clock, sid=2)


def rfc3339(us: int) -> str:
    """As the exchange writes it: µs, trailing zeros trimmed."""
    from datetime import UTC, datetime

    whole = datetime.fromtimestamp(us // 1_000_000, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{us % 1_000_000:06d}".rstrip("0").rstrip(".")
    return f"{whole}{fraction}Z"
