"""An archive's raw rows, imported, make the events again that they made; where a file is damaged there is a gap."""

import asyncio
from pathlib import Path

from kalshibook_core.archive.store import Folder, Store
from kalshibook_core.kafka import topics
from kalshibook_core.wire import codec
from kalshibook_core.wire.events import AUDIT, Gap, Lifecycle, RawFrame, origin
from services.deduplicator.partition import Partition
from services.ingest.archived import Archived, is_archive
from services.persister.archive import commit, files
from services.persister.archive.held import Record
from tests.unit.deduplicator.source import Source

S = 1_000_000
MARKETS = ("KXA-1", "KXA-2", "KXB-1")


def captured() -> list[RawFrame]:
    """Two gatherers of three markets. One dies without a word, and comes back to two of them; in the third the other one ends
    after that, and begins anew.
    """
    records: list[RawFrame] = [Source(name).started(0) for name in ("g1", "g2")]
    later: list[RawFrame] = [Source("g1").started(45 * S)]
    for market, ticker in enumerate(MARKETS):
        one, two = Source("g1", ticker=ticker), Source("g2", ticker=ticker)
        records += [one.resumed(S), one.snapshot(S, {4000: 100}, {}), two.resumed(S), two.snapshot(S, {4000: 100}, {})]
        for n in range(1, 20):
            at = S + n * 100_000 + market
            change = [each.delta(at, "yes", 4000 + n, 100) for each in (one, two)]
            records += change + ([each.trade(at, f"{ticker}-{n}") for each in (one, two)] if n % 3 == 0 else [])
        ends = 55 * S if market == 2 else 5 * S
        (later if market == 2 else records).extend([two.broken(ends), two.broken(ends, "trade")])
        if market == 1:
            records += [one.broken(6 * S), one.broken(6 * S, "trade")]
        name = "g2" if market == 2 else "g1"
        again = Source(name, generation=one.generation + 60 * S, ticker=ticker)
        later += [again.resumed(70 * S), again.snapshot(70 * S, {3000: 700}, {100: 5}), again.delta(71 * S, "no", 100, 5)]
        later += [two.rest(71 * S, status="active")]
    return [*records, *later]


def told(raws: list[RawFrame]) -> dict[tuple[str, str], list[tuple]]:
    """The events of each market and topic, without what says by which record; but for the gaps that were left open."""
    partition, found = Partition(), dict[tuple[str, str], list[tuple]]()
    for offset, raw in enumerate(raws):
        for event in partition.receive(raw, offset):
            others = {"gatherer", "raw_offset"} | ({"recv_us", "connection", "generation"} if isinstance(event, Gap) else set())
            about = {name: value for name, value in event._asdict().items() if name not in others}
            topic = "book" if about.get("version") else "lifecycle" if isinstance(event, Lifecycle) else "trades"
            found.setdefault((event.market_ticker, topic), []).append((type(event).__name__, about))
    for events in found.values():
        while events and events[-1][0] == "Gap" and events[-1][1]["end_us"] is None:
            events.pop()
    return found


def archive(place: Store, raws: list[RawFrame]) -> None:
    for first in range(0, len(raws), 20):
        part = raws[first : first + 20]
        records = [Record(first + n, raw.market_ticker.encode(), codec.encode(raw)) for n, raw in enumerate(part)]
        made = files.make(topics.RAW.name, 0, first, first + len(part), "a", records)
        asyncio.run(commit.write(place, made, _once))


async def _once(attempt):
    await attempt()


def imported(folder: Path, leave_out: tuple[str, ...] = ()) -> list[RawFrame]:
    source = Archived(Folder(folder), "import-old", 4)
    survey = source.survey()
    assert is_archive(Folder(folder)) and set(survey.markets) == set(MARKETS)
    records = list(source.records({ticker: 1 for ticker in survey.markets if ticker not in leave_out}))
    assert all(source.owns(raw) for raw in records) and not any(raw.channel == AUDIT for raw in records)
    return records


def test_what_an_archive_holds_makes_the_same_events_again(tmp_path: Path) -> None:
    raws = captured()
    audit = Source("g1", ticker=MARKETS[0]).raw("REST", AUDIT, 7 * S, b"{}", sid=-1)
    archive(Folder(tmp_path), [*raws, audit])
    again = imported(tmp_path)
    assert told(again) == told(raws)
    assert imported(tmp_path) == again
    trade = next(e for n, raw in enumerate(again) for e in Partition().receive(raw, n) if type(e).__name__ == "Trade")
    assert origin(trade) == "import-old"
    assert told(imported(tmp_path, ("KXA-1",))) == {key: events for key, events in told(raws).items() if key[0] != "KXA-1"}


def test_a_damaged_file_is_named_and_leaves_a_gap(tmp_path: Path) -> None:
    """Whichever it is: what is made all the same is nothing else than what was captured."""
    archive(Folder(tmp_path), captured())
    true, whole = {each[1]["checksum"] for each in told(captured())["KXB-1", "book"]}, told(captured())
    damageable = sorted((tmp_path / "raw/channel=orderbook_delta").rglob("series=KXB/*.parquet"))
    assert len(damageable) > 3
    for path in damageable:
        content = path.read_bytes()
        path.write_bytes(content[:-1] + b"?")
        source = Archived(Folder(tmp_path), "import-old", 4)
        survey = source.survey()
        assert len(survey.bad) == 1 and path.name in survey.bad[0]
        records = list(source.records(dict.fromkeys(MARKETS, 1)))
        made = told(records)
        assert {each[1]["checksum"] for each in made.get(("KXB-1", "book"), [])} <= true
        assert {key: events for key, events in made.items() if key[0] != "KXB-1"} == {
            key: events for key, events in whole.items() if key[0] != "KXB-1"
        }
        path.write_bytes(content)
