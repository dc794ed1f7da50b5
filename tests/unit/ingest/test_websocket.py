"""The short way around the websocket library: the same messages, and the same answers, as by the library alone."""

import itertools

from hypothesis import example, given
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

from services.ingest.websocket import Splitter

MAX_SIZE = 70_000
PAYLOADS = st.one_of(st.binary(max_size=200), st.sampled_from([125, 126, 127, 65_535, 65_536, MAX_SIZE, MAX_SIZE + 1]).map(bytes))


def message(opcode: Opcode, payload: bytes) -> bytes:
    return Frame(opcode, payload).serialize(mask=False)


def fragmented(parts: list[bytes], between: list[bytes]) -> bytes:
    """Return one text message in fragments, with other frames between them."""
    opcodes = itertools.chain([Opcode.TEXT], itertools.repeat(Opcode.CONT))
    frames = [
        Frame(opcode, part, fin=number == len(parts)).serialize(mask=False)
        for number, (opcode, part) in enumerate(zip(opcodes, parts, strict=False), 1)
    ]
    return b"".join(itertools.chain.from_iterable(itertools.zip_longest(frames, between[: len(frames) - 1], fillvalue=b"")))


WHOLE = st.builds(message, st.sampled_from([Opcode.TEXT, Opcode.BINARY]), PAYLOADS)
CONTROL = st.builds(message, st.sampled_from([Opcode.PING, Opcode.PONG, Opcode.CLOSE]), st.binary(max_size=125))
MASKED = st.binary(max_size=300).map(lambda payload: Frame(Opcode.TEXT, payload).serialize(mask=True))
PIECES = st.one_of(
    WHOLE, WHOLE, CONTROL, st.builds(fragmented, st.lists(PAYLOADS, min_size=1, max_size=4), st.lists(CONTROL | WHOLE))
)
STREAMS = st.lists(PIECES | MASKED | st.binary(max_size=20), max_size=12).map(b"".join)


class Reader:
    """A client whose handshake is over, and the messages it was sent; fed through the splitter or not."""

    def __init__(self, short: bool) -> None:
        self.library = ClientProtocol(parse_uri("ws://exchange.example"), state=State.OPEN, max_size=MAX_SIZE)
        self.splitter = Splitter(self.believe)
        self.fragments: list[bytes] = []
        self.feed = self.splitter.feed if short else self.believe

    def believe(self, data: bytes) -> bool:
        self.library.receive_data(data)
        for event in self.library.events_received():
            assert isinstance(event, Frame)
            if event.opcode in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
                self.fragments.append(bytes(event.data))
                self.splitter.within = not event.fin
                if event.fin:
                    self.splitter.messages.append(b"".join(self.fragments))
                    self.fragments.clear()
        return self.library.state is State.OPEN

    def outcome(self) -> object:
        exchanged = (self.library.state, self.library.close_rcvd, self.library.close_sent, str(self.library.parser_exc))
        # Whatever is sent is masked at random; its sizes and kinds are what must agree.
        return self.splitter.messages, exchanged, [(len(data), data[:2]) for data in self.library.data_to_send()]


@given(STREAMS, st.lists(st.integers(0, 1 << 18), max_size=8))
@example(message(Opcode.TEXT, b"a") * 3 + message(Opcode.CLOSE, b"\x03\xe8") + message(Opcode.TEXT, b"b"), [])
@example(message(Opcode.CONT, b"begins nothing") + message(Opcode.TEXT, b"b"), [2])
@example(fragmented([b"a", b"b"], [message(Opcode.TEXT, b"in between")]), [])
def test_the_short_way_leads_where_the_long_one_does(stream: bytes, cuts: list[int]) -> None:
    """Whatever is sent, however it is cut; a header that is not whole may wait, so something follows."""
    stream += message(Opcode.CLOSE, b"") * 8
    short, long = Reader(True), Reader(False)
    long.feed(stream)
    at = [0, *sorted(cut % len(stream) for cut in cuts), len(stream)]
    for start, end in itertools.pairwise(at):
        short.feed(stream[start:end])
    assert short.outcome() == long.outcome()


def test_whole_messages_do_not_go_through_the_library() -> None:
    """Cut at every place: pings do, and nothing else."""
    passed: list[bytes] = []
    stream = b"".join((message(Opcode.TEXT, b"x" * 300), message(Opcode.PING, b"heartbeat"), message(Opcode.BINARY, b"y")))
    for cut in range(len(stream) + 1):
        splitter = Splitter(lambda data: passed.append(data) is None)
        splitter.feed(stream[:cut])
        splitter.feed(stream[cut:])
        assert splitter.messages == [b"x" * 300, b"y"]
    assert b"".join(passed) == message(Opcode.PING, b"heartbeat") * (len(stream) + 1)
