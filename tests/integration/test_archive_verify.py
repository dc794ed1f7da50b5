"""`kb verify` finds whatever was done to an archive or to the database, names it, and says nothing where nothing was done."""

import asyncio
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import asyncpg
import orjson
import pytest
from click.testing import CliRunner, Result

from kalshibook_core.archive import layout, manifest
from kalshibook_core.archive.reader import Archive
from kalshibook_core.archive.store import Folder
from kalshibook_core.archive.store import Store as Place
from kalshibook_core.archive.tables import BY_TOPIC
from kalshibook_core.kafka import topics
from kalshibook_core.orderbook import Book
from kalshibook_core.postgres import pool
from kalshibook_core.wire import codec
from kalshibook_core.wire.coverage import HOUR_US
from kalshibook_core.wire.events import BookDelta, BookSnapshot, Checkpoint, Gap, RawFrame
from kalshibook_tools.cli.command import kb
from kalshibook_tools.verify import copies, truth
from kalshibook_tools.verify.archive import topic_of
from services.deduplicator.partition import Partition
from services.persister.archive import commit, files, repack
from services.persister.archive.held import Record
from services.persister.batch import Batch
from services.persister.store import Store
from tests.support.archive import DAY_US, everything, records

pytestmark = pytest.mark.stack

Log = dict[str, list[Record]]
HURTS = copies.Hurts()
BOOKS = ("yes", "no", "checksum")
CANONICAL = (topics.BOOK.name, topics.TRADES.name, topics.TICKERS.name, topics.LIFECYCLE.name)


def log(
    events: int, change: Callable[[int, RawFrame], RawFrame] = lambda _, raw: raw, pace: int = 1, hurts: copies.Hurts = HURTS
) -> Log:
    """Return what the topics of a partition hold: hurt copies of a truth, and what the deduplicator makes of them.

    Every fortieth record is one of the ticker or the lifecycle channel besides.
    """
    told = copies.publish(truth.generate(events, 5, pace=pace), ["g1", "g2"], 5, hurts)
    frames: list[RawFrame] = []
    for n, each in enumerate(told):
        frames.append(change(n, each.raw))
        if not n % 40:
            frames.append(beside(n, each.raw))
    raws = records(frames)
    partition, made = Partition(), defaultdict(list)
    books: dict[str, Book] = defaultdict(Book)
    for offset, _, value in raws:
        for event in partition.receive(codec.decode(value), offset):
            if isinstance(event, RawFrame):
                continue
            made[topic_of(event)].append(event)
            if isinstance(event, BookSnapshot):
                books[event.market_ticker] = Book(event.yes, event.no)
            elif isinstance(event, BookDelta):
                book = books[event.market_ticker]
                book.apply(event.side, event.price, event.delta)
                if not event.version % 100:
                    at = event.market_ticker, event.version, event.effective_us
                    checkpoint = Checkpoint(*at, book.yes, book.no, event.checksum, None, None, "g1", 0, 1, 0, 0)
                    made[topics.CHECKPOINTS.name].append(checkpoint)
    return {topics.RAW.name: raws} | {topic: records(of) for topic, of in made.items()}


def beside(n: int, raw: RawFrame) -> RawFrame:
    """Return a ticker, or a change of the market's life, told by the same gatherer."""
    msg = {"market_ticker": raw.market_ticker, "ts_ms": raw.clock_us // 1000, "price_dollars": "0.4800", "volume_fp": f"{n}.00"}
    if n % 80:
        msg = {"market_ticker": raw.market_ticker, "event_type": "close_date_updated", "close_ts": n}
    kind = "market_lifecycle_v2" if n % 80 else "ticker"
    payload = orjson.dumps({"type": kind, "sid": 9, "msg": msg})
    return raw._replace(kind="FRAME", channel=kind, sid=9, seq=-1, payload=payload, detail="")


def write(place: Path | Place, written: Log) -> None:
    """Archive it, in commits of other lengths for each topic."""
    chance, to = random.Random(1), Folder(place) if isinstance(place, Path) else place

    async def work() -> None:
        for topic, all_of_it in written.items():
            first, left = 0, all_of_it
            while left:
                count = chance.randrange(300, 1_500)
                batch, left = left[:count], left[count:]
                after = batch[-1].offset + 1
                await commit.write(to, files.make(topic, 2, first, after, "a", batch), lambda attempt: attempt())
                first = after

    asyncio.run(work())


async def store(dsn: str, written: Log) -> None:
    """Write it to the database, as the persister does."""
    async with await pool.connect_pool(dsn) as connections:
        tables = Store(connections)
        batch = Batch()
        for topic in written.keys() - {topics.RAW.name}:
            batch.add((topic, 2), [SimpleNamespace(offset=each.offset, value=each.value) for each in written[topic]])
        await tables.write(batch, await tables.positions(sorted(batch.next)))


async def verify(folder: Path, dsn: str = "", *arguments: str) -> Result:
    command = ["verify", "--home", str(folder.parent / "none"), "--archive", str(folder), *arguments]
    return await asyncio.to_thread(CliRunner(env={"KB_POSTGRES_DSN": dsn}).invoke, kb, command)


def figure(result: Result, words: str) -> int:
    return next(int(line.split()[0].replace(",", "")) for line in result.stdout.splitlines() if words in line)


def put_together(folder: Path) -> int:
    """Repack every day of it, and delete what was before; return how many days of partitions that were."""
    store, days, long_after = Folder(folder), 0, 1 << 60
    for topic in BY_TOPIC:
        held = Archive(store).held_of(topic, 2)
        for day in repack.due(Archive(store), held, long_after, 0):
            assert repack.repack(store, held, day, f"r{day}", long_after)
            days += 1
        repack.sweep(store, topic, 2, long_after + 1, 1)
    return days


async def test_what_was_recorded_proves_itself_and_the_database(database, tmp_path: Path):
    written = log(3_000, pace=2_000)
    await asyncio.to_thread(write, tmp_path / "archive", written)
    await store(database, written)
    result = await verify(tmp_path / "archive", database)
    assert result.exit_code == 0, result.output
    canonical = [codec.decode(each.value) for topic, of in written.items() for each in of if topic in CANONICAL]
    assert figure(result, "archived events that the raw rows make") == len(canonical) > 3_000
    rows = [event for event in canonical if not isinstance(event, Gap) or event.version]
    assert figure(result, "the database has as they are") == len(rows)
    assert figure(result, "checkpoints that equal") == 2 * len(written[topics.CHECKPOINTS.name]) > 10
    books = [codec.decode(each.value) for each in written[topics.BOOK.name]]
    middle = books[len(books) * 9 // 10]
    at = truth.rfc3339(middle.effective_us)
    some = await verify(tmp_path / "archive", database, "--market", middle.market_ticker, "--from", at)
    assert some.exit_code == 0, some.output
    wanted = sum(e.market_ticker == middle.market_ticker and e.effective_us >= middle.effective_us for e in books)
    assert figure(some, "the database has as they are") >= wanted > 10

    connection = await asyncpg.connect(database)
    before: Counter[str] = Counter()
    for change, kind, name in (
        ("UPDATE trades SET count = count + 1 WHERE trade_id = (SELECT min(trade_id) FROM trades)", "DATABASE", "trades, "),
        ("DELETE FROM tickers WHERE exchange_us = (SELECT min(exchange_us) FROM tickers)", "DATABASE", "tickers, "),
        ("INSERT INTO tickers SELECT * FROM tickers WHERE volume = 8000", "DATABASE", "a row too many"),
        ("UPDATE lifecycle SET body = '{}' WHERE body->>'close_ts' = '40'", "DATABASE", "lifecycle, "),
        ("DELETE FROM trades WHERE exchange_us = (SELECT max(exchange_us) FROM trades)", "DATABASE", "trades, "),
        ("UPDATE book_events SET packed = set_byte(packed, 9, get_byte(packed, 9) # 1) WHERE version < 100", "DATABASE", ""),
        ("DELETE FROM book_events WHERE version BETWEEN 200 AND 300", "DATABASE", "not in the database"),
        (
            "INSERT INTO book_events SELECT effective_us + 1, market_id, version, events, kind, packed FROM book_events",
            "DATABASE",
            "a row too many",
        ),
        ("UPDATE checkpoints SET checksum = checksum + 1", "CHECKPOINTS", "another checksum"),
    ):
        await connection.execute(change)
        found = await verify(tmp_path / "archive", database)
        assert found.exit_code == 1, change
        assert figure(found, kind) > before[kind], change
        before[kind] = figure(found, kind)
        assert name in found.stderr
    await connection.close()


async def test_a_partition_that_is_gone_or_detached_is_named_unless_the_archive_took_its_place(database, tmp_path: Path):
    written = log(3_000, pace=2_000)
    await asyncio.to_thread(write, tmp_path / "archive", written)
    await store(database, written)
    connection = await asyncpg.connect(database)
    names = [row[0] for row in await connection.fetch("SELECT inhrelid::regclass::text FROM pg_inherits ORDER BY 1")]
    gone, detached = [name for name in names if re.fullmatch(r"book_events_\d+", name)][:2]
    await connection.execute(f"DROP TABLE {gone}")
    await connection.execute(f"ALTER TABLE book_events DETACH PARTITION {detached}")
    found = await verify(tmp_path / "archive", database, "--json")
    report = orjson.loads(found.stdout)
    assert (found.exit_code, report["first_class"], report["proved"]) == (1, "database", False)
    assert {line.split()[2] for line in report["differences"]} == {gone, detached}
    for name in (gone, detached):
        start_us = int(datetime.strptime(name[-8:], "%Y%m%d").replace(tzinfo=UTC).timestamp()) * 1_000_000
        taken = "INSERT INTO cold_days (start_us, end_us, rows, verified_us, dropped_us, table_name, archive) VALUES "
        await connection.execute(f"{taken} ({start_us}, {start_us + DAY_US}, 1, 1, 1, 'book_events', '')")
    cold = await verify(tmp_path / "archive", database)
    assert cold.exit_code == 0 and figure(cold, "handed to the archive") == len(written[topics.BOOK.name]), cold.output
    await connection.close()


async def test_days_put_together_prove_themselves_and_a_proof_begins_in_the_middle(tmp_path: Path):
    written, place = log(3_000, pace=2_000), tmp_path / "archive"
    await asyncio.to_thread(write, place, written)
    whole = await verify(place)
    assert await asyncio.to_thread(put_together, place) >= 12
    again = await verify(place)
    assert again.exit_code == 0, again.output
    proved = "archived events that the raw rows make"
    assert figure(again, proved) == figure(whole, proved) > 3_000
    assert figure(again, "nothing names") == 0

    last = codec.decode(written[topics.BOOK.name][-1].value).effective_us
    at = truth.rfc3339(last - last % DAY_US)
    nothing = await verify(place, "", "--from", at, "--savepoints", str(tmp_path / "other"))
    begun = await verify(place, "", "--from", at)
    assert begun.exit_code == nothing.exit_code == 0, begun.output
    assert "taken as given" in begun.stdout and "taken as given" not in nothing.stdout
    assert figure(begun, proved) == figure(nothing, proved) > 100
    for savepoint in (tmp_path / "none").rglob("*.z"):
        savepoint.write_bytes(savepoint.read_bytes()[:-1])
    cut = await verify(place, "", "--from", at)
    assert cut.exit_code == 0 and "taken as given" not in cut.stdout

    sealed = sorted((place / "repacks" / topics.TRADES.name).rglob("*.json"))[0]
    made = layout.repack_of(sealed.relative_to(place).as_posix())
    told = Archive(Folder(place)).repacked(made)
    sealed.write_bytes(manifest.seal_repack(made, told._replace(files=[told.files[0]._replace(rows=told.files[0].rows - 1)])))
    fewer = await verify(place)
    assert fewer.exit_code == 1 and figure(fewer, "OBJECTS") and sealed.name in fewer.stderr


def hurt(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))


async def test_what_is_damaged_is_made_again_from_the_raw_rows_or_refused(database, tmp_path: Path):
    written, place = log(1_500, pace=2_000), tmp_path / "archive"
    await asyncio.to_thread(write, place, written)
    await store(database, written)
    before = {topic: said(place, topic) for topic in (*CANONICAL, topics.CHECKPOINTS.name)}
    for step in range(2):  # the second time what is hurt was put together, and the old files are gone
        chance = random.Random(step)
        for table in ("book", "trades", "lifecycle", "checkpoints"):
            files = sorted((place / table).rglob("*.parquet"))
            hurt(chance.choice(files))
            chance.choice(files).with_suffix(".json").unlink()
        found = await verify(place, database, "--keep")
        assert found.exit_code == 1 and figure(found, "OBJECTS") > 3
        repaired = await verify(place, database, "--repair")
        assert repaired.exit_code == 0, repaired.output
        assert "to be made again: book/" in repaired.stderr and "made again: repacks/" in repaired.stderr
        assert {topic: said(place, topic) for topic in before} == before
        assert list((place / "quarantine" / "book").rglob("*.why"))
        await asyncio.to_thread(put_together, place)

    connection = await asyncpg.connect(database)
    right = await connection.fetch("SELECT * FROM checkpoints ORDER BY market_id, version")
    await connection.execute("UPDATE checkpoints SET levels = '\\x0400000000' WHERE version > 100")
    assert figure(await verify(place, database), "CHECKPOINTS") > 0
    repaired = await verify(place, database, "--repair")
    assert repaired.exit_code == 0, repaired.output
    assert await connection.fetch("SELECT * FROM checkpoints ORDER BY market_id, version") == right
    await connection.close()

    await asyncio.to_thread(write, tmp_path / "b", written)
    held = Archive(Folder(tmp_path / "b")).held_of(topics.BOOK.name, 2)
    day = repack.due(Archive(Folder(tmp_path / "b")), held, 1 << 60, 0)[0]
    repack.repack(Folder(tmp_path / "b"), held, day, "r", 1 << 60)
    hurt(next((tmp_path / "b" / "repacks").rglob("*.json")))
    assert (await verify(tmp_path / "b", "", "--keep")).exit_code == 1
    fallen_back = await verify(tmp_path / "b", "", "--repair")  # what it stood for is not deleted yet
    assert fallen_back.exit_code == 0, fallen_back.output
    assert "what it stood for is there" in fallen_back.stderr

    held = Archive(Folder(tmp_path / "b")).held_of(topics.RAW.name, 2)
    repack.repack(Folder(tmp_path / "b"), held, repack.due(Archive(Folder(tmp_path / "b")), held, 1 << 60, 0)[0], "r", 1 << 60)
    hurt(next((tmp_path / "b" / "raw").rglob("*-rx0.parquet")))  # nor are these, of which there is no other copy
    hurt(next((tmp_path / "b" / "book").rglob("*.parquet")))
    fallen_back = await verify(tmp_path / "b", "", "--repair")
    assert fallen_back.exit_code == 0, fallen_back.output
    assert "what it stood for is there" in fallen_back.stderr and "made again: repacks/" in fallen_back.stderr
    assert {topic: said(tmp_path / "b", topic) for topic in before} == before

    lied = [codec.decode(each.value) for each in written[topics.CHECKPOINTS.name]]
    lied[3], lied[4] = lied[3]._replace(yes=lied[5].yes), lied[4]._replace(**{name: getattr(lied[6], name) for name in BOOKS})
    lied[7] = lied[7]._replace(gap_start_us=7, gap_cause="disconnect")
    await asyncio.to_thread(write, tmp_path / "c", written | {topics.CHECKPOINTS.name: records(lied)})
    found = await verify(tmp_path / "c", "", "--keep")
    assert found.exit_code == 1 and figure(found, "CHECKPOINTS") == 3, found.output
    for why in ("its levels have another checksum", "another checksum", "another gap"):
        assert f"archived: {why}" in found.stderr
    repaired = await verify(tmp_path / "c", "", "--repair")
    assert repaired.exit_code == 0, repaired.output
    assert said(tmp_path / "c", topics.CHECKPOINTS.name) == before[topics.CHECKPOINTS.name]

    told = {path: path.read_bytes() for path in (place / "raw").rglob("*.json")}
    for path in told:
        hurt(path)
    repaired = await verify(place, database, "--repair")
    assert repaired.exit_code == 0, repaired.output
    assert {path: path.read_bytes() for path in told} == told
    hurt(sorted((place / "raw").rglob("*.parquet"))[0])
    refused = await verify(place, database, "--repair")
    assert refused.exit_code == 1 and "nothing was changed: cannot be made again: raw/" in refused.stderr
    assert not list((place / "quarantine").glob("raw/**/*.parquet"))


async def test_gaps_that_the_table_has_otherwise_are_found_and_put_right(database, tmp_path: Path):
    written, place = log(1_500, pace=10_000, hurts=copies.Hurts(drop=8_000, all_cut=8_000)), tmp_path / "archive"
    await asyncio.to_thread(write, place, written)
    middle = written[topics.RAW.name][len(written[topics.RAW.name]) // 2].offset
    before = {topic: [each for each in of if raw_offset(each) < middle] for topic, of in written.items()}
    await store(database, before)
    late = await verify(place, database)  # the table has yet to get much of it, and says so by its offsets
    assert late.exit_code == 0 and figure(late, "has yet to get something") > 5, late.output
    await store(database, {topic: of[len(before[topic]) :] for topic, of in written.items()})
    await asyncio.to_thread(write, tmp_path / "early", before)
    early = await verify(tmp_path / "early", database)  # it has more than this archive
    assert early.exit_code == 0 and figure(early, "has yet to get something") > 5, early.output
    sound = await verify(place, database)
    assert sound.exit_code == 0, sound.output

    connection = await asyncpg.connect(database)
    rows = "SELECT * FROM gaps ORDER BY market_id, channel, start_us, opened_version"
    right = await connection.fetch(rows)
    assert figure(sound, "gaps that the database has") == len(right) > 20
    await connection.execute("INSERT INTO coverage_closed VALUES ($1, 1)", 1 << 50)
    await connection.execute("DELETE FROM coverage_due")
    hurt_rows = []
    told = ("not in the table", "cause='clock_step'", "end_us=7", "end_us=None", "no event tells of", "filled at 5")
    for channel in ("orderbook_delta", "trade"):
        some = [row for row in reversed(right) if row["channel"] == channel and row["end_us"] is not None]
        for row, change in zip(
            some,
            (
                "DELETE FROM gaps",
                "UPDATE gaps SET cause = 'clock_step'",
                "UPDATE gaps SET end_us = 7",
                "UPDATE gaps SET end_us = NULL",
                "UPDATE gaps SET start_us = start_us - 1",
                "UPDATE gaps SET filled_us = 5, filled_from = 'rest'",
            ),
            strict=False,
        ):
            where = "WHERE market_id = $1 AND channel = $2 AND start_us = $3 AND opened_version = $4"
            names = ("market_id", "channel", "start_us", "opened_version")
            hurt_rows.append(row)
            assert await connection.execute(f"{change} {where}", *(row[name] for name in names)) in ("UPDATE 1", "DELETE 1")
    found = await verify(place, database, "--json")
    report = orjson.loads(found.stdout)
    assert (found.exit_code, report["first_class"], report["counts"]["gaps"]) == (1, "gaps", 14), found.output
    for channel in ("orderbook_delta", "trade"):
        lines = [line for line in report["differences"] if f", {channel}: " in line]
        assert all(any(each in line for line in lines) for each in told), lines
    last_us = max(row["start_us"] for row in hurt_rows)
    cut = await verify(place, database, "--to", truth.rfc3339(last_us - last_us % DAY_US + DAY_US))
    assert figure(cut, "not judged") == 1, cut.output  # the one in trades that no event tells of
    since = "--from", truth.rfc3339(last_us - last_us % DAY_US)
    begun = await verify(place, database, *since)
    whole = await verify(place, database, *since, "--savepoints", str(tmp_path / "no"))
    assert "taken as given" in begun.stdout and figure(begun, "GAPS") == figure(whole, "GAPS") > 0, (begun.output, whole.output)
    unhurt = await connection.fetchval("SELECT ticker FROM markets WHERE id = $1", right[0]["market_id"])
    far = truth.rfc3339(right[-1]["start_us"] + 10 * DAY_US)
    assert (await verify(place, database, "--from", far, "--market", unhurt)).exit_code == 0
    repaired = await verify(place, database, "--repair")
    assert repaired.exit_code == 0, repaired.output
    assert await connection.fetch(rows) == right
    due = {tuple(row) for row in await connection.fetch("SELECT market_id, hour_us FROM coverage_due")}
    assert {(row["market_id"], row["start_us"] - row["start_us"] % HOUR_US) for row in hurt_rows} <= due

    await connection.execute("INSERT INTO markets (ticker, updated_us) VALUES ('KXNOBODY-1', 0)")
    one = "ctid = (SELECT ctid FROM gaps LIMIT 1)"
    await connection.execute(f"UPDATE gaps SET market_id = (SELECT max(id) FROM markets) WHERE {one}")
    nobody = await verify(place, database, "--repair")
    assert nobody.exit_code == 1 and "markets that the archive has not" in nobody.stderr
    await connection.execute("DELETE FROM trades")
    refused = await verify(place, database, "--repair")
    assert refused.exit_code == 1 and "nothing was changed: its rows are made by the persister alone" in refused.stderr
    await connection.close()


def raw_offset(record: Record) -> int:
    event = codec.decode(record.value)
    return record.offset if isinstance(event, RawFrame) else getattr(event, "raw_offset", -1)


def said(place: Path, topic: str) -> dict[str, list]:
    """Return what the archive has of each market, in order of its records."""
    by_market: dict[str, list] = defaultdict(list)
    for rows in everything(Archive(Folder(place)), topic).values():
        for row in sorted(rows, key=lambda row: row[0]):
            by_market[row[1].market_ticker].append(row)
    if topic != topics.CHECKPOINTS.name:
        return by_market
    # No offset of one that was made again is known.
    return {
        ticker: sorted(event._replace(book_offset=-1, resume_offset=-1) for _, event in of) for ticker, of in by_market.items()
    }


async def test_raw_rows_that_make_something_else_are_found(tmp_path: Path):
    written = log(2_000)

    def one_contract_more(n: int, raw: RawFrame) -> RawFrame:
        return raw._replace(payload=raw.payload.replace(b'"delta_fp":"1.00"', b'"delta_fp":"2.00"')) if n % 400 > 390 else raw

    await asyncio.to_thread(write, tmp_path / "a", log(2_000, one_contract_more) | {topics.BOOK.name: written[topics.BOOK.name]})
    result = await verify(tmp_path / "a")
    assert result.exit_code == 1 and figure(result, "EVENTS") > 0 and "the raw rows make" in result.stderr


@pytest.mark.parametrize("topic", [topics.BOOK, topics.TRADES], ids=lambda topic: topic.name)
async def test_an_event_that_is_missing_or_from_nowhere_is_found(tmp_path: Path, topic):
    written = log(2_000)
    events = written[topic.name]
    await asyncio.to_thread(write, tmp_path / "a", written | {topic.name: [*events[:50], *events[51:]]})
    assert (await verify(tmp_path / "a")).exit_code == 1
    await asyncio.to_thread(write, tmp_path / "b", written | {topic.name: [*events[:51], events[50]._replace(offset=9**9)]})
    assert (await verify(tmp_path / "b")).exit_code == 1
    await asyncio.to_thread(write, tmp_path / "c", written | {topic.name: events[:-50]})  # it has only yet to come so far
    result = await verify(tmp_path / "c")
    assert (result.exit_code, figure(result, "only one side has yet")) == (0, 50), result.output


async def test_a_damaged_file_is_named_and_put_away(tmp_path: Path):
    await asyncio.to_thread(write, tmp_path / "a", log(1_000))
    hurt = sorted((tmp_path / "a" / "book").rglob("*.parquet"))[0]
    content = bytearray(hurt.read_bytes())
    content[len(content) // 2] ^= 4
    hurt.write_bytes(bytes(content))
    name = hurt.relative_to(tmp_path / "a").as_posix()
    kept = await verify(tmp_path / "a", "", "--keep")
    assert (kept.exit_code, figure(kept, "OBJECTS")) == (1, 1) and name in kept.stderr and hurt.exists()
    moved = await verify(tmp_path / "a")
    assert moved.exit_code == 1 and f"quarantine/{name}" in moved.stderr and not hurt.exists()
    assert f"{name}: missing" in (await verify(tmp_path / "a")).stderr
    assert Archive(Folder(tmp_path / "a")).held(topics.BOOK.name)[0].chain.commits


async def test_a_manifest_that_its_writer_got_wrong_is_named_and_made_again(tmp_path: Path):
    written, place = log(1_000, pace=20_000, hurts=copies.Hurts(drop=8_000, all_cut=8_000)), tmp_path / "a"
    await asyncio.to_thread(write, place, written)
    before, names = said(place, topics.BOOK.name), list[str]()
    for name, wrong in (("gaps", []), ("last_version", 7)):
        names.append(reseal(place, topics.BOOK.name, name, wrong, names))
    found = await verify(place, "", "--keep")
    assert (found.exit_code, figure(found, "OBJECTS")) == (1, 2), found.output
    assert all(f"{name}: not of its file: it says ('KXTRUTH" in found.stderr for name in names), found.stderr
    repaired = await verify(place, "", "--repair")
    assert repaired.exit_code == 0, repaired.output
    assert said(place, topics.BOOK.name) == before
    commits = [sorted((place / "commits" / topic.name).rglob("*.json"))[-1] for topic in (topics.RAW, topics.TRADES, topics.BOOK)]
    written_as = [path.read_bytes() for path in commits]
    hurt(commits[0])
    commits[1].write_bytes(written_as[1][:100])
    commits[2].write_bytes(written_as[2].replace(b'"sha256":"', b'"sha256":"?', 1))
    repaired = await verify(place, "", "--repair")
    assert repaired.exit_code == 0 and [path.read_bytes() for path in commits] == written_as, repaired.output
    name = reseal(place, topics.RAW.name, "rows", 7, [])
    refused = await verify(place, "", "--repair")
    assert refused.exit_code == 1 and f"nothing was changed: cannot be made again: {name}" in refused.stderr


def reseal(place: Path, topic: str, name: str, wrong: object, but: list[str]) -> str:
    """Have a manifest say something else of a market, and its commit vouch for it; return which, none of those it must not be."""
    archive = Archive(Folder(place))
    of = archive.held_of(topic, 2).chain.commits[0]
    entries = archive.files(of)
    for n, entry in enumerate(entries):
        path, told = entry.path.removesuffix(layout.ROWS) + layout.MANIFEST, archive.manifest(entry)
        market = next((its for its in told["markets"].values() if name in its), None)
        if path not in but and market is not None:
            market[name] = wrong
            (place / path).write_bytes(content := manifest.dump(told))
            entries[n] = entry._replace(manifest_sha256=manifest.digest(content))
            (place / of.path).write_bytes(manifest.seal(of, entries))
            return path
    raise AssertionError(f"no market has {name}")


async def test_without_an_archive_it_says_so(tmp_path: Path):
    result = await verify(tmp_path / "a")
    assert result.exit_code == 1 and "there is no archive" in result.stderr
    assert (await verify(tmp_path / "a", "", "--archive", "gs://x")).exit_code == 2
