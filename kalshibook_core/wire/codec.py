"""Events to bytes and back: Avro in Confluent framing (magic byte 0, four bytes of schema id, then the record).

The schemas are the files of `schemas/avro/`, shipped inside the wheel. `encode` and `decode` are exact inverses; a value that is
not one of ours raises `UnknownSchema`, a broken one `Undecodable`. Reads and writes nothing but memory after import.
"""

import io
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Final

import fastavro
import orjson

from kalshibook_core.wire import events
from kalshibook_core.wire.varint import known_text, long, text

_CLASSES: Final[dict[str, Any]] = {
    cls.__name__: cls
    for cls in (
        events.RawFrame,
        events.BookSnapshot,
        events.BookDelta,
        events.Gap,
        events.Trade,
        events.Ticker,
        events.Lifecycle,
        events.Checkpoint,
        events.Audited,
        events.MarketMemory,
        events.Usage,
    )
}


class Undecodable(ValueError):
    """The bytes carry one of our schema ids but are not such a record."""


class UnknownSchema(Undecodable):
    """The value is not in Confluent framing, or its schema id is none of ours."""


def schema_folder() -> Path:
    """Return the folder of the .avsc files: inside the installed wheel, or the repository's own."""
    shipped = Path(str(resources.files("kalshibook_core.wire"))) / "avro"
    return shipped if shipped.is_dir() else Path(__file__).parents[2] / "schemas" / "avro"


def _load() -> dict[str, dict[str, Any]]:
    return {s["name"]: s for s in (orjson.loads(p.read_bytes()) for p in sorted(schema_folder().glob("*.avsc")))}


SCHEMAS: Final = _load()
"""Schema (as JSON object, with `schema_id`) by record name."""

_PARSED = {name: fastavro.parse_schema(dict(schema)) for name, schema in SCHEMAS.items()}
_LEVELS: Final = (events.BookSnapshot, events.Checkpoint)


def _header(schema: dict[str, Any]) -> bytes:
    return b"\x00" + int(schema["schema_id"]).to_bytes(4, "big")


def header(cls: type) -> bytes:
    """Return the five bytes that every value of an event begins with, as `encode` writes it."""
    return _header(SCHEMAS[cls.__name__])


def _readers() -> dict[bytes, tuple[Any, Any, Any]]:
    # Records outlive their schema: what was written under a released one is read into today's, whose new fields have defaults.
    released = (orjson.loads(path.read_bytes()) for path in sorted((schema_folder() / "released").glob("*.avsc")))
    old = {_header(s): (fastavro.parse_schema(s), _PARSED[s["name"]], _CLASSES[s["name"]]) for s in released}
    return old | {_header(SCHEMAS[name]): (_PARSED[name], None, cls) for name, cls in _CLASSES.items()}


_WRITERS = {cls: (_header(SCHEMAS[name]), _PARSED[name], cls._fields) for name, cls in _CLASSES.items()}
_READERS = _readers()


@lru_cache(maxsize=1 << 14)
def _stream(kind: str, gatherer: str, connection: int, generation: int, channel: str, sid: int) -> bytes:
    # What all frames of one sid of one connection have in common: the front of a RawFrame.
    front = text(kind) + text(gatherer) + long(connection) + long(generation) + text(channel) + long(sid)
    return _WRITERS[events.RawFrame][0] + front


_time = lru_cache(maxsize=64)(long)  # frames that came at once have their times in common


def encode_raw(
    kind: str,
    gatherer: str,
    connection: int,
    generation: int,
    channel: str,
    sid: int,
    seq: int,
    yes_price: bool,
    ticker: str,
    recv_us: int,
    clock_us: int,
    detail: str,
    payload: bytes,
) -> bytes:
    """Return `encode` of the RawFrame of these fields, which need not be made for it."""
    return b"".join(
        (
            _stream(kind, gatherer, connection, generation, channel, sid),
            long(seq),
            b"\1" if yes_price else b"\0",
            known_text(ticker),
            _time(recv_us),
            _time(clock_us),
            text(detail) if detail else b"\0",
            long(len(payload)),
            payload,
        )
    )


def encode(event: events.Event) -> bytes:
    """Return the event as a Kafka value."""
    # The kind made of every frame is put together by hand, at half fastavro's cost or less (benchmarks/codec.py). Deltas are many
    # as well: `columns.encoded` does a thousand at once.
    if type(event) is events.RawFrame:
        return encode_raw(*event)
    header, schema, fields = _WRITERS[type(event)]
    record = dict(zip(fields, event, strict=True))
    if isinstance(event, _LEVELS):
        record["yes"] = [{"price": p, "size": s} for p, s in event.yes]
        record["no"] = [{"price": p, "size": s} for p, s in event.no]
    out = io.BytesIO()
    out.write(header)
    fastavro.schemaless_writer(out, schema, record)
    return out.getvalue()


def decode(value: bytes) -> Any:
    """Return the event a Kafka value holds (one of `events.Event`); raise UnknownSchema or Undecodable."""
    found = _READERS.get(value[:5])
    if found is None:
        raise UnknownSchema(f"no schema for the header {value[:5].hex()}")
    written, wanted, cls = found
    body = io.BytesIO(value)
    body.seek(5)
    try:
        record: Any = fastavro.schemaless_reader(body, written, wanted)
    except (EOFError, IndexError, ValueError, OverflowError, StopIteration) as error:
        raise Undecodable(f"not a {cls.__name__}: {error!r}") from error
    if body.tell() != len(value):
        raise Undecodable(f"{len(value) - body.tell()} bytes after the end of a {cls.__name__}")
    if cls in _LEVELS:
        record["yes"] = [(level["price"], level["size"]) for level in record["yes"]]
        record["no"] = [(level["price"], level["size"]) for level in record["no"]]
    return cls._make(record.values()) if wanted is None else cls(**record)
