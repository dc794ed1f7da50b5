"""The gatherer as a process: what is opened, in which order, and what is counted.

Closing is the reverse: connections say their breaks and close (1000), then the producer delivers what it holds.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from typing import Final

import structlog

from kalshibook_core.kafka import admin
from kalshibook_core.kafka.producer import Producer
from kalshibook_core.runtime import health
from services.ingest.gatherer import Gatherer
from services.ingest.rest import Rest
from services.ingest.settings import Settings

COUNTED: Final = (
    "bytes", "book_frames", "trade_frames", "ticker_frames", "lifecycle_frames", "other_frames", "breaks",
    "sequence_gap", "stale", "unannounced", "malformed", "unparsable", "negative_level", "unknown_type", "error", "unanswered",
    "refused_markets", "snapshots_requested", "failed", "commands", "reconnects", "handshakes_failed",
    "rest_requests", "rest_retries", "rest_records", "rest_refused", "rest_unparsable",
)  # fmt: skip
"""What only grows; each is a metric kb_ingest_<name>_total."""

OUTAGE_SECONDS: Final = 86_400.0
"""How long Kafka may be away before the process gives up; until then the sockets stand and the frames wait."""

_log = structlog.get_logger()


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Capture until `stop` is set, then finish what was received."""
    counts: Counter[str] = Counter()
    rng = random.Random()
    await admin.ensure_topics(settings.cluster)
    async with (
        Producer(settings.cluster, max_buffered=settings.buffer_bytes, delivery_seconds=OUTAGE_SECONDS) as producer,
        Rest(settings.rest_url, settings.credentials, settings.requests_per_second, rng, counts) as rest,
    ):
        gatherer = Gatherer(settings, producer, rest, counts, rng)

        def counters() -> Mapping[str, int]:
            return {f"{name}_total": counts[name] for name in COUNTED} | {
                "frames_total": sum(counts[name] for name in COUNTED if name.endswith("_frames")),
                "connections": sum(connection.connected for connection in gatherer.connections.values()),
                "subscriptions": gatherer.captured,
                "markets": len(gatherer.registry.markets),
                "left_out_markets": counts["left_out"],
                "buffered_bytes": producer.buffered,
            }

        async with health.serve(
            settings.health_port, lambda: gatherer.ready, counters, service="ingest", host=settings.health_host
        ):
            _log.info("capturing", gatherer=settings.gatherer, exchange=settings.ws_url)
            await gatherer.run(stop)
