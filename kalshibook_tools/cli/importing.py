"""`kb import`: recorded frames into the history, marked as that."""

import os
import re
from pathlib import Path

import click

from kalshibook_tools.cli.command import broker, database, dsn_option, fail, home_option, run

_TOLD = 20
_NAME = re.compile(r"[a-z0-9_-]{1,40}")


@click.command(name="import")
@home_option
@dsn_option
@click.argument("paths", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--origin", metavar="NAME", help="What it is called from then on; by default after the first path.")
def import_(home: Path, dsn: str | None, paths: tuple[Path, ...], origin: str | None) -> None:
    """Import recorded frames (as `kb up --recording` plays them): files, or folders of .ndjson, .ndjson.gz, .jsonl, .jsonl.gz; or
    an archive (a folder that KB_ARCHIVE named), whose raw rows are taken.

    They become raw records of a gatherer called import-NAME, and canonical events like any other's: numbered books, trades with
    the origin import-NAME, gaps where the recorder had lost its connection. A market whose book is recorded already, later than
    the frames, cannot take them (versions are final): nothing of it is taken, and it is named. The same files twice change
    nothing; a run that was interrupted goes on where it stopped. Exit code 1 if a line could not be read or a market was left
    out.

    \b
    Examples:
      kb import recordings/                        a folder, as import-recordings
      kb import day1.ndjson.gz day2.ndjson.gz --origin gold
      kb import old/archive --origin before
    """
    from services.ingest import archived, imports, recordings

    name = origin or re.sub(r"[^a-z0-9_-]+", "-", paths[0].resolve().name.split(".")[0].lower()).strip("-")[:40]
    if not _NAME.fullmatch(name):
        fail(f"--origin {name!r}: a name has lower case letters, digits, - and _, 40 at most", 2)

    async def work() -> imports.Report:
        cluster = broker(home, dict(os.environ))  # noqa: TID251  (the person's own, as the services would get it)
        where = database(home, dsn)
        if archives := [path for path in paths if archived.is_archive(path)]:
            if len(paths) > 1:
                fail(f"{archives[0]} is an archive: import it alone", 2)
            source: imports.Source = archived.Archived(archives[0], imports.gatherer(name), cluster.partitions)
        else:
            source = recordings.Recording(paths, imports.gatherer(name), cluster.partitions)
        ledger = imports.Ledger(home.resolve() / "imports" / f"{name}.json")
        with click.progressbar(length=source.size, label="reading") as bar:
            survey = source.survey(bar.update)
        with click.progressbar(length=survey.frames, label="importing") as bar:
            return await imports.bring_in(cluster, where, source, survey, ledger, bar.update)

    try:
        report = run(work())
    except (recordings.NotRecorded, imports.Unfinished, ValueError) as error:
        fail(str(error))
    survey, refused = report.survey, report.refused
    for why in survey.bad[:_TOLD]:
        click.echo(why, err=True)
    for ticker in sorted(refused)[:_TOLD]:
        click.echo(f"{ticker}: {survey.markets[ticker].frames:,} frames are not taken: {refused[ticker]}", err=True)
    taken = survey.frames - sum(survey.markets[ticker].frames for ticker in refused)
    done = "imported before: nothing to do" if report.repeated else "imported"
    click.echo(f"import-{name}: {taken:,} frames of {len(survey.markets) - len(refused):,} markets {done}")
    if report.there:
        click.echo(f"{report.there:,} records of a run that was interrupted were there already")
    if survey.bad_lines or refused:
        fail(f"{survey.bad_lines:,} lines or files could not be read; {len(refused):,} markets were left out: all else is taken")
