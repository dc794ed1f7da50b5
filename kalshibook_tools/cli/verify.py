"""`kb verify`: whether the archive is what was written, makes itself again from its raw rows, and equals the database."""

from contextlib import AsyncExitStack
from pathlib import Path

import click

from kalshibook_core.runtime.settings import ConfigurationError
from kalshibook_tools.cli.command import Instant, database, dsn_option, fail, home_option, run

_ROWS = (
    ("files", "files read, each what its commit says"),
    ("events_proved", "archived events that the raw rows make"),
    ("events_pending", "events at the end that only one side has yet"),
    ("checkpoints_proved", "checkpoints that equal the book of their version"),
    ("rows_proved", "rows of the database that are the events"),
    ("rows_pending", "rows at the end that the database has yet to get"),
    ("unnamed", "files that no commit names: left by a writer that was killed; no reader sees them"),
    ("objects", "OBJECTS: missing, or not what was written"),
    ("raw", "RAW: partitions whose first raw records are not archived"),
    ("events", "EVENTS: markets whose archived events are not what the raw rows make"),
    ("checkpoints", "CHECKPOINTS: of another book"),
    ("database", "DATABASE: rows that differ, are missing or too many"),
)


@click.command()
@home_option
@dsn_option
@click.option("--archive", "location", envvar="KB_ARCHIVE", help="A folder or s3://bucket/prefix; by default KB_HOME/archive.")
@click.option("--endpoint", envvar=["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"], default="", help="S3's address, if not Amazon's.")
@click.option("--market", metavar="TICKER", help="Compare only this market.")
@click.option("--from", "from_us", type=Instant(), default="1970-01-01", help="Compare events from this instant on (UTC).")
@click.option("--to", "to_us", type=Instant(), help="Compare events before this instant.")
@click.option("--keep", is_flag=True, help="Leave damaged files where they are.")
@click.option("--window", envvar="KB_DEDUPLICATOR_WINDOW", default=10_000, show_default=True, help="As the deduplicator had it.")
@click.option("--patience", envvar="KB_DEDUPLICATOR_PATIENCE_SECONDS", default=300, show_default=True, help="Likewise.")
@click.option("--trade-window", envvar="KB_DEDUPLICATOR_TRADE_WINDOW", default=50_000, show_default=True, help="Likewise.")
def verify(
    home: Path, dsn: str | None, location: str | None, endpoint: str, market: str | None, from_us: int, to_us: int | None,
    keep: bool, window: int, patience: int, trade_window: int,
) -> None:  # fmt: skip
    """Prove the archive, and the database with it.

    Reads every file against its manifest; folds the raw rows from nothing through the deduplicator's own code and compares each
    event, version and checksum with the archived ones, with the checkpoints and with the database. Exit code 1 if anything
    differs, 0 if not. A damaged file is moved to quarantine/ in the archive, with the reason beside it.

    \b
    Try:
      kb verify
      kb verify --market KXGOLD15M-26AUG050800-00 --from 2026-08-05T11:00:00Z --to 2026-08-05T12:00:00Z
      KB_ARCHIVE=s3://bucket/prefix kb verify --keep
    """
    from kalshibook_core.archive.reader import Archive
    from kalshibook_core.archive.store import open_store
    from kalshibook_core.postgres.pool import connect_pool
    from kalshibook_tools.verify import archive as proof
    from kalshibook_tools.verify import database as rows
    from services.deduplicator.market_log import Limits
    from services.deduplicator.partition import Partition

    result = proof.Result()
    wanted = proof.Wanted(market, from_us, proof.END_US if to_us is None else to_us)

    async def work() -> None:
        try:
            store = open_store(location or str(home / "archive"), endpoint)
        except ValueError as error:
            raise ConfigurationError(f"KB_ARCHIVE: {error}") from None
        held = Archive(store)
        found = proof.contents(held, result)
        if not found.files and not result.told:
            fail(f"there is no archive at {store}: name one by --archive or KB_ARCHIVE")
        with click.progressbar(length=found.rows, label="reading every file") as bar:
            proof.check_objects(held, found, result, bar.update)
        result.counts["unnamed"] = sum(1 for _ in proof.unnamed(held, found))
        if result.first_class is None:
            await fold(held, found)
        elif not keep:
            for damaged in result.damaged:
                if moved := held.quarantine(damaged):
                    click.echo(f"moved to {moved}", err=True)

    async def fold(held: Archive, found: proof.Contents) -> None:
        async with AsyncExitStack() as stack:
            compare, stored = None, {}
            try:
                pool = await stack.enter_async_context(await connect_pool(database(home, dsn)))
                compare, stored = rows.comparison(pool, result), await rows.checkpoints(pool)
            except ConfigurationError:
                click.echo("no database is compared: set KB_POSTGRES_DSN, or `kb up` first")
            bar = stack.enter_context(click.progressbar(length=found.rows, label="folding from nothing"))
            for number in proof.partitions(found, wanted):
                partition = Partition(trade_window, limits=Limits(window, patience * 1_000_000))
                await proof.Proof(held, found, number, partition, wanted, result).run(compare, stored, bar.update)

    run(work())
    for key, meaning in _ROWS:
        click.echo(f"{result.counts[key]:>12,}  {meaning}")
    for line in result.told:
        click.echo(line, err=True)
    if result.first_class:
        fail(f"the archive does not prove itself: {result.counts[result.first_class]:,} differences of {result.first_class}")
    click.echo("the archive is what was written, and the raw rows make it again")
