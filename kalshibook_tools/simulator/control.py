"""The paths under /simulator, which no exchange has: what is played, what was true, and what shall go wrong.

GET /simulator/status · GET /simulator/truth/{ticker} (newline-delimited JSON, one true event a line) · POST /simulator/faults
with a fault as JSON · POST /simulator/pause · POST /simulator/resume.
"""

from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import orjson

from kalshibook_tools.simulator import faults

if TYPE_CHECKING:
    from kalshibook_tools.simulator.server import Server


def answer(server: "Server", method: str, path: str, body: bytes) -> tuple[int, Any]:
    """Answer one control request."""
    match method, path.removeprefix("/simulator/").split("/"):
        case "GET", ["status"]:
            connections = [
                {
                    "number": c.number,
                    "subscriptions": [
                        {"sid": s.sid, "channel": s.channel, "seq": s.seq} for s in c.subscriptions.by_sid.values()
                    ],
                }
                for c in server.connections.values()
            ]
            return 200, {**server.exchange.status(), "connections": connections}
        case "GET", ["truth", ticker]:
            return _truth(server, unquote(ticker))
        case "POST", ["faults"]:
            return _fault(server, body)
        case "POST", ["pause" | "resume" as word]:
            server.pause(word == "pause")
            return 200, {"paused": word == "pause"}
    return 404, {"error": {"code": "not_found", "message": str(__doc__).partition("\n\n")[2].strip()}}


def _truth(server: "Server", ticker: str) -> tuple[int, Any]:
    market = server.exchange.markets.get(ticker)
    if market is None:
        return 404, {"error": {"code": "not_found", "message": f"no market {ticker} has begun"}}
    rows: list[dict[str, Any]] = [event.row() for event in market.truth]
    if market.forgotten:
        # Said first, so that nobody takes the rest for the whole.
        rows.insert(0, {"type": "forgotten", "events": market.forgotten})
    return 200, b"".join(orjson.dumps(row) + b"\n" for row in rows)


def _fault(server: "Server", body: bytes) -> tuple[int, Any]:
    try:
        fault = faults.parse(orjson.loads(body or b"{}"))
    except (faults.UnknownFault, orjson.JSONDecodeError, AttributeError) as error:
        return 422, {"error": {"code": "unknown_fault", "message": str(error)}}
    try:
        server.inject(fault)
    except faults.UnknownFault as error:
        return 422, {"error": {"code": "unknown_fault", "message": str(error)}}
    return 200, {"armed": [{"kind": f.kind, "count": f.count} for f in server.exchange.faults.armed]}
