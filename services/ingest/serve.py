"""The gatherer as a process: what is opened, in which order, and what is counted.

Closing is the reverse: connections say their breaks and close (1000), then the outbox delivers what it holds.
"""

import asyncio
import random
from collections import Counter
from typing import Final

import structlog

from kalshibook_core.runtime import health
from kalshibook_core.runtime.metrics import Counters
from services.ingest.gatherer import Gatherer
from services.ingest.outbox import Outbox
from services.ingest.rest import Rest
from services.ingest.settings import Settings
from services.ingest.websocket import Socket

COUNTED: Final = (
    "bytes", "book_frames", "trade_frames", "ticker_frames", "lifecycle_frames", "other_frames", "breaks",
    "sequence_gap", "stale", "unannounced", "unasked", "malformed", "unparsable", "negative_level", "unknown_type", "error",
    "unanswered", "refused_markets", "turned_away", "snapshots_requested", "failed", "commands", "reconnects",
    "handshakes_failed", "rest_requests", "rest_retries", "rest_records", "rest_refused", "rest_unparsable", "rest_endless",
    "late_markets", "moved", "audited",
)  # fmt: skip
"""What only grows; each is a metric kb_ingest_<name>_total."""

_log = structlog.get_logger()


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Capture until `stop` is set, then finish what was received."""
    counts: Counter[str] = Counter()
    rng = random.Random()
    async with (
        Outbox(settings.cluster, settings.spool, settings.gatherer, settings.buffer_bytes) as outbox,
        Rest(settings.rest_url, settings.credentials, settings.requests_per_second, rng, counts) as rest,
    ):
        gatherer = Gatherer(settings, outbox, rest, counts, rng)

        def counters() -> Counters:
            return {f"{name}_total": counts[name] for name in COUNTED} | {
                "frames_total": sum(counts[name] for name in COUNTED if name.endswith("_frames")),
                "connections": sum(connection.connected for connection in gatherer.connections.values()),
                "subscriptions": gatherer.captured,
                "markets": len(gatherer.registry.markets),
                "left_out_markets": counts["left_out"],
                "left_out": gatherer.left_out,
                "left_out_tickers": gatherer.left_out_tickers,
                "trouble": gatherer.trouble or rest.trouble,
                "clock_skew_seconds": gatherer.clock_skew_seconds,
                "read_ahead_bytes": Socket.ahead,
                "buffered_bytes": outbox.buffered,
                "spool_bytes": outbox.spool_bytes,
                "spooled_total": outbox.spooled,
                "broker": outbox.state,
            }

        async with health.serve(settings.health, lambda: gatherer.ready, counters, service="ingest"):
            _log.info("capturing", gatherer=settings.gatherer, exchange=settings.ws_url)
            await gatherer.run(stop)
