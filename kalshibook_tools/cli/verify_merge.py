"""`kb verify-merge`: whether hurt copies of a recording, merged, are the recording again."""

from collections.abc import Sequence
from pathlib import Path

import click

from kalshibook_tools.cli.command import fail

_ROUND = 50_000
_QUIET = {"tickers": 60, "pace": 5}  # every other round has markets that are quiet for minutes
_YEAR_US = 365 * 86_400_000_000  # with pauses, a gatherer that lags by some thousand records lags by hours
_ROWS = (
    ("events", "book events that truly happened"),
    ("records", "raw records of all copies"),
    ("trades", "trades in the stream"),
    ("aligned", "times a copy's place in a log was found"),
    ("gaps", "gaps in books"),
    ("unseen", "events in them that no copy heard"),
    ("seen", "events in them that a copy heard too shortly to place"),
    ("trade_gaps", "records of gaps in trades"),
    ("waiting", "events at the end whose place is not proved yet"),
    ("unfinished", "events at the end whose loss cannot be known yet"),
    ("lost", "LOST: missing, and no gap says so"),
    ("extra", "EXTRA: twice, or out of place"),
    ("wrong", "WRONG: other content, time, version, checksum or cause"),
    ("false_gaps", "FALSE GAPS: a copy was whole there"),
)


@click.command()
@click.argument("recordings", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--copies", "count", default=3, show_default=True, type=click.IntRange(1, 5), help="Gatherers to pretend.")
@click.option("--seed", default=1, show_default=True, help="The same seed hurts the same frames.")
@click.option("--generated", metavar="N", type=click.IntRange(1), help="Generate N events instead of reading recordings.")
@click.option("--whole", is_flag=True, help="Hurt nothing: then there must be no gap at all.")
def verify_merge(recordings: Sequence[Path], count: int, seed: int, generated: int | None, whole: bool) -> None:
    """Merge hurt copies of recorded frames and compare the result with the frames, event by event.

    RECORDINGS are files or folders as `kb up --recording` takes them. Each copy is a gatherer that is cut, loses, repeats and
    reorders frames, is killed and lags, each on its own and sometimes all at once; then the deduplicator's own code makes one
    stream of them. Exit code 1 if a single event is lost without a gap, twice, or wrong, or if a gap is told that there was not.

    \b
    Try:
      kb verify-merge recordings/ --copies 3 --seed 7
      kb verify-merge --generated 2000000
    """
    from kalshibook_tools.simulator.recording import UnreadableRecording
    from kalshibook_tools.verify import copies, merge, truth
    from services.deduplicator.market_log import LIMITS, Limits

    if bool(recordings) == bool(generated):
        raise click.UsageError("give recordings, or --generated N")
    total = merge.Result()
    patient = Limits(patience_us=_YEAR_US)
    hurts = copies.NO_HURTS if whole else copies.Hurts()
    names = [f"g{number}" for number in range(1, count + 1)]
    try:
        happened = [] if generated else list(truth.recorded(recordings))
    except UnreadableRecording as error:
        fail(str(error))
    rounds: list[tuple[list[truth.Event] | None, int]] = (
        [(happened, seed)] if happened else [(None, seed + n) for n in range(-(-(generated or 0) // _ROUND))]
    )
    with click.progressbar(length=count * (generated or len(happened)), label="merging") as bar:
        for known, at in rounds:
            quiet = known is None and at % 2
            events = truth.generate(min(_ROUND, generated or _ROUND), at, **(_QUIET if quiet else {})) if known is None else known
            limits = patient if known is not None or quiet else LIMITS
            result = merge.compare(events, copies.publish(events, names, at, hurts), limits, bar.update)
            total.counts.update(result.counts)
            total.told += result.told
            if whole and result.counts["gaps"] + result.counts["trade_gaps"]:
                total.differs("false_gaps", "nothing was hurt, and a gap is told")
    for key, meaning in _ROWS:
        click.echo(f"{total.counts[key]:>12,}  {meaning}")
    for line in total.told[:20]:
        click.echo(line, err=True)
    if total.differences:
        fail(f"{total.differences:,} differences between the truth and the merged stream (seed {seed})")
    click.echo("the merged stream is the true one wherever a copy was whole")
