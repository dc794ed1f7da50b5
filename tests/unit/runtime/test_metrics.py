"""Only metrics of the vocabulary leave a service, in the form Prometheus reads."""

import os
import re

import orjson
import pytest
from prometheus_client.parser import text_string_to_metric_families

from kalshibook_core.runtime import health, metrics


def test_the_vocabulary_has_one_form_and_a_meaning_each() -> None:
    services = "ingest|backfill|deduplicator|persister|archive|retention|reconstructor|gateway"
    for name, meaning in metrics.METRICS.items():
        assert re.fullmatch(rf"kb_({services})_[a-z][a-z0-9_]*", name), name
        assert meaning.endswith("."), name


def test_a_name_outside_the_vocabulary_is_refused() -> None:
    metrics.check("ingest", {"frames_total": 1, "state": "connected"})
    with pytest.raises(metrics.UnknownMetric, match="kb_ingest_frmaes_total"):
        metrics.check("ingest", {"frmaes_total": 1})


def test_prometheus_reads_what_we_render() -> None:
    text = metrics.render("ingest", {"frames_total": 12, "bytes_total": 2**40, "state": "connected"}).decode()
    found = {family.name: family for family in text_string_to_metric_families(text)}
    assert set(found) == {"kb_ingest_frames", "kb_ingest_bytes"}
    frames = found["kb_ingest_frames"]
    assert (frames.type, frames.documentation) == ("counter", metrics.METRICS["kb_ingest_frames_total"])
    assert [(s.name, s.value) for s in frames.samples if s.name.endswith("_total")] == [("kb_ingest_frames_total", 12.0)]


def test_what_is_counted_by_gatherer_has_that_label() -> None:
    text = metrics.render("deduplicator", {"gatherer_led_total": {"g1": 3, 'g"2': 4}, "gatherer_lag_seconds": {}}).decode()
    found = {family.name: family for family in text_string_to_metric_families(text)}
    samples = [(s.labels, s.value) for s in found["kb_deduplicator_gatherer_led"].samples if s.name.endswith("_total")]
    assert samples == [({"gatherer": "g1"}, 3.0), ({"gatherer": 'g"2'}, 4.0)]
    assert not found["kb_deduplicator_gatherer_lag_seconds"].samples


def test_readiness_is_what_the_service_says_now() -> None:
    states = iter([False, True])
    first, second = (health.answer("/readyz", "ingest", lambda: next(states), dict) for _ in range(2))
    assert first is not None
    assert second is not None
    assert (first[0], second[0]) == (503, 200)


def test_the_status_shows_numbers_and_words() -> None:
    answer = health.answer("/status", "ingest", lambda: True, lambda: {"frames_total": 1, "state": "connected"})
    assert answer is not None
    assert orjson.loads(answer[2]) == {
        "ready": True, "pid": os.getpid(), "counters": {"frames_total": 1, "state": "connected"},
    }  # fmt: skip
    assert health.answer("/nothing", "ingest", lambda: True, dict) is None
