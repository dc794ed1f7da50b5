"""`kb backfill`: fill what was missed from the exchange's own history."""

import os
from pathlib import Path

import click

from kalshibook_tools.cli.command import Instant, capture_environment, database, dsn_option, fail, home_option, run

_rate = click.option(
    "--rate",
    type=click.FloatRange(min=0.1),
    default=5.0,
    show_default=True,
    help="REST requests a second, beside the gatherers'.",
)
_exchange = click.option("--env", "exchange", type=click.Choice(["demo", "prod"]), help="Which Kalshi, given credentials.")


@click.group()
def backfill() -> None:
    """Fill what was missed from the exchange's own history, and mark it as that.

    Gaps of trades, and markets without a definition or an outcome, are filled by themselves while `kb up` runs (KB_BACKFILL).
    These commands do it at once, over any span, and over what is older than the exchange's live lists.

    \b
    Examples:
      kb backfill trades                                           every gap of trades that has ended
      kb backfill trades --from 2026-11-20 --to 2026-11-21         all trades of a day, captured or not
      kb backfill markets --from 2026-11-20 --to 2026-11-21        markets that closed then, with their results

    May be repeated, and interrupted at any moment: what is known is confirmed and not written twice. Needs the broker, the
    database and the exchange's key; of what runs in KB_HOME it knows the addresses, and the simulator's key. Its requests come on
    top of those of the gatherers.
    """


@backfill.command()
@home_option
@dsn_option
@click.option("--from", "from_us", type=Instant(), help="Read all trades from this instant on (UTC).")
@click.option("--to", "to_us", type=Instant(), help="And before this one.")
@click.option("--market", metavar="TICKER", default="", help="Only this market's.")
@click.option("--age", default=60.0, show_default=True, help="Leave gaps that ended less than so many seconds ago: REST lags.")
@_rate
@_exchange
def trades(
    home: Path,
    dsn: str | None,
    from_us: int | None,
    to_us: int | None,
    market: str,
    age: float,
    rate: float,
    exchange: str | None,
) -> None:
    """Read trades by REST and compare them with the captured ones, by trade_id.

    Without --from and --to: over the gaps of trades that have ended and were not filled yet. A trade that nobody captured is
    added, its `origin` is rest; one that REST tells otherwise stays as it was captured, and what REST says is kept in the table
    trade_differences. A gap that was read over stays a gap, marked as filled.
    """
    from services.ingest import settings
    from services.ingest.backfill import fill as work
    from services.ingest.backfill import missing

    if (from_us is None) != (to_us is None) or (from_us is not None and to_us is not None and from_us >= to_us):
        fail("--from and --to go together, the earlier one first", 2)
    told = work.Told()

    async def fill() -> None:
        where = database(home, dsn)
        async with work.opened(settings.from_env(_environment(home, exchange, rate)), told) as filling:
            found = await missing.holes(where, 0, await filling.now_us() - round(age * 1e6))
            found = [hole for hole in found if market in ("", hole.ticker)]
            progress, wanted = None, work.spans(found)
            if from_us is not None and to_us is not None:
                inside = tuple(hole for hole in found if from_us <= hole.start_us and hole.end_us <= to_us)
                progress = work.Progress(home.resolve() / "backfill.json", work.Span(market, from_us, to_us))
                wanted = [work.Span(market, progress.reached_us, to_us, inside)]
                if progress.reached_us > from_us:
                    click.echo("going on where a run before was interrupted")
            seconds = sum(span.to_us - span.from_us for span in wanted) // 1_000_000
            with click.progressbar(length=seconds, label=f"{len(wanted)} spans") as bar:
                told.advance = bar.update
                await filling.trades(wanted, progress)

    run(fill())
    click.echo(f"read {told.trades:,} trades; {told.gaps:,} gaps are marked as filled when the database has them")
    _end(told.failed, told.unreadable)


@backfill.command()
@home_option
@dsn_option
@click.option(
    "--from", "from_us", type=Instant(), required=True, help="Markets whose close time is not before this instant (UTC),"
)
@click.option("--to", "to_us", type=Instant(), required=True, help="and before this one.")
@click.option("--series", metavar="TICKER", default="", help="Only of this series.")
@_rate
@_exchange
def markets(home: Path, dsn: str | None, from_us: int, to_us: int, series: str, rate: float, exchange: str | None) -> None:
    """Read the definitions and results of markets that closed in a span: those that came and went while nobody listened."""
    from services.ingest import settings
    from services.ingest.backfill import fill as work
    from services.ingest.backfill import missing

    if from_us >= to_us:
        fail("--from is not before --to", 2)
    told = work.Told()

    async def fill() -> None:
        where = database(home, dsn)
        async with work.opened(settings.from_env(_environment(home, exchange, rate)), told) as filling:
            await filling.markets(from_us, to_us, series, lambda tickers: missing.known_events(where, tickers))

    run(fill())
    click.echo(f"read {told.markets:,} markets, and {told.events:,} events that were not known")
    _end(told.failed, told.unreadable)


def _environment(home: Path, exchange: str | None, rate: float) -> dict[str, str]:
    env = dict(os.environ)  # noqa: TID251  (the person's own, as the services would get it)
    return capture_environment(home, env, exchange) | {"KB_REQUESTS_PER_SECOND": str(rate)}


def _end(failed: list[str], unreadable: int) -> None:
    for why in failed[:20]:
        click.echo(why, err=True)
    if failed or unreadable:
        fail(f"{len(failed)} spans were not read to their end, {unreadable} objects could not be read: what was read stands")
