"""RawReader reads what codec.decode reads, byte for byte and fault for fault, whether or not it knows the front."""

from functools import partial
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kalshibook_core.wire import codec
from kalshibook_core.wire.events import RawFrame, Ticker
from kalshibook_core.wire.raw import KNOWN, TIMES, RawReader

LONG = st.integers(-(2**63), 2**63 - 1)
TODAY = st.integers(1_700_000_000_000_000, 1_900_000_000_000_000)
FRAMES = st.builds(
    RawFrame,
    st.sampled_from(["FRAME", "BREAK", "é"]), st.sampled_from(["g1", "g2"]), st.integers(-(2**31), 2**31 - 1), TODAY | LONG,
    st.sampled_from(["orderbook_delta", ""]), st.integers(-1, 99), st.integers(-1, 2**31) | LONG, st.booleans(),
    st.sampled_from(["KXGOLD15M-26JAN01-T1.5", "", "ü", "K" * 63, "K" * 64, "K" * 200]), TODAY | LONG, TODAY | LONG,
    st.just("") | st.text(max_size=3), st.binary(max_size=70) | st.integers(8190, 8195).map(bytes),
)  # fmt: skip


def told(read: Any, value: bytes) -> Any:
    try:
        return read(value)
    except codec.Undecodable as error:
        return type(error)  # what it says has a memory address in it


@given(st.lists(FRAMES, min_size=1, max_size=4), st.data())
def test_it_reads_what_the_codec_reads(frames: list[RawFrame], data: st.DataObject) -> None:
    whole = [codec.encode(each) for frame in frames for each in (frame, frame._replace(seq=frame.seq ^ 1, payload=b"x" * 200))]
    values = []
    for value in whole:
        at, byte = data.draw(st.integers(0, len(value) - 1)), data.draw(st.binary(min_size=1, max_size=1))
        values += [value, value[:at], value + b"\0", value[:at] + byte + value[at + 1 :], value[:at] + value[at + 1 :]]
    reader = RawReader()
    for value, found in zip(values, reader.peek(values), strict=True):
        read = told(_decoded, value)
        assert told(partial(reader.read, found=found), value) == read
        front, seq, recv_us, clock_us, ticker, payload = found
        if front is not None and type(read) is RawFrame:
            name = value[ticker : payload - TIMES].decode()
            assert (*front.fields, seq, False, name, recv_us, clock_us, "", value[payload:]) == read


def read_alone(reader: RawReader, value: bytes) -> RawFrame:
    (found,) = reader.peek([value])
    return reader.read(value, found)


def _decoded(value: bytes) -> RawFrame:
    raw = codec.decode(value)
    if type(raw) is not RawFrame:
        raise codec.UnknownSchema(f"a {type(raw).__name__}, not a RawFrame")
    return raw


def test_usual_frames_are_known_at_a_glance_and_other_events_are_refused() -> None:
    reader, now = RawReader(), 1_790_000_000_000_000
    for sid in (1, 2, 300):
        frame = RawFrame("FRAME", "g1", 3, now, "orderbook_delta", sid, 7, False, "KXA", now, now + 1, "", b"{" * 200)
        values = [codec.encode(frame._replace(seq=seq)) for seq in (0, 63, 64, 8191, 8192, 2**20, 2**27 - 1)]
        assert all(found[0] is not None for found in reader.peek(values))
        for unusual in (
            frame._replace(seq=2**27),
            frame._replace(detail="x"),
            frame._replace(yes_price=True),
            frame._replace(clock_us=0),
        ):
            assert [found[0] for found in reader.peek([codec.encode(unusual)])] == [None]
    ticker = codec.encode(Ticker("KXA", *[0] * 13))
    assert told(partial(read_alone, reader), ticker) is codec.UnknownSchema
    assert list(reader.peek([])) == []


def test_a_byte_that_makes_another_record_of_a_usual_one_is_never_passed_over() -> None:
    reader, now = RawReader(), 1_790_000_000_000_000
    frame = RawFrame("FRAME", "g1", 3, now, "orderbook_delta", 1, 700, False, "KXA", now, now + 1, "", b"{" * 200)
    value = codec.encode(frame)
    others = [
        value[:at] + bytes((byte,)) + value[at + 1 :]
        for at in range(len(value) - len(frame.payload))
        for byte in (0, 1, 2, 0x7F, 0x80, 0x81, 0x82, 0xFF, value[at] ^ 1, value[at] ^ 0x80)
    ]
    read_alone(reader, value)
    for other, found in zip(others, reader.peek(others), strict=True):
        assert told(partial(reader.read, found=found), other) == told(_decoded, other)


def test_a_ticker_that_is_no_text_is_refused_as_by_the_codec() -> None:
    reader, now = RawReader(), 1_790_000_000_000_000
    value = codec.encode(RawFrame("FRAME", "g1", 3, now, "orderbook_delta", 1, 7, False, "KXA", now, now + 1, "", b"{" * 200))
    broken = value.replace(b"KXA", b"K\x80A")
    found, wrong = reader.peek([value, broken])
    assert found[0] is wrong[0] is not None
    assert told(partial(reader.read, found=wrong), broken) == told(_decoded, broken)
    assert told(_decoded, broken) is codec.Undecodable


def test_what_it_remembers_is_bounded() -> None:
    reader = RawReader()
    frame = RawFrame("FRAME", "g1", 3, 0, "", 1, 7, False, "KXA", 1, 1, "", b"")
    list(reader.peek([codec.encode(frame._replace(generation=generation)) for generation in range(KNOWN + 10)]))
    assert len(reader._fronts) == 10
