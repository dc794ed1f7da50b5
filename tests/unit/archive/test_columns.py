"""Books read as columns are the events that were written, in whichever format and order; and what is kept is bounded."""

import pytest

from kalshibook_core.archive import columns, tables
from kalshibook_core.archive.past import _Kept
from kalshibook_core.archive.tables import File
from kalshibook_core.wire.events import BookDelta, BookEvent, BookSnapshot
from tests.support import archive as made


def row(event: BookEvent) -> tuple:
    """Return an event as `Books.rows` tells it, the levels as they are."""
    kind = columns.DELTA if isinstance(event, BookDelta) else columns.SNAPSHOT if isinstance(event, BookSnapshot) else columns.GAP
    known = event.version, event.effective_us
    if isinstance(event, BookDelta):
        return (*known, event.exchange_us, event.recv_us, kind, event.side, event.price, event.delta, event.checksum, b"")
    levels = (event.yes, event.no) if isinstance(event, BookSnapshot) else b""
    return (*known, 0, event.recv_us, kind, 0, 0, 0, event.checksum, levels)


@pytest.mark.parametrize("form", [tables.FORMAT, tables.REPACKED])
@pytest.mark.parametrize("seed", range(3))
def test_columns_are_the_events_that_were_written(form: str, seed: int) -> None:
    events = made.book(seed, 900)
    table = tables.replace(tables.FORMATS["book", form], row_group=250)
    if form == tables.REPACKED:
        events.sort(key=lambda event: event.market_ticker)
    whole = table.write([(event.raw_offset, event) for event in events])
    file = File(tables.BOOKS, whole)
    assert len(file.groups) == 4
    tickers = {event.market_ticker for event in events}
    found: dict[str, list[columns.Books]] = {ticker: [] for ticker in tickers}
    for number, group in enumerate(file.groups):
        for ticker, books in columns.books(file, number, tickers):
            assert group.low <= ticker <= group.high
            assert group.first_us <= books.effective_us[0] <= books.effective_us[-1] <= group.last_us
            found[ticker].append(books)
    for ticker, parts in found.items():
        wanted = [row(event) for event in events if event.market_ticker == ticker]
        books = columns.joined(parts)
        assert books.rows(lambda yes, no: (yes, no)) == wanted  # type: ignore[arg-type, return-value]
        a, b = wanted[len(wanted) // 3], wanted[len(wanted) // 2]
        some = [each for each in wanted if each[0] > a[0] and a[1] <= each[1] < b[1]]
        assert books.within(a[0], a[1], b[1]).rows(lambda yes, no: (yes, no)) == some  # type: ignore[arg-type, return-value]
        only = [part for number in range(4) for _, part in columns.books(file, number, [ticker])]
        assert [len(part.version) for part in only] == [len(part.version) for part in parts]
        assert columns.joined([*parts, *parts]).version.tolist() == books.version.tolist()
    assert list(columns.books(file, 0, ["KXNONE"])) == []


def test_what_is_kept_is_bounded_and_what_was_used_last_stays() -> None:
    kept: _Kept[str] = _Kept(10)
    for name in "abc":
        kept.get(name, lambda name=name: name * 2, len)  # type: ignore[misc]
    assert kept.get("a", lambda: "", len) == "aa"
    kept.get("d", lambda: "dd", len)
    assert kept.get("a", lambda: "new", len) == "aa"
    assert kept.get("b", lambda: "new", len) == "new"  # had been used longest ago
    assert kept.get("e", lambda: "e" * 99, len) == "e" * 99  # too large to be kept
    assert kept.get("a", lambda: "again", len) == "aa"
    kept.forget("a")
    assert kept.get("a", lambda: "again", len) == "again"
