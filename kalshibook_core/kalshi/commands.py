"""What may be said to the exchange over a websocket, as the JSON texts of Kalshi docs, "Websocket connection".

`use_yes_price` is always sent: its default is announced to flip, and a capture must know which prices it holds.
"""

from collections.abc import Sequence
from typing import Final

import orjson

ADD: Final = "add_markets"
DELETE: Final = "delete_markets"
GET_SNAPSHOT: Final = "get_snapshot"


def subscribe(command_id: int, channels: Sequence[str], tickers: Sequence[str] = ()) -> bytes:
    """Subscribe to channels, for some markets where tickers are given; answered by one `subscribed` a channel.

    `skip_ticker_ack`: without it each later `ok` of the subscription repeats every ticker it holds.
    """
    params: dict[str, object] = {"channels": list(channels)}
    if tickers:
        params |= {"market_tickers": list(tickers), "use_yes_price": False, "skip_ticker_ack": True}
    return orjson.dumps({"id": command_id, "cmd": "subscribe", "params": params})


def update(command_id: int, sid: int, action: str, tickers: Sequence[str]) -> bytes:
    """Add or delete markets (answered by `ok`), or ask for their snapshots (answered by those, carrying the id, and no `ok`)."""
    params = {"sids": [sid], "market_tickers": list(tickers), "action": action}
    return orjson.dumps({"id": command_id, "cmd": "update_subscription", "params": params})
