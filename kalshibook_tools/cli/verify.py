"""`kb verify`: whether the archive is what was written, makes itself again from its raw rows, and equals the database."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from kalshibook_core.runtime import clock
from kalshibook_core.runtime.settings import ConfigurationError
from kalshibook_tools.cli.command import Instant, database, dsn_option, endpoint_option, fail, home_option, run

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_PASSES = 6
"""Repairs, after each of which all is looked at anew: back to older files, events, lost checkpoints, wrong ones, the database's
checkpoints, its gaps."""
_ROWS = (
    ("files", "files read, each what is said of it"),
    ("events_proved", "archived events that the raw rows make"),
    ("events_pending", "events at the end that only one side has yet"),
    ("checkpoints_proved", "checkpoints that equal the book of their version"),
    ("rows_proved", "events that the database has as they are"),
    ("rows_pending", "events at the end that the database has yet to get"),
    ("rows_cold", "events of days that the database has handed to the archive"),
    ("gaps_proved", "gaps that the database has as the events tell them"),
    ("gaps_pending", "gaps of which the database has yet to get something, or has it already"),
    ("gaps_unjudged", "of these, gaps in trades of which only events after --to could tell: not judged"),
    ("unnamed", "files that nothing names: left by a writer that was killed; no reader sees them"),
    ("objects", "OBJECTS: missing, or not what was written"),
    ("raw", "RAW: partitions whose first raw records are not archived"),
    ("events", "EVENTS: markets whose archived events are not what the raw rows make"),
    ("checkpoints", "CHECKPOINTS: of another book"),
    ("database", "DATABASE: rows that differ, are missing or too many"),
    ("gaps", "GAPS: rows of the table gaps that differ, are missing or too many"),
)


_NOT_REPAIRED = {
    "raw": "the first raw records are not archived, so nothing is known to be right",
    "events": "archive and raw rows contradict each other, and which of them is right no third tells; keep both",
    "database": "its rows are made by the persister alone, of what Kafka has; restore the database from its backup, or let the "
    "persister read the topics into an empty one",
}


@click.command()
@home_option
@dsn_option
@click.option("--archive", "location", envvar="KB_ARCHIVE", help="A folder or s3://bucket/prefix; by default KB_HOME/archive.")
@endpoint_option
@click.option("--market", metavar="TICKER", help="Compare only this market.")
@click.option("--from", "from_us", type=Instant(), default="1970-01-01", help="Compare events from this instant on (UTC).")
@click.option("--to", "to_us", type=Instant(), help="Compare events before this instant.")
@click.option("--keep", is_flag=True, help="Leave damaged files where they are.")
@click.option(
    "--repair", is_flag=True, help="Make damaged files again from the raw rows, wrong checkpoints and gaps; name each first."
)
@click.option("--savepoints", metavar="PLACE", help="Where folds begin if --from allows: a folder or s3://; KB_HOME/proofs.")
@click.option("--json", "as_json", is_flag=True, help="Report as one JSON object.")
@click.option("--window", envvar="KB_DEDUPLICATOR_WINDOW", default=10_000, show_default=True, help="As the deduplicator had it.")
@click.option("--patience", envvar="KB_DEDUPLICATOR_PATIENCE_SECONDS", default=300, show_default=True, help="Likewise.")
@click.option("--trade-window", envvar="KB_DEDUPLICATOR_TRADE_WINDOW", default=50_000, show_default=True, help="Likewise.")
def verify(
    home: Path, dsn: str | None, location: str | None, endpoint: str, market: str | None, from_us: int, to_us: int | None,
    keep: bool, repair: bool, savepoints: str | None, as_json: bool, window: int, patience: int, trade_window: int,
) -> None:  # fmt: skip
    """Prove the archive, and the database with it.

    Reads every file against its manifest; folds the raw rows through the deduplicator's own code and compares each event, version
    and checksum with the archived ones, with the checkpoints and with the database. Exit code 1 if anything differs, and the
    first class of difference is named; 0 if not. A damaged file is moved to quarantine/ in the archive, and the reason beside it.

    The fold begins at nothing and leaves savepoints. With --from it begins at the last of them before that instant, if there is
    one, and says that what lies before was taken as given.

    \b
    Try:
      kb verify
      kb verify --market KXGOLD15M-26AUG050800-00 --from 2026-08-05T11:00:00Z --to 2026-08-05T12:00:00Z
      KB_ARCHIVE=s3://bucket/prefix kb verify --keep --json
      kb verify --repair
    """
    from kalshibook_core.archive.store import Store, open_store
    from kalshibook_tools.verify import archive as proof
    from kalshibook_tools.verify.repair import Impossible

    if repair and (market or from_us or to_us is not None or keep):
        raise click.UsageError("--repair needs all of the archive: leave out --market, --from, --to and --keep")
    limits = [window, patience, trade_window]

    def opened(place: str) -> Store:
        try:
            return open_store(place, endpoint)
        except ValueError as error:
            raise ConfigurationError(f"KB_ARCHIVE: {error}") from None

    async def work() -> tuple[proof.Result, list[str]]:
        store, saved = opened(location or str(home / "archive")), opened(savepoints or str(home / "proofs"))
        wanted = proof.Wanted(market, from_us, proof.END_US if to_us is None else to_us)
        done: list[str] = []
        for left in range(_PASSES if repair else 0, -1, -1):
            run = _Run(store, saved, wanted, limits, home, dsn, done)
            result = await run.all()
            if not repair and not keep:
                run.quarantine(result.damaged)
            try:
                if not left or not await run.repair():
                    break
            except Impossible as why:
                result.told.append(f"{'no more' if done else 'nothing'} was changed: {why}")
                break
        return result, done

    result, done = run(work())
    if as_json:
        click.echo(json.dumps(_report(result, done)))
    else:
        for key, meaning in _ROWS:
            click.echo(f"{result.counts[key]:>12,}  {meaning}")
        for line in result.given:
            click.echo(f"taken as given: {line}")
    for line in (*done, *result.told):
        click.echo(line, err=True)
    if result.first_class:
        fail(f"the archive does not prove itself: {result.counts[result.first_class]:,} differences of {result.first_class}")
    if not as_json:
        click.echo("the archive is what was written, and the raw rows make it again")


def _report(result: Any, done: list[str]) -> dict[str, Any]:
    return {
        "proved": result.first_class is None,
        "first_class": result.first_class,
        "counts": {key: result.counts[key] for key, _ in _ROWS},
        "taken_as_given": result.given,
        "differences": result.told,
        "damaged": [{"path": damaged.path, "why": damaged.why} for damaged in result.damaged],
        "done": done,
    }


class _Run:
    """One pass over an archive."""

    def __init__(
        self, store: Any, saved: Any, wanted: Any, limits: list[int], home: Path, dsn: str | None, done: list[str]
    ) -> None:
        from kalshibook_core.archive.reader import Archive
        from kalshibook_tools.verify import archive as proof

        self._store, self._saved, self._wanted, self._limits, self._home, self._dsn = store, saved, wanted, limits, home, dsn
        self._archive, self.result = Archive(store), proof.Result()
        self._found = proof.Contents({}, {}, {})
        self._done = done

    async def all(self) -> Any:
        """Prove everything that is wanted; return what was found."""
        from kalshibook_tools.verify import archive as proof

        result = self.result
        self._found = found = proof.contents(self._archive, result)
        if not found.files and not result.told:
            fail(f"there is no archive at {self._store}: name one by --archive or KB_ARCHIVE")
        if result.first_class is None:
            with _progress(found.rows, "reading every file") as progress:
                proof.check_objects(self._archive, found, result, progress)
            result.counts["unnamed"] = sum(1 for _ in proof.unnamed(self._archive, found))
        if result.first_class is None:
            await self._fold()
        return result

    def quarantine(self, some: Iterable[Any]) -> None:
        """Put away what is damaged."""
        for damaged in some:
            if moved := self._archive.quarantine(damaged):
                self._done.append(f"moved to {moved}")

    async def repair(self) -> bool:
        """Put away what is damaged and make again what can be; return whether anything was done. Raises Impossible."""
        from kalshibook_tools.verify import repair

        result = self.result
        match result.first_class:
            case None:
                return False
            case "objects":
                await self._repair_objects()
            case "checkpoints":
                await self._repair_checkpoints()
            case "gaps":
                await self._repair_gaps()
            case other:
                raise repair.Impossible(_NOT_REPAIRED[other])
        return True

    async def _repair_objects(self) -> None:
        from kalshibook_tools.verify import repair

        result = self.result
        for hopeless in repair.hopeless(self._archive, self._found, result):
            raise repair.Impossible(f"cannot be made again: {hopeless}; put a copy back in its place")
        if result.counts["objects"] > len(result.damaged):
            raise repair.Impossible("offsets or rows are missing, which cannot be made again")
        for damaged in result.damaged:
            click.echo(f"to be made again: {damaged}", err=True)
        if lesser := [each for each in result.damaged if repair.is_lesser(self._archive, self._found, result, each)]:
            for each in lesser:
                self._replace(each)
            return
        places = repair.places(result)
        events = {place for place in places if place[0] != repair.CHECKPOINTS}  # first, since checkpoints are made of them
        await self._make_again(places, events or places)

    async def _make_again(self, places: set[Any], now: set[Any]) -> None:
        """Make again what is to be made `now`; of what lies outside of `places` there must be no difference."""
        from kalshibook_tools.verify import repair

        result, before = self.result, self.result.counts.copy()
        result.counts.clear()
        proofs = await self._fold(places)
        if result.first_class:
            raise repair.Impossible(f"what is not damaged differs too ({result.first_class}: {result.told[-1]})")
        result.counts = before
        rows: dict[Any, Any] = {}
        for each in proofs:
            rows |= repair.rows_again(self._archive, self._found, each, now, result, await self._stored(now))
        self.quarantine(each for each in result.damaged if now.issuperset(result.hurt[each.path]))
        for path in repair.write(self._store, rows, clock.now_us()):
            self._done.append(f"made again: {path}")

    async def _stored(self, places: Iterable[Any]) -> Any:
        """Return what the database, if there is one, says of the checkpoints to be made again."""
        from kalshibook_core.postgres.pool import connect_pool
        from kalshibook_tools.verify import repair

        days = {day for topic, _, day, _ in places if topic == repair.CHECKPOINTS}
        try:
            dsn = database(self._home, self._dsn)
        except ConfigurationError:
            return {}
        async with await connect_pool(dsn) as pool:
            return await repair.stored(pool, days)

    def _replace(self, damaged: Any) -> None:
        """Write a manifest again from its file, or put away what is damaged and the repack that names it."""
        from kalshibook_core.archive.reader import Damaged
        from kalshibook_tools.verify import repair

        again = repair.manifest_of(self._archive, self._found, damaged)
        if again is not None:
            self._archive.quarantine(damaged)
            self._store.put(damaged.path, again)
            self._done.append(f"made again: {damaged.path}")
            return
        repack = repair.standing_for_less(self._archive, self._found, damaged)
        self._archive.quarantine(damaged)
        if repack is not None and repack.path != damaged.path:
            self._archive.quarantine(Damaged(repack.path, f"of what it names, {damaged}"))
        self._done.append(f"put away: {damaged.path}: what it stood for is there")

    async def _repair_checkpoints(self) -> None:
        from kalshibook_core.postgres.pool import connect_pool
        from kalshibook_tools.verify import repair

        result = self.result
        if places := set(result.wrong_archived):
            for line in (f"{ticker} version {version}" for each in places for ticker, version in result.wrong_archived[each]):
                click.echo(f"to be replaced in the archive: the checkpoint of {line}", err=True)
            await self._make_again(places, places)
            return
        for ticker, version in result.wrong_checkpoints:
            click.echo(f"to be replaced in the database: the checkpoint of {ticker} version {version}", err=True)
        async with await connect_pool(database(self._home, self._dsn)) as pool:
            self._done += await repair.checkpoints(pool, self._archive, self._found, result.wrong_checkpoints)

    async def _repair_gaps(self) -> None:
        from kalshibook_core.postgres.pool import connect_pool
        from kalshibook_tools.verify import repair

        wrong = self.result.wrong_gaps
        if len(wrong) < self.result.counts["gaps"]:
            raise repair.Impossible("there are gaps of markets that the archive has not, and may be all that is known of them")
        for each in wrong:
            click.echo(f"to be put right in the database: {each.ticker}, {each.channel}: {each.told or 'no gap'}", err=True)
        async with await connect_pool(database(self._home, self._dsn)) as pool:
            self._done += await repair.gaps(pool, wrong)

    async def _fold(self, again: Any = ()) -> list[Any]:
        from kalshibook_core.postgres.pool import connect_pool
        from kalshibook_tools.verify import archive as proof
        from kalshibook_tools.verify import database as rows

        result, found, proofs = self.result, self._found, []
        async with AsyncExitStack() as stack:
            compared, stored = None, {}
            try:
                if not again:
                    pool = await stack.enter_async_context(await connect_pool(database(self._home, self._dsn)))
                    compared, stored = rows.Comparison(pool, result), await rows.checkpoints(pool, self._wanted, result)
                    await compared.begin()
            except ConfigurationError:
                click.echo("no database is compared: set KB_POSTGRES_DSN, or `kb up` first", err=True)
            numbers = [n for n in proof.partitions(found, self._wanted) if not again or any(n == place[1] for place in again)]
            progress = stack.enter_context(_progress(2 * found.rows, "folding"))
            for number in numbers:
                reached = {topic: held.chain.next for topic, of in found.held.items() for held in of if held.partition == number}
                proofs.append(await self._fold_one(number, again, compared, stored, progress, reached))
            if compared is not None and self._wanted == proof.Wanted() and not result.counts["raw"]:
                await compared.end_all()
        return proofs

    async def _fold_one(
        self, number: int, again: Any, compared: Any, stored: Any, progress: Callable[[int], None], reached: dict[str, int]
    ) -> Any:
        from kalshibook_tools.verify import archive as proof
        from kalshibook_tools.verify import gaps, savepoints
        from services.deduplicator.market_log import Limits
        from services.deduplicator.partition import Partition

        window, patience, trade_window = self._limits

        def new() -> Partition:
            return Partition(trade_window, limits=Limits(window, patience * 1_000_000))

        of, partition, start = savepoints.of(str(self._archive.log()), self._limits), new(), 0
        for savepoint in () if again else savepoints.latest(self._saved, of, number, self._wanted.from_us):
            if savepoints.restore(self._saved, savepoint, partition):
                start = savepoint.offset
                self.result.given.append(
                    f"the raw rows of partition {number} before offset {start}, which made everything up to "
                    f"{_EPOCH + timedelta(microseconds=savepoint.until_us)}"
                )
                break
            partition = new()

        def save(offset: int, until_us: int) -> None:
            if until_us and not again:
                savepoints.save(self._saved, savepoints.Savepoint(of, number, offset, until_us), partition)

        each = proof.Proof(self._archive, self._found, number, partition, self._wanted, self.result, start, again)
        if compared is None:
            await each.run(None, stored, progress, save)
            return each
        of_gaps = gaps.Gaps(self._wanted, partition.markets)
        await each.run(compared.compare, stored, progress, save, of_gaps.take)
        await compared.end(number, reached, each.unarchived)
        if not self.result.counts["raw"]:
            await compared.gaps(of_gaps, number, reached, each, self._wanted.to_us == proof.END_US)
        return each


@contextmanager
def _progress(rows: int, label: str) -> Iterator[Callable[[int], None]]:
    """Show on standard error, if it is a terminal, how far it is, how fast, and how long yet."""
    import sys

    began, done = clock.monotonic(), 0

    def rate(_: Any) -> str:
        return f"{done / max(clock.monotonic() - began, 1e-3):,.0f} rows/s"

    with click.progressbar(length=rows, label=label, show_pos=True, item_show_func=rate, file=sys.stderr) as bar:

        def progress(count: int) -> None:
            nonlocal done
            done += count
            bar.update(count)

        yield progress
