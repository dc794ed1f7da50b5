"""Where each source stands in a market's log. A source is one generation of one connection of one gatherer. Pure.

What a source says of a market between its snapshot and its BREAK is a contiguous run of the truth; the only question is where
in the log the run begins. No key of time, price, side and size answers it, since many equal deltas happen in one microsecond. Two
proofs do, and both need that the exchange's timestamps never decrease within a market (seen on the wire):

    by content   The first event of a timestamp that follows another one exists once in the truth. If a source's is also the log's
                 first of that timestamp and both books then have one checksum, it is the same event: the source stands there.
    by time      A source whose book was taken at a time to which an aligned one had surely delivered everything (`LAG_US`), and
                 which has itself delivered everything up to where our memory of the log begins, is within it: where the log's
                 checksum equals its own and what follows is the same, if there is one such place.

An equal book alone proves nothing: the source may be ahead of the log, with a burst between that adds up to zero.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import Any, Final, NamedTuple
from weakref import WeakValueDictionary

from kalshibook_core.orderbook import Book, level_weight
from kalshibook_core.orderbook.checksum import MASK
from kalshibook_core.wire.events import RawFrame, RawKind

WHOLE_BOOK: Final = -1
"""Stands where a delta has its side."""

MARGIN: Final = 64
"""Events of the log that are kept although every gatherer has confirmed them, for one that joins a little behind."""

SIDS: Final = 8
"""Subscriptions of a market in one generation that are remembered besides the last."""

_BREAK: Final = str(RawKind.BREAK)

Content = tuple[int, int, int, int]
"""What makes two events the same: (exchange_us, side, price, delta), or (0, WHOLE_BOOK, 0, checksum)."""


class Heard(NamedTuple):
    """An event as a source delivered it: its content, and what the canonical event says of its origin."""

    exchange_us: int
    side: int
    price: int
    change: int  # of a whole book: its checksum
    recv_us: int
    clock_us: int
    sid: int
    seq: int
    offset: int
    book: Book | None


class Gatherer:
    """One gatherer over all its connections and lives in a partition: when it was last heard of, and what it was good for."""

    __slots__ = ("behind", "confirmed", "contradictions", "led", "name", "newest_us", "over", "started_us")

    def __init__(self, name: str, newest_us: int = 0, started_us: int = 0, over: Iterable[Sequence[int]] = ()) -> None:
        """Make a gatherer nothing came from yet."""
        self.name = name
        self.newest_us = newest_us  # the greatest exchange timestamp it delivered
        self.started_us = started_us  # when its process began, by its own clock; 0: none has said so
        self.over = {(connection, generation) for connection, generation in over}  # of the process before that one
        self.led = self.confirmed = self.contradictions = 0  # events that it was the first to deliver, or delivered as well
        self.behind = 0  # how many events, when it last confirmed one


class Life:
    """One generation of one connection, over all its markets of a partition. Several of a gatherer may be alive at once."""

    __slots__ = ("__weakref__", "connection", "gatherer", "generation", "newest_us", "traded_us", "where")

    def __init__(self, gatherer: Gatherer, connection: int, generation: int, newest_us: int = 0) -> None:
        """Make the life of a connection that delivered nothing yet."""
        self.gatherer, self.connection, self.generation = gatherer, connection, generation
        self.where = gatherer.name, connection
        self.newest_us = newest_us  # the greatest exchange timestamp of a book that it delivered in order,
        self.traded_us = 0  # and of a trade

    @property
    def name(self) -> tuple[str, int, int]:
        """Gatherer, connection, generation."""
        return *self.where, self.generation

    def ended_by(self, gatherer: str, connection: int) -> bool:
        """Return whether a newer generation of that connection shows that this one has ended.

        One of the same connection does; of another, where its gatherer has not said when its process began.
        """
        whose = self.gatherer
        return whose.name == gatherer and (self.connection == connection or not whose.started_us)

    def reach(self, exchange_us: int) -> None:
        """It delivered, in order, an event of this time."""
        if exchange_us > self.newest_us:
            self.newest_us = exchange_us
            if exchange_us > self.gatherer.newest_us:  # noqa: PLR1730  (of every frame: max() takes thrice as long)
                self.gatherer.newest_us = exchange_us


class Lives:
    """The gatherers and connections of a partition. A connection is one for all its markets: what it delivered of one shows up to
    where it was whole for the others, quiet ones too."""

    def __init__(self) -> None:
        """Make the lives of a partition nothing came from yet."""
        self.gatherers: dict[str, Gatherer] = {}
        self._lives: WeakValueDictionary[tuple[str, int, int], Life] = WeakValueDictionary()  # those that some market still has

    def of(self, gatherer: str, connection: int, generation: int) -> Life:
        """Return the life of this name, new if it was not known."""
        life = self._lives.get((gatherer, connection, generation))
        if life is None:
            life = self._lives[gatherer, connection, generation] = Life(self.gatherer(gatherer), connection, generation)
        return life

    def gatherer(self, name: str) -> Gatherer:
        """Return the gatherer of this name, new if it was not known."""
        known = self.gatherers.get(name)
        if known is None:
            known = self.gatherers[name] = Gatherer(name)
        return known

    def start(self, gatherer: str, now_us: int) -> None:
        """Its process is a new one: what was alive is over, should a record of it come again."""
        whose = self.gatherer(gatherer)
        whose.started_us, whose.over = now_us, {name[1:] for name in self._lives if name[0] == gatherer}

    def state(self) -> list[Any]:
        """Return what `restore` needs, as JSON can hold it."""
        lives = sorted((*name, life.newest_us, life.traded_us) for name, life in self._lives.items())
        return [[(each.name, each.newest_us, each.started_us, sorted(each.over)) for each in self.gatherers.values()], lives]

    def restore(self, state: Sequence[Any]) -> list[Life]:
        """Become the lives that gave this state; hold the result until the markets are restored, or they are forgotten again."""
        gatherers, lives = state
        self._lives.clear()  # those of an older savepoint are of gatherers that are no longer
        self.gatherers = {each[0]: Gatherer(*each) for each in gatherers}
        restored = []
        for gatherer, connection, generation, newest_us, *traded_us in lives:
            life = self.of(gatherer, connection, generation)
            life.newest_us, life.traded_us = newest_us, (traded_us or [newest_us])[0]  # the releases before took it for both
            restored.append(life)
        return restored


class Standing(Enum):
    """How a source is to the log."""

    BROKEN = auto()  # its book is not known
    SEEKING = auto()  # its book is known, its place is not
    ALIGNED = auto()


class Source:
    """What is known of one connection in one market: that of its newest generation there."""

    __slots__ = (
        "against", "at", "base", "base_us", "heard", "inside", "known_us", "life", "origin", "over", "seq", "sid", "sids",
        "standing", "sums", "times",
    )  # fmt: skip

    def __init__(self, life: Life, at: int) -> None:
        """Make a source nothing is known of; `at` is the log's version then."""
        self.life = life
        self.standing = Standing.BROKEN
        self.at = at  # the version it delivered or confirmed last
        self.sid = self.seq = -1  # of the last frame
        self.sids: tuple[int, ...] = ()  # of its subscriptions before that one
        self.over: tuple[str, int] | None = None  # it has ended: the cause, and up to when it had delivered everything
        self._forget()

    def _forget(self) -> None:
        self.base: Book | None = None  # seeking: its book before `heard`
        self.known_us = 0  # the instant that book is claimed for
        self.base_us = 0  # the timestamp of the last delta in it, 0 where it came whole
        self.origin = (0, 0, 0, 0)  # recv_us, sid, seq, offset of what gave that book
        self.heard: list[Heard] = []
        self.sums: list[int] = []  # of the book after each of `heard`
        self.times: list[int] = []  # the timestamp of the last delta up to each
        self.inside = False  # it is known to have begun within the log
        self.against = 0  # the version it contradicted

    @property
    def alive_us(self) -> int:
        """The last instant of the exchange at which its gatherer is known to have lived."""
        return self.life.gatherer.newest_us or self.life.generation

    def is_repeat(self, raw: RawFrame, begins: bool) -> bool:
        """Return whether this record came before, as what was spooled may after a kill. A subscription `begins` with a book; a
        BREAK has the seq of the last frame before it."""
        sid, seq, is_break = raw[5], raw[6], raw[0] == _BREAK
        if sid != self.sid:
            if sid in self.sids or not (begins or is_break):
                return True
            if self.sid >= 0:
                self.sids = (*self.sids[1 - SIDS :], self.sid)
            self.sid = sid
        elif 0 <= seq < self.seq + (not is_break):
            return True
        self.seq = seq
        return False

    def breaks(self) -> None:
        """Know its book no longer."""
        self.standing = Standing.BROKEN
        self._forget()

    def anchor(self, book: Book, known_us: int, origin: tuple[int, int, int, int], base_us: int = 0) -> None:
        """Know its book, and not where in the log that is."""
        self.standing = Standing.SEEKING
        self._forget()
        self.base, self.known_us, self.origin, self.base_us = book, known_us, origin, base_us

    def align(self, version: int) -> None:
        """Stand after this version of the log."""
        self.standing, self.at = Standing.ALIGNED, version
        self._forget()

    @property
    def checksum(self) -> int:
        """The checksum of a seeker's book."""
        assert self.base is not None
        return self.sums[-1] if self.sums else self.base.checksum

    @property
    def last_us(self) -> int:
        """The timestamp of a seeker's last delta, 0 if it had none."""
        return self.times[-1] if self.times else self.base_us

    @property
    def began_us(self) -> int:
        """An instant before which a seeker's book held: clocks may be late, but what came next happened later."""
        return min(self.known_us, self.heard[0].exchange_us or self.known_us) if self.heard else self.known_us

    def hear(self, event: Heard) -> None:
        """Keep what a seeker delivers until its place is known."""
        change = event.change if event.book is not None else self.checksum + event.change * level_weight(event.side, event.price)
        self.sums.append(change & MASK)
        self.times.append(event.exchange_us if event.book is None else self.last_us)
        self.heard.append(event)

    def fold(self, count: int) -> None:
        """Take the oldest of what was heard into the book before it. Raises CorruptBook."""
        assert self.base is not None
        for event in self.heard[:count]:
            if event.book is None:
                self.base.apply(event.side, event.price, event.change)
                self.base_us = max(self.base_us, event.exchange_us)
            else:
                self.base = event.book
            self.known_us = max(self.known_us, event.exchange_us or event.clock_us)
            self.origin = (event.recv_us, event.sid, event.seq, event.offset)
        del self.heard[:count], self.sums[:count], self.times[:count]

    def begins(self, exchange_us: int) -> int | None:
        """Return where in `heard` a timestamp begins, None if it is not there or may have begun earlier.

        The book that it came with may be older than `known_us`, and never younger.
        """
        at = bisect_left(self.times, exchange_us)
        if at == len(self.times) or self.times[at] != exchange_us:
            return None
        return at if ((self.times[at - 1] if at else self.base_us) or self.known_us) < exchange_us else None

    def state(self) -> list[Any]:
        """Return what `restored` needs, as JSON can hold it."""
        return [
            *self.life.name, self.standing.value, self.at, book_state(self.base), self.known_us, self.base_us, self.origin,
            self.inside, self.against, self.over, [(*event[:9], book_state(event.book)) for event in self.heard],
            self.sid, self.seq, self.sids,
        ]  # fmt: skip

    @classmethod
    def restored(cls, life: Life, state: Sequence[Any]) -> "Source":
        """Return the source that gave this state."""
        source = cls(life, state[4])
        base = book_of(state[5])
        if base is not None:
            source.anchor(base, state[6], tuple(state[8]), state[7])
            for event in state[12]:
                source.hear(Heard._make((*event[:-1], book_of(event[-1]))))
            source.inside, source.against = state[9:11]
        source.over = tuple(state[11]) if state[11] else None
        source.standing = Standing(state[3])
        source.sid, source.seq, source.sids = state[13], state[14], tuple(state[15])
        return source


class Window:
    """The log's recent events since its book was last begun anew: version `first` is the snapshot that began it."""

    __slots__ = ("_before", "contents", "first", "head", "offsets", "prints", "sums", "times")

    def __init__(self) -> None:
        """Make the window of a log without events."""
        self.first = self.head = 0
        self.contents: list[Content] = []
        self.sums: list[int] = []  # of the book after each
        self.times: list[int] = []  # the timestamp of the last delta up to each, 0 before the first
        self.offsets: list[int] = []  # of the raw record each was made of
        self.prints: list[int] = []  # Python's hash of the frame's content, 0 where it is not at hand
        self._before: dict[int, Book] = {}  # version of a whole book -> the book before it

    def begin(self, version: int, checksum: int, offset: int) -> None:
        """Begin anew with a snapshot."""
        self.first = self.head = version
        self.contents, self.sums, self.times = [(0, WHOLE_BOOK, 0, checksum)], [checksum], [0]
        self.offsets, self.prints = [offset], [0]
        self._before.clear()

    def append(self, content: Content, checksum: int, offset: int, mark: int, before: Book | None) -> None:
        """Add the event after the last; `before` is the book that a whole one replaced."""
        self.head += 1
        self.contents.append(content)
        self.sums.append(checksum)
        self.times.append(content[0] if before is None else self.times[-1])
        self.offsets.append(offset)
        self.prints.append(mark)
        if before is not None:
            self._before[self.head] = before

    def drop(self, version: int) -> None:
        """Forget the events before `version`."""
        count = version - self.first
        if count > 0:
            del self.contents[:count], self.sums[:count], self.times[:count], self.offsets[:count], self.prints[:count]
            self.first = version
            for whole in [v for v in self._before if v <= version]:
                del self._before[whole]

    def begins(self, exchange_us: int, begun_us: int) -> int | None:
        """Return the version that a timestamp begins with, None if it is not there or may have begun earlier.

        The book that the log was begun with is not younger than `begun_us`.
        """
        at = bisect_left(self.times, exchange_us)
        if at == 0 or at == len(self.times) or self.times[at] != exchange_us or (self.times[at - 1] or begun_us) >= exchange_us:
            return None
        return self.first + at

    def places(self, checksum: int, heard: Sequence[Heard]) -> list[int]:
        """Return the versions after which the log had this checksum and went on as `heard`, as far as both go."""
        sums, contents, count = self.sums, self.contents, len(self.sums)
        found = []
        for at in [at for at, each in enumerate(sums) if each == checksum]:
            if all(event[:4] == contents[at + 1 + n] for n, event in enumerate(heard[: count - at - 1])):
                found.append(self.first + at)
        return found

    def book_at(self, book: Book, version: int) -> Book:
        """Return the book after `version`, given the one after the last."""
        book = book.copy()
        for v in range(self.head, version, -1):
            whole = self._before.get(v)
            if whole is not None:
                book = whole.copy()
            else:
                _, side, price, change = self.contents[v - self.first]
                book.apply(side, price, -change)
        return book

    def state(self) -> list[Any]:
        """Return what `restore` needs, as JSON can hold it."""
        before = [(version, book_state(book)) for version, book in self._before.items()]
        return [self.first, self.head, self.contents, self.sums, self.times, self.offsets, before]

    def restore(self, state: Sequence[Any]) -> None:
        """Become the window that gave this state."""
        self.first, self.head, contents, self.sums, self.times, self.offsets, before = state
        self.contents = [tuple(content) for content in contents]
        self.prints = [0] * len(contents)  # a process's own: the hash is keyed
        self._before = {version: book for version, levels in before if (book := book_of(levels)) is not None}


def book_state(book: Book | None) -> list[Any] | None:
    """Return a book as JSON can hold it."""
    return None if book is None else [book.yes, book.no]


def book_of(state: Sequence[Any] | None) -> Book | None:
    """Return the book that gave this state."""
    return None if state is None else Book(*state)
