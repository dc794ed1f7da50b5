"""The fast encoder of raw frames writes what the general one writes."""

from hypothesis import given
from hypothesis import strategies as st

from kalshibook_core.wire import codec, raw
from kalshibook_core.wire.events import RawFrame, RawKind

longs = st.integers(-(2**63), 2**63 - 1) | st.integers(2**47, 2**57)
ints = st.integers(-(2**31), 2**31 - 1)
text = st.text(max_size=80)


@given(st.builds(RawFrame, st.sampled_from(list(RawKind)) | text, text, ints, longs, text, ints, longs, st.booleans(),
                 text, longs, longs, text, st.binary(max_size=300)))  # fmt: skip
def test_bytes_are_those_of_the_general_encoder(frame: RawFrame) -> None:
    assert raw.encode(frame) == codec.encode(frame)
    assert codec.decode(raw.encode(frame)) == frame
