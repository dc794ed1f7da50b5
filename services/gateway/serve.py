"""The whole process: what it opens, which tasks it runs, in which order it drains."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import structlog
import uvicorn
from fastapi import WebSocket
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from kalshibook_core.archive.past import Past
from kalshibook_core.archive.reader import Archive
from kalshibook_core.kafka import admin
from kalshibook_core.orderbook.checksum import to_signed
from kalshibook_core.postgres.pool import connect_pool
from kalshibook_core.runtime import clock, metrics
from kalshibook_core.runtime.settings import ConfigurationError
from kalshibook_core.wire.events import Checkpoint
from services.gateway import app, instants
from services.gateway.accounts import Caller, Receipt
from services.gateway.admission import Admission
from services.gateway.errors import ApiError
from services.gateway.history import routes as history_routes
from services.gateway.history import series as history_series
from services.gateway.history.cold import Cold
from services.gateway.history.fold import CorruptHistory
from services.gateway.history.store import Store as History
from services.gateway.keys import store as key_store
from services.gateway.keys.lookup import Lookup
from services.gateway.live import stream
from services.gateway.live.feed import Feed
from services.gateway.live.latest import Latest
from services.gateway.markets import families
from services.gateway.markets import routes as market_routes
from services.gateway.markets.store import Store as Markets
from services.gateway.metering import prices
from services.gateway.metering import store as ledger_store
from services.gateway.metering.ledger import Ledger
from services.gateway.metering.meter import Meter
from services.gateway.metering.outbox import Outbox
from services.gateway.parameters import TICKER
from services.gateway.quality import routes as quality_routes
from services.gateway.quality.store import Store as Quality
from services.gateway.settings import Settings
from services.gateway.usage import routes as usage_routes
from services.gateway.usage import store as usage_store

log = structlog.get_logger()


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Serve until `stop` is set, then finish what was accepted.

    Drain: /readyz fails; new sockets are refused and streams closed (1001); requests under way are answered; their usage is
    flushed to Kafka; then the ledger's consumer leaves its group and connections close.
    """
    past = None if settings.archive is None else Past(Archive(settings.archive), settings.archive_bytes)
    with listening(settings.host, settings.port) as listener:
        await admin.ensure_topics(settings.cluster)
        async with (
            await connect_pool(settings.postgres_dsn, size=settings.pool, reset=False) as pool,
            cache(settings.redis_url) as redis,
        ):
            prefix = settings.cluster.prefix
            feed, latest, histories = (
                Feed(settings.cluster, settings.ring_events, clock.monotonic),
                Latest(redis, prefix),
                History(pool, Cold(pool, past)),
            )
            qualities = Quality(pool, feed.through)
            outbox, ledger = Outbox(redis, prefix, clock.now_us), Ledger(pool)
            meter = Meter(redis, outbox, partial(ledger_store.used_since, pool), prefix, clock.now_us, clock.monotonic)
            lookup = Lookup(partial(key_store.find, pool), clock.monotonic)
            newest, known = partial(newest_book, latest, histories), partial(is_known, histories, latest)
            streams = stream.Streams(feed, newest, known, settings.stream_queue, clock.monotonic)

            async def charge(caller: Caller, endpoint: str, rows: int, status: int) -> Receipt | None:
                credits = prices.credits(endpoint, rows)
                return await meter.charge(caller, endpoint, credits, status) if credits else None

            async def charge_stream(caller: Caller) -> None:
                await charge(caller, "stream", 0, 101)

            async def open_stream(websocket: WebSocket) -> None:
                await streams.serve(websocket, prices.STREAM_MESSAGES, partial(charge_stream, websocket.state.caller))

            def counters() -> Mapping[str, int]:
                return {
                    "requests_total": admission.requests,
                    "failed_requests_total": admission.failed,
                    "charged_calls_total": meter.charged,
                    "refused_calls_total": meter.refused,
                    "calls_without_redis_total": meter.without_redis,
                    "usage_waiting_events": len(outbox),
                    "usage_published_total": outbox.published,
                    "usage_swept_total": outbox.swept,
                    "ledger_rows_total": ledger.written,
                    "ledger_repeated_total": ledger.repeated,
                    "feed_events_total": feed.events,
                    "unreadable_events_total": feed.unreadable + ledger.unreadable,
                    "streams_open": len(streams),
                    "streams_cut_total": streams.cut,
                }

            def ready() -> bool:
                return server.started and feed.ready and not stop.is_set()

            application = app.create([
                market_routes.routes(Markets(pool)),
                families.routes(Markets(pool)),
                history_routes.routes(histories, latest.book, feed.through, qualities, clock.now_us),
                history_series.routes(histories, qualities),
                quality_routes.routes(qualities, clock.now_us),
                usage_routes.routes(partial(usage_store.by_day, pool), clock.now_us),
                stream.routes(open_stream),
            ])  # fmt: skip
            admission = Admission(application, lookup.caller, charge, ready, counters, clock.monotonic)
            metrics.check("gateway", counters())
            server = Server(admission, partial(announce, settings, listener))

            served, published = asyncio.Event(), asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(feed.consume(served), name="feed")
                tasks.create_task(feed.watch_coverage(pool, served), name="coverage")
                tasks.create_task(ledger.consume(settings.cluster, published), name="ledger")
                publishing = tasks.create_task(outbox.publish(settings.cluster, served), name="usage")
                tasks.create_task(drain(stop, streams, server), name="drain")
                await server.serve(sockets=[listener])
                served.set()
                await publishing
                published.set()


async def drain(stop: asyncio.Event, streams: stream.Streams, server: "Server") -> None:
    """Once `stop` is set, close the streams, then let the server answer what it accepted and end."""
    await stop.wait()
    await streams.close()
    server.should_exit = True


async def newest_book(latest: Latest, histories: History, ticker: str, again: bool) -> Checkpoint | None:
    """Return a market's newest book: of Redis, else, or when asked `again`, the newer of Redis and Postgres."""
    live = await latest.book(ticker)
    if live is not None and not again:
        return live
    market_id = await histories.market_id(ticker)
    try:
        state = None if market_id is None else await histories.book_at(market_id, instants.LAST_US)
        if state is None or market_id is None or (live is not None and live.version >= state.version):
            return live
        gap = await histories.gap_at(market_id, state.effective_us) if state.in_gap else None
    except CorruptHistory as error:
        log.error("gateway.history.corrupt", market_ticker=ticker, why=str(error))
        raise ApiError(
            500, "corrupt_history", "The stored history contradicts itself and is not served.", market_ticker=ticker
        ) from error
    start_us, _, cause = gap or (None, None, None)
    return Checkpoint(
        ticker, state.version, state.effective_us, list(state.book.yes), list(state.book.no), to_signed(state.book.checksum),
        start_us, cause, "", 0, 0, -1, -1,
    )  # fmt: skip


async def is_known(histories: History, latest: Latest, ticker: str) -> bool:
    """Tell whether a market was ever recorded."""
    if not TICKER.fullmatch(ticker):
        return False
    return await histories.market_id(ticker) is not None or await latest.book(ticker) is not None


class Server(uvicorn.Server):
    """uvicorn without its own signals, logs and listening: the process has one place for each."""

    def __init__(self, admission: Admission, started: Callable[[], None]) -> None:
        # Below "warning" uvicorn logs queries and websocket headers, where keys may stand; it stays silent at any KB_LOG_LEVEL.
        config = uvicorn.Config(
            admission, loop="none", http="httptools", ws="websockets-sansio", lifespan="off", log_config=None, access_log=False,
            log_level="warning", server_header=False, proxy_headers=False, timeout_graceful_shutdown=10,
            ws_max_size=64 * 1024, ws_per_message_deflate=False,
            timeout_keep_alive=75,  # longer than clients and proxies keep an idle connection, so that it is they who close it
        )  # fmt: skip
        super().__init__(config)
        self._told = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self._told()

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to `runtime.lifecycle`."""
        yield


@contextmanager
def listening(host: str, port: int) -> Generator[socket.socket, None, None]:
    """Listen at once, so that a port in use is told before anything else is opened; who comes early is answered later."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen()  # two may bind one port, and only one of them listens on it
        except OSError as error:
            raise ConfigurationError(
                f"KB_GATEWAY_HOST and KB_GATEWAY_PORT are {host} and {port}, where the gateway cannot listen ({error.strerror}): "
                "choose another port, or 0 for a free one"
            ) from error
        yield listener


def announce(settings: Settings, listener: socket.socket) -> None:
    """Say where the gateway listens, in the log and in the port file."""
    port = listener.getsockname()[1]
    log.info("gateway.listening", host=settings.host, port=port)
    if settings.port_file is not None:
        # Renamed into place: who waits for the file never reads half of it.
        written = settings.port_file.with_suffix(".new")
        written.write_text(f"{port}\n")
        written.replace(settings.port_file)


@asynccontextmanager
async def cache(url: str) -> AsyncIterator[Redis]:
    """Open Redis: short deadlines, one retry, and a bounded pool whose callers wait for each other."""
    pool = BlockingConnectionPool.from_url(
        url, max_connections=32, timeout=1.0, socket_timeout=1.0, socket_connect_timeout=1.0, retry=Retry(NoBackoff(), 1)
    )
    try:
        yield Redis(connection_pool=pool)
    finally:
        await pool.aclose()
