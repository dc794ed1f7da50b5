"""Events a second through the codec, next to bare fastavro on the same record."""

import io
import time
from collections.abc import Callable
from typing import Any

import fastavro

from benchmarks import Row, frames
from kalshibook_core.wire import codec

NAME = "codec"
COUNT = 50_000


def run(addresses: Any) -> list[Row]:
    """Measure; needs no part of the stack."""
    rows = []
    for event in (frames.raw(12345), frames.delta(12345)):
        name = type(event).__name__
        schema, record, value = fastavro.parse_schema(dict(codec.SCHEMAS[name])), event._asdict(), codec.encode(event)
        body = value[5:]
        bare_write = _rate(lambda s=schema, r=record: fastavro.schemaless_writer(io.BytesIO(), s, r))  # type: ignore[misc]
        bare_read = _rate(lambda s=schema, b=body: fastavro.schemaless_reader(io.BytesIO(b), s, None))  # type: ignore[misc]
        rows.append(Row.of(f"encode a {name}", _rate(lambda e=event: codec.encode(e)), "events/s", bare_write))  # type: ignore[misc]
        rows.append(Row.of(f"decode a {name}", _rate(lambda v=value: codec.decode(v)), "events/s", bare_read))  # type: ignore[misc]
    return rows


def _rate(work: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(COUNT):
            work()
        best = min(best, time.perf_counter() - began)
    return COUNT / best
