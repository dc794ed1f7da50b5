"""`kb import`: recorded frames into the history, marked as that."""

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kalshibook_core.runtime.settings import ConfigurationError
from kalshibook_tools.cli.command import broker, database, dsn_option, endpoint_option, fail, home_option, run

if TYPE_CHECKING:
    from services.ingest import imports

_TOLD = 20
_NAME = re.compile(r"[a-z0-9_-]{1,40}")


@click.command(name="import")
@home_option
@dsn_option
@endpoint_option
@click.argument("paths", nargs=-1, required=True)
@click.option("--origin", metavar="NAME", help="What it is called from then on; by default after the first path.")
def import_(home: Path, dsn: str | None, endpoint: str, paths: tuple[str, ...], origin: str | None) -> None:
    """Import recorded frames (as `kb up --recording` plays them): files, or folders of .ndjson, .ndjson.gz, .jsonl, .jsonl.gz; or
    an archive (a folder that KB_ARCHIVE named), whose raw rows are taken. Each may be an s3://bucket/prefix; recordings there are
    first copied to KB_HOME, for as long as it takes.

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
      AWS_ENDPOINT_URL=http://127.0.0.1:9000 kb import s3://bucket/recordings
    """
    from services.ingest import imports, recordings

    name = origin or re.sub(r"[^a-z0-9_-]+", "-", Path(paths[0]).resolve().name.split(".")[0].lower()).strip("-")[:40]
    if not _NAME.fullmatch(name):
        fail(f"--origin {name!r}: a name has lower case letters, digits, - and _, 40 at most", 2)

    here = home.resolve() / "imports"
    fetched = here / f"{name}.fetched"

    async def work() -> imports.Report:
        cluster = broker(home, dict(os.environ))  # noqa: TID251  (the person's own, as the services would get it)
        where = database(home, dsn)
        source = _source(paths, endpoint, name, cluster.partitions, fetched)
        with click.progressbar(length=source.size, label="reading") as bar:
            survey = source.survey(bar.update)
        with click.progressbar(length=survey.frames, label="importing") as bar:
            return await imports.bring_in(cluster, where, source, survey, imports.Ledger(here / f"{name}.json"), bar.update)

    def named(text: str) -> str:
        for number, path in enumerate(paths):
            text = text.replace(str(fetched / str(number)), path.rstrip("/"))
        return text

    try:
        report = run(work())
    except (recordings.NotRecorded, imports.Unfinished, ValueError) as error:
        fail(named(str(error)))
    finally:
        shutil.rmtree(fetched, ignore_errors=True)
    survey, refused = report.survey, report.refused
    for why in survey.bad[:_TOLD]:
        click.echo(named(why), err=True)
    for ticker in sorted(refused)[:_TOLD]:
        click.echo(f"{ticker}: {survey.markets[ticker].frames:,} frames are not taken: {refused[ticker]}", err=True)
    taken = survey.frames - sum(survey.markets[ticker].frames for ticker in refused)
    done = "imported before: nothing to do" if report.repeated else "imported"
    click.echo(f"import-{name}: {taken:,} frames of {len(survey.markets) - len(refused):,} markets {done}")
    if report.there:
        click.echo(f"{report.there:,} records of a run that was interrupted were there already")
    if survey.bad_lines or refused:
        fail(f"{survey.bad_lines:,} lines or files could not be read; {len(refused):,} markets were left out: all else is taken")


def _source(paths: tuple[str, ...], endpoint: str, name: str, partitions: int, fetched: Path) -> "imports.Source":
    """Return what is imported; recordings of a bucket are copied to `fetched` first, to a folder with the number of the path."""
    from kalshibook_core.archive.store import Bucket, open_store
    from services.ingest import archived, imports, recordings

    try:
        stores = [open_store(path, endpoint) for path in paths]
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    if archives := [
        each for path, each in zip(paths, stores, strict=True) if not Path(path).is_file() and archived.is_archive(each)
    ]:
        if len(paths) > 1:
            fail(f"{archives[0]} is an archive: import it alone", 2)
        return archived.Archived(archives[0], imports.gatherer(name), partitions)
    shutil.rmtree(fetched, ignore_errors=True)  # of a run that was killed
    files = list(map(Path, paths))
    for number, store in enumerate(stores):
        if isinstance(store, Bucket):
            files[number] = fetched / str(number)
            files[number].mkdir(parents=True)
            with click.progressbar(length=sum(size for _, size in store.listed("")), label=f"fetching {store}") as bar:
                recordings.fetch(store, files[number], bar.update)
    return recordings.Recording(tuple(files), imports.gatherer(name), partitions)
