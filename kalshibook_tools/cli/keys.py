"""`kb keys`: make, list and revoke the keys of the API."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from kalshibook_core.runtime import clock
from kalshibook_tools.cli.command import database, dsn_option, fail, home_option, run

_T = TypeVar("_T")


@click.group()
def keys() -> None:
    """Make, list and revoke keys of the API. The database keeps a digest of a key, never the key.

    \b
    Examples:
      kb keys create --account alice --plan free     prints the key, once
      kb keys list
      kb keys revoke key_0123456789abcdef
    """


@keys.command()
@home_option
@dsn_option
@click.option("--account", required=True, help="The account's name; it is made if there is none.")
@click.option("--plan", required=True, help="Its plan: demo, free, pro or unlimited.")
def create(home: Path, dsn: str | None, account: str, plan: str) -> None:
    """Make a key and print it: it cannot be shown again."""
    from services.gateway.keys import store

    async def make(connection: Any) -> store.NewKey:
        now_us = clock.now_us()
        return await store.create_key(connection, await store.create_account(connection, account, plan, now_us), now_us)

    try:
        made = run(_connected(home, dsn, make))
    except store.AccountError as error:
        fail(str(error), 2)
    click.echo(made.secret)
    click.echo(f"{made.id} of account {account}: keep the key, it is not shown again", err=True)


@keys.command(name="list")
@home_option
@dsn_option
@click.option("--account", help="Only this account's.")
def list_(home: Path, dsn: str | None, account: str | None) -> None:
    """List keys: id, account, plan, the key's first letters, when made and revoked."""
    from kalshibook_tools.supervisor.screen import table
    from services.gateway import instants
    from services.gateway.keys import store

    found = run(_connected(home, dsn, lambda connection: store.list_keys(connection, account)))
    rows = []
    for key in found:
        revoked = f"  revoked {instants.text(key.revoked_us)}" if key.revoked_us else ""
        rows.append((key.id, f"{key.account} ({key.plan})", f"{key.shown}  made {instants.text(key.created_us)}{revoked}"))
    click.echo(table(rows) if rows else "there are no keys")


@keys.command()
@home_option
@dsn_option
@click.argument("key_id")
def revoke(home: Path, dsn: str | None, key_id: str) -> None:
    """Revoke a key by its id (`kb keys list`). Gateways refuse it within seconds."""
    from services.gateway.keys import store

    if not run(_connected(home, dsn, lambda connection: store.revoke_key(connection, key_id, clock.now_us()))):
        fail(f"no key with the id {key_id!r} is live: `kb keys list` shows them")
    click.echo(f"revoked {key_id}")


async def _connected(home: Path, dsn: str | None, work: Callable[[Any], Awaitable[_T]]) -> _T:
    from kalshibook_core.postgres import pool

    connection = await pool.connect(database(home, dsn))
    try:
        return await work(connection)
    finally:
        await connection.close()
