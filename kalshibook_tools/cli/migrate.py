"""`kb migrate`: bring a database's tables up to date."""

from pathlib import Path

import click

from kalshibook_tools.cli.command import database, dsn_option, home_option, run


@click.command()
@home_option
@dsn_option
def migrate(home: Path, dsn: str | None) -> None:
    """Bring the database up to date: run the numbered SQL migrations it has not seen.

    Safe to repeat and to run from several places at once. `kb up` does it by itself.

    \b
    Examples:
      kb migrate                                             the database that runs in KB_HOME
      KB_POSTGRES_DSN=postgresql://me@db/kalshi kb migrate   another one
    """

    async def work() -> list[str]:
        from kalshibook_core.postgres.migrate import migrate as bring_up_to_date

        return await bring_up_to_date(database(home, dsn), click.echo)

    click.echo(f"applied {len(run(work()))} migrations")
