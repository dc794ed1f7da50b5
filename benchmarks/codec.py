"""Events a second through the codec, next to bare fastavro on the same records."""

import io
import time
from collections.abc import Callable
from typing import Any

import fastavro

from benchmarks import Row, frames
from kalshibook_core.wire import codec, columns
from kalshibook_core.wire.raw import RawReader

NAME = "codec"
COUNT = 1_000  # different events: of frames that came at once the times would be the same, and cost less
ROUNDS = 50


def run(addresses: Any) -> list[Row]:
    """Measure; needs no part of the stack."""
    rows = []
    for make in (frames.raw, frames.delta):
        events: list[Any] = [make(12345 + n) for n in range(COUNT)]
        name = type(events[0]).__name__
        schema, records, values = (
            fastavro.parse_schema(dict(codec.SCHEMAS[name])),
            [e._asdict() for e in events],
            list(map(codec.encode, events)),
        )
        bodies = [value[5:] for value in values]
        bare_write = _rate(lambda record, s=schema: fastavro.schemaless_writer(io.BytesIO(), s, record), records)
        bare_read = _rate(lambda body, s=schema: fastavro.schemaless_reader(io.BytesIO(body), s, None), bodies)
        rows.append(Row.of(f"encode a {name}", _rate(codec.encode, events), "events/s", bare_write))
        rows.append(Row.of(f"decode a {name}", _rate(codec.decode, values), "events/s", bare_read))
        if name == "RawFrame":
            rows.append(Row.of("read RawFrames, a thousand at once", COUNT * _rate(_read, [values]), "events/s", bare_read))
        else:
            encoded, decoded = (
                COUNT * _rate(work, [each]) for work, each in ((columns.encoded, events), (columns.deltas, values))
            )
            rows.append(Row.of("encode BookDeltas, a thousand at once", encoded, "events/s", bare_write))
            rows.append(Row.of("decode BookDeltas, a thousand at once", decoded, "events/s", bare_read))
    return rows


def _read(values: list[bytes]) -> None:
    reader = RawReader()
    for value, found in zip(values, reader.peek(values), strict=True):
        reader.read(value, found)


def _rate(work: Callable[[Any], object], inputs: list[Any]) -> float:
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        for _ in range(ROUNDS):
            for each in inputs:
                work(each)
        best = min(best, time.perf_counter() - began)
    return ROUNDS * len(inputs) / best
