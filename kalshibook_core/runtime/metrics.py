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

Counters = Mapping[str, int | float | str]
"""Short metric name → value; a string is shown at /status and is no metric."""

METRICS: Final[Mapping[str, str]] = {
    "kb_ingest_frames_total": "Websocket frames received.",
    "kb_ingest_bytes_total": "Bytes of the frames received.",
    "kb_deduplicator_frames_total": "Records read from the raw topic.",
    "kb_persister_events_total": "Events written to the database.",
    "kb_reconstructor_events_total": "Book events applied to live books.",
    "kb_gateway_requests_total": "HTTP requests answered.",
}
"""Every metric by full name, with what it means."""


class UnknownMetric(ValueError):
    """A service counts under a name the table does not have."""


def check(service: str, counters: Counters) -> None:
    """Raise UnknownMetric if a number in `counters` has no row in METRICS."""
    names = [_full(service, short) for short, value in counters.items() if not isinstance(value, str)]
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
            if isinstance(value, str):
                continue
            name = _full(self._service, short)
            family = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            yield family(name, METRICS.get(name, ""), value=value)


def _full(service: str, short: str) -> str:
    return f"kb_{service}_{short}"
