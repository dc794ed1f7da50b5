"""The codec gives back exactly what it was given, in the bytes Avro prescribes, and refuses everything else by name."""

import contextlib
import io
from typing import Any

import fastavro
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kalshibook_core.wire import codec, events

TICKERS = st.text(max_size=40)
LONGS = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.sampled_from([s * 2**n + d for n in range(63) for s in (1, -1) for d in (-1, 0)])
)
INTS = st.integers(-(2**31), 2**31 - 1)
LEVELS = st.lists(st.tuples(INTS, LONGS), max_size=8)


def values(schema: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for the Python values of a field of type `schema`."""
    if isinstance(schema, list):
        return st.one_of(*(values(branch) for branch in schema))
    if isinstance(schema, dict) or schema == "kalshibook.Level":
        return LEVELS
    return {
        "null": st.none(),
        "string": TICKERS,
        "bytes": st.binary(max_size=300),
        "long": LONGS,
        "int": INTS,
        "boolean": st.booleans(),
    }[schema]


def event(name: str) -> st.SearchStrategy[Any]:
    """Return a strategy for events of class `name`."""
    fields = codec.SCHEMAS[name]["fields"]
    return st.tuples(*(LEVELS if _is_levels(f["type"]) else values(f["type"]) for f in fields)).map(getattr(events, name)._make)


def _is_levels(schema: Any) -> bool:
    return isinstance(schema, dict) and schema["type"] == "array"


EVENTS = st.sampled_from(sorted(codec.SCHEMAS)).flatmap(event)


@given(EVENTS)
def test_decode_undoes_encode(value: events.Event) -> None:
    decoded = codec.decode(codec.encode(value))
    assert decoded == value
    assert type(decoded) is type(value)


@given(st.one_of(event("RawFrame"), event("BookDelta"), event("BookSnapshot")))
def test_the_bytes_are_those_of_avro_in_confluent_framing(value: Any) -> None:
    schema = codec.SCHEMAS[type(value).__name__]
    record = value._asdict()
    for side in ("yes", "no"):
        if side in record:
            record[side] = [{"price": price, "size": size} for price, size in record[side]]
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(dict(schema)), record)
    assert codec.encode(value) == b"\0" + schema["schema_id"].to_bytes(4, "big") + out.getvalue()


def test_a_delta_on_the_wire() -> None:
    # Written by hand from the Avro specification: zigzag, seven bits a byte, lengths before strings.
    delta = events.BookDelta("A", 1, 2, 3, -1, 0, 4800, -5400, -1, "g", 1, 300, 4, 5, 64)
    expected = b"\x00\x00\x00\x00\x03" + b"\x02A\x02\x04\x06\x01\x00" + b"\x80\x4b" + b"\xaf\x54" + b"\x01"
    expected += b"\x02g\x02" + b"\xd8\x04" + b"\x08\x0a\x80\x01"
    assert codec.encode(delta) == expected
    assert codec.decode(expected) == delta


@given(EVENTS, st.data())
def test_damaged_bytes_are_undecodable_and_nothing_worse(value: events.Event, data: st.DataObject) -> None:
    encoded = bytearray(codec.encode(value))
    for _ in range(data.draw(st.integers(0, 3))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(encoded[: data.draw(st.integers(0, len(encoded)))])
    with contextlib.suppress(codec.Undecodable):
        codec.decode(cut)


@given(st.sampled_from([s["schema_id"] for s in codec.SCHEMAS.values()]), st.binary(max_size=80))
def test_random_bytes_under_a_known_header_are_undecodable_and_nothing_worse(schema_id: int, body: bytes) -> None:
    with contextlib.suppress(codec.Undecodable):
        codec.decode(b"\0" + schema_id.to_bytes(4, "big") + body)


@given(EVENTS)
def test_a_record_cut_short_or_with_a_tail_is_undecodable(value: events.Event) -> None:
    encoded = codec.encode(value)
    for wrong in (encoded[:-1], encoded + b"\0"):
        with pytest.raises(codec.Undecodable):
            codec.decode(wrong)


@pytest.mark.parametrize("foreign", [b"", b"{}", b"\0\0\0\0", b"\0\0\0\0\x63abc", b"\1\0\0\0\1abc"])
def test_a_value_of_somebody_else_has_an_unknown_schema(foreign: bytes) -> None:
    with pytest.raises(codec.UnknownSchema):
        codec.decode(foreign)


def test_an_integer_that_does_not_fit_is_refused() -> None:
    frame = events.RawFrame("FRAME", "g1", 1, 1, "", 1, 2**63, False, "A", 1, 1, "", b"")
    with pytest.raises(OverflowError):
        codec.encode(frame)
    assert codec.decode(codec.encode(frame._replace(seq=2**63 - 1))).seq == 2**63 - 1
    now = 1_800_000_000_000_000
    delta = events.BookDelta("A", 1, now, now, now, 0, 4800, -5400, 2**62, "g", 1, 300, 4, 5, 64)
    for field in ("version", "recv_us", "delta", "checksum", "raw_offset"):
        for number in (2**63, -(2**63) - 1):
            with pytest.raises(OverflowError):
                codec.encode(delta._replace(**{field: number}))
