"""The closed vocabulary of our metrics, and their form for Prometheus.

A service counts in plain integers and hands them out by short name ("frames_total"); on the wire they are
`kb_<service>_<noun>_<unit>`. A name that is not in the table is refused when the service starts. Names that end in `_total`
only grow; all others are gauges.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

Counters = Mapping[str, int | float | str | list[str] | Mapping[str, int | float]]
"""Short metric name → value; strings are shown at /status and are no metrics, a mapping is by gatherer: a sample each."""

METRICS: Final[Mapping[str, str]] = {
    "kb_ingest_frames_total": "Websocket frames received.",
    "kb_ingest_bytes_total": "Bytes of the frames received.",
    "kb_ingest_book_frames_total": "Frames of the orderbook_delta channel.",
    "kb_ingest_trade_frames_total": "Frames of the trade channel.",
    "kb_ingest_ticker_frames_total": "Frames of the ticker channel.",
    "kb_ingest_lifecycle_frames_total": "Frames of the market_lifecycle_v2 channel.",
    "kb_ingest_other_frames_total": "Frames of no channel: replies, unknown types, what is no message.",
    "kb_ingest_breaks_total": "BREAK records written: a market of a channel that could not be vouched for.",
    "kb_ingest_sequence_gap_total": "Holes seen in the seq of a sid.",
    "kb_ingest_stale_total": "Frames whose seq their sid had passed: kept, never applied.",
    "kb_ingest_unannounced_total": "Book and trade frames of a sid that is not followed: kept, never applied.",
    "kb_ingest_unasked_total": "Book frames of markets that their connection did not subscribe: kept, never asked about.",
    "kb_ingest_malformed_total": "Frames that are no message: kept.",
    "kb_ingest_unparsable_total": "Frames whose content is not what their channel carries: kept.",
    "kb_ingest_negative_level_total": "Deltas that would take a level below zero: kept; the market's snapshot is asked for.",
    "kb_ingest_unknown_type_total": "Frames of a message type we do not know: kept.",
    "kb_ingest_error_total": "Error messages of the exchange.",
    "kb_ingest_unanswered_total": "Markets of which no snapshot came however it was asked for.",
    "kb_ingest_refused_markets_total": "Markets the exchange would not subscribe.",
    "kb_ingest_turned_away_total": "Markets for which the exchange had no room on a connection: placed elsewhere.",
    "kb_ingest_snapshots_requested_total": "Markets of which a snapshot was asked for.",
    "kb_ingest_failed_total": "Connections given up by their session.",
    "kb_ingest_commands_total": "Commands sent.",
    "kb_ingest_reconnects_total": "Connections that ended.",
    "kb_ingest_handshakes_failed_total": "Handshakes that failed or were refused.",
    "kb_ingest_rest_requests_total": "REST requests made.",
    "kb_ingest_rest_retries_total": "REST requests to be made again.",
    "kb_ingest_rest_records_total": "Market, event and series objects read by REST that said anything new.",
    "kb_ingest_rest_refused_total": "REST requests the exchange refused for good.",
    "kb_ingest_rest_unparsable_total": "REST answers, or objects in them, that could not be read.",
    "kb_ingest_rest_endless_total": "Lists given up since they had no end.",
    "kb_ingest_late_markets_total": "Markets that traded already when they were first heard of: not_yet_subscribed until then.",
    "kb_ingest_audited_total": "Order books read by REST, to be compared with ours.",
    "kb_ingest_moved_total": "Markets that another connection took over before theirs let go of them.",
    "kb_ingest_connections": "Websocket connections that live.",
    "kb_ingest_subscriptions": "Markets placed on connections.",
    "kb_ingest_markets": "Markets known.",
    "kb_ingest_left_out_markets": "Markets for which no connection has room.",
    "kb_ingest_clock_skew_seconds": "How far the exchange's clock is ahead of ours; past 5 s it refuses our signatures.",
    "kb_ingest_read_ahead_bytes": "Bytes read off the websockets and not recorded yet; past 64 MiB no more are read.",
    "kb_ingest_buffered_bytes": "Bytes waiting for Kafka's acknowledgement.",
    "kb_ingest_spool_bytes": "Bytes on the disk, waiting for Kafka.",
    "kb_ingest_spooled_total": "Records that went over the disk, since Kafka was away or slow.",
    "kb_backfill_trades_total": "Trades read from REST's history.",
    "kb_backfill_gaps_total": "Gaps of trades read over, and marked.",
    "kb_backfill_markets_total": "Markets passed on: closed unseen, without a definition, or with an outcome nobody had told.",
    "kb_backfill_events_total": "Definitions of events read for them.",
    "kb_backfill_unreadable_total": "Objects of REST that could not be read; those with a ticker are kept.",
    "kb_backfill_failed_total": "Lists not read to their end: asked for again, after twice the time.",
    "kb_backfill_rest_requests_total": "REST requests made.",
    "kb_backfill_rest_retries_total": "REST requests to be made again.",
    "kb_backfill_database_retries_total": "Looks put off because the database was away.",
    "kb_backfill_unfilled_gaps": "Gaps of trades that have ended and were not filled, at the last look.",
    "kb_backfill_unresolved_markets": "Markets without a definition, or closed and not settled, at the last look.",
    "kb_deduplicator_frames_total": "Records read from the raw topic.",
    "kb_deduplicator_snapshots_total": "BookSnapshot events written.",
    "kb_deduplicator_deltas_total": "BookDelta events written.",
    "kb_deduplicator_trades_total": "Trade events written.",
    "kb_deduplicator_tickers_total": "Ticker events written.",
    "kb_deduplicator_lifecycle_total": "Lifecycle events written.",
    "kb_deduplicator_gaps_opened_total": "Gaps opened in books.",
    "kb_deduplicator_gaps_closed_total": "Gaps in books closed by a snapshot.",
    "kb_deduplicator_trade_gaps_opened_total": "Gaps opened in trades.",
    "kb_deduplicator_trade_gaps_closed_total": "Gaps in trades closed.",
    "kb_deduplicator_stale_total": "Frames whose seq had passed: kept in the raw topic, not applied.",
    "kb_deduplicator_refused_total": "Book frames of a source whose book is not known, or that came before: not applied.",
    "kb_deduplicator_confirmed_total": "Book events that another gatherer had delivered before.",
    "kb_deduplicator_gatherer_records_total": "Raw records read, by gatherer.",
    "kb_deduplicator_gatherer_led_total": "Book events that a gatherer was the first to deliver, by gatherer: its lead.",
    "kb_deduplicator_gatherer_confirmed_total": "Book events that another had delivered before, by gatherer: its duplicates.",
    "kb_deduplicator_gatherer_breaks_total": "BREAK records read, by gatherer.",
    "kb_deduplicator_gatherer_contradictions_total": "Events that contradicted the log, by gatherer.",
    "kb_deduplicator_gatherer_excluded_markets": "Markets in which a gatherer contradicts the log and is not heard, by gatherer.",
    "kb_deduplicator_gatherer_lag_seconds": "How far, in the exchange's time, a gatherer is behind the foremost, by gatherer.",
    "kb_deduplicator_gatherer_lag_events": "Book events that a gatherer was behind when it last delivered any, by gatherer.",
    "kb_deduplicator_snapshots_confirmed_total": "Snapshots on our asking that equal the book.",
    "kb_deduplicator_ticker_repeats_total": "Tickers that another gatherer had delivered before, or that are older.",
    "kb_deduplicator_aligned_total": "Times that a source's place in its market's log was found.",
    "kb_deduplicator_contradiction_total": "Events that contradicted the log: their source was taken out of it until it agrees.",
    "kb_deduplicator_excluded_total": "Sources taken out of the log because most others contradicted them.",
    "kb_deduplicator_corrections_total": "Logs corrected because most sources contradicted them.",
    "kb_deduplicator_given_up_total": "Times that sources too far behind were waited for no longer.",
    "kb_deduplicator_fell_behind_total": "Sources that fell behind more than a log remembers.",
    "kb_deduplicator_past_full_total": "Times that what an ended source had heard ahead of the log could not be kept.",
    "kb_deduplicator_savepoints_total": "Savepoints written.",
    "kb_deduplicator_waiting_markets": "Markets with a source whose place in the log is not known.",
    "kb_deduplicator_trade_repeats_total": "Trade frames whose trade_id was seen.",
    "kb_deduplicator_lifecycle_repeats_total": "Lifecycle frames and definitions that were told already.",
    "kb_deduplicator_unparsable_total": "Frames whose content could not be read: kept in the raw topic.",
    "kb_deduplicator_off_grid_total": "Book frames with a price off their market's grid: applied.",
    "kb_deduplicator_unknown_types_total": "Frames of a message type we do not know.",
    "kb_deduplicator_rest_trades_total": "Trades told by REST, and passed on.",
    "kb_deduplicator_trade_gaps_filled_total": "Gaps of trades that REST was read over.",
    "kb_deduplicator_import_refused_total": "Books that were imported too late for a log that goes on: not taken.",
    "kb_deduplicator_foreign_records_total": "Raw records that are no RawFrame of their key: passed over.",
    "kb_deduplicator_transactions_total": "Kafka transactions committed.",
    "kb_deduplicator_markets": "Markets in memory.",
    "kb_deduplicator_partitions": "Partitions assigned.",
    "kb_deduplicator_lag_records": "Raw records not read yet.",
    "kb_persister_events_total": "Events written to the database.",
    "kb_persister_batches_total": "Transactions committed.",
    "kb_persister_write_microseconds_total": "Time spent writing batches, attempts that failed included.",
    "kb_persister_unreadable_total": "Records passed over because no row can be made of them.",
    "kb_persister_missing_versions_total": "Versions of a market that the stream passed over: no book is served over them.",
    "kb_persister_retries_total": "Attempts that failed because Postgres was away.",
    "kb_persister_superseded_total": "Batches dropped because another process had written their partitions.",
    "kb_persister_waiting_rows": "Events read and not written yet.",
    "kb_persister_lag_records": "Offsets between what is read and the ends of the topics.",
    "kb_persister_lost_records": "Records that the log should have and has not: it is halted, see the runbook.",
    "kb_persister_last_effective_us": "Effective time of the last book event written, in microseconds since the epoch.",
    "kb_persister_book_events_rows_total": "Rows written to book_events.",
    "kb_persister_trades_rows_total": "Rows written to trades.",
    "kb_persister_trades_repeated_total": "Trades that were in the table already, and are told alike.",
    "kb_persister_trades_backfilled_total": "Trades that only REST told.",
    "kb_persister_trades_different_total": "Trades told otherwise than the table has them: kept in trade_differences.",
    "kb_persister_gaps_filled_total": "Gaps of trades that REST was read over.",
    "kb_persister_tickers_rows_total": "Rows written to tickers.",
    "kb_persister_lifecycle_rows_total": "Rows written to lifecycle.",
    "kb_persister_checkpoints_rows_total": "Rows written to checkpoints.",
    "kb_persister_gaps_rows_total": "Gaps opened or closed.",
    "kb_persister_markets_rows_total": "Markets described anew.",
    "kb_persister_events_rows_total": "Definitions of events written to events.",
    "kb_persister_series_rows_total": "Definitions of series written to series.",
    "kb_persister_audits_rows_total": "Rows written to audits: a live book compared with the exchange's.",
    "kb_persister_coverage_rows_total": "Revisions of what is covered of a market's hour, written to coverage.",
    "kb_persister_conditions_rows_total": "Days of which it was said what their condition is.",
    "kb_archive_raw_rows_total": "Raw records written to the archive.",
    "kb_archive_book_rows_total": "Book events written to the archive.",
    "kb_archive_trades_rows_total": "Trades, and gaps in them, written to the archive.",
    "kb_archive_tickers_rows_total": "Tickers written to the archive.",
    "kb_archive_lifecycle_rows_total": "Lifecycle events written to the archive.",
    "kb_archive_checkpoints_rows_total": "Checkpoints written to the archive.",
    "kb_archive_commits_total": "Commits written: runs of a partition's records that are in the archive.",
    "kb_archive_files_total": "Parquet files written.",
    "kb_archive_bytes_total": "Bytes of the Parquet files written.",
    "kb_archive_write_microseconds_total": "Time spent making and writing files, attempts that failed included.",
    "kb_archive_unreadable_total": "Canonical records passed over because they are no such event.",
    "kb_archive_retries_total": "Attempts that failed because the storage was away.",
    "kb_archive_repacks_total": "Finished days of a partition put together.",
    "kb_archive_repacked_files_total": "Files that were put together into fewer.",
    "kb_archive_swept_files_total": "Files deleted because others stand for them, proved once more, for the time of grace.",
    "kb_archive_damaged_total": "Days not put together because a file of them is missing or not what was written.",
    "kb_archive_lost_records": "Records that the log should have and has not: it is halted, see the runbook.",
    "kb_archive_waiting_records": "Offsets in Kafka that are not in the archive yet: until there are enough of them for files.",
    "kb_retention_verified_events_total": "Events and rows compared with the archive's.",
    "kb_retention_dropped_partitions_total": "Partitions dropped, since the archive has each of their rows.",
    "kb_retention_dropped_events_total": "Events and rows in them.",
    "kb_retention_differences_total": "Times that a partition was found to differ from the archive, and stayed.",
    "kb_retention_differing_partitions": "Partitions that differ from the archive, at the last look.",
    "kb_retention_behind_partitions": "Partitions whose rows were not all archived yet, at the last look.",
    "kb_retention_retries_total": "Attempts that failed because the database or the archive's storage was away.",
    "kb_reconstructor_events_total": "Book events applied to live books.",
    "kb_reconstructor_repeated_total": "Book events that a checkpoint already held.",
    "kb_reconstructor_unreadable_total": "Records of the book topic that are no book event.",
    "kb_reconstructor_checkpoints_total": "Checkpoints written.",
    "kb_reconstructor_books_shown_total": "Books written to Redis.",
    "kb_reconstructor_books_waiting_count": "Books that changed since they were last written to Redis.",
    "kb_reconstructor_markets_count": "Live books held.",
    "kb_reconstructor_corrupt_count": "Markets whose events did not verify: not shown, not written down.",
    "kb_reconstructor_audits_matched_total": "Books of REST that ours was equal to at some instant of their window.",
    "kb_reconstructor_audits_mismatched_total": "Books of REST that ours was never equal to: one of the two is wrong.",
    "kb_reconstructor_audits_unknown_total": "Books of REST from a time in which ours was not known throughout.",
    "kb_reconstructor_lag_records": "Offsets between what is applied and the end of the topic.",
    "kb_reconstructor_redis_retries_total": "Attempts that failed because Redis was away.",
    "kb_reconstructor_fenced_total": "Times that another process had taken over our partitions.",
    "kb_gateway_requests_total": "HTTP requests answered.",
    "kb_gateway_failed_requests_total": "HTTP requests answered with a status of 500 or more.",
    "kb_gateway_charged_calls_total": "Calls whose credits were taken.",
    "kb_gateway_refused_calls_total": "Calls refused because the plan had no credits left.",
    "kb_gateway_calls_without_redis_total": "Charged calls whose allowance was not checked because Redis was away.",
    "kb_gateway_usage_waiting_events": "Usage events Kafka has not acknowledged yet.",
    "kb_gateway_usage_published_total": "Usage events Kafka acknowledged.",
    "kb_gateway_usage_swept_total": "Usage events published for a gateway that could not.",
    "kb_gateway_ledger_rows_total": "Rows written to the ledger.",
    "kb_gateway_ledger_repeated_total": "Usage events that the ledger had already.",
    "kb_gateway_feed_events_total": "Book events read for streams.",
    "kb_gateway_unreadable_events_total": "Records of the book and usage topics that are no such event.",
    "kb_gateway_streams_open": "Websocket streams open.",
    "kb_gateway_streams_cut_total": "Streams closed because their client read too slowly.",
}
"""Every metric by full name, with what it means."""


class UnknownMetric(ValueError):
    """A service counts under a name the table does not have."""


def check(service: str, counters: Counters) -> None:
    """Raise UnknownMetric if a number in `counters` has no row in METRICS."""
    names = [_full(service, short) for short, value in counters.items() if not isinstance(value, str | list)]
    unknown = ", ".join(name for name in names if name not in METRICS)
    if unknown:
        raise UnknownMetric(f"kalshibook_core.runtime.metrics.METRICS has no row for {unknown}: add one each, with its meaning")


def render(service: str, counters: Counters) -> bytes:
    """Return the counters in Prometheus' text form."""
    registry = CollectorRegistry()
    registry.register(_Snapshot(service, counters))
    return generate_latest(registry)


class _Snapshot(Collector):
    def __init__(self, service: str, counters: Counters) -> None:
        self._service = service
        self._counters = counters

    def collect(self) -> Iterable[Metric]:
        for short, value in self._counters.items():
            if isinstance(value, str | list):
                continue
            name = _full(self._service, short)
            make = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            if isinstance(value, Mapping):
                family = make(name, METRICS.get(name, ""), labels=["gatherer"])
                for gatherer, each in value.items():
                    family.add_metric([gatherer], each)
                yield family
            else:
                yield make(name, METRICS.get(name, ""), value=value)


def _full(service: str, short: str) -> str:
    return f"kb_{service}_{short}"
