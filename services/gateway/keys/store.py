"""Accounts and keys in Postgres. Every function takes a pool or a connection of `kalshibook_core.postgres.pool`."""

import secrets
from typing import NamedTuple

import asyncpg

from services.gateway.accounts import PLANS, Caller
from services.gateway.keys import credentials

Database = asyncpg.Pool | asyncpg.Connection


class AccountError(ValueError):
    """The account cannot be made or found as asked; the text says why."""


class NewKey(NamedTuple):
    """A key just made. `secret` is shown once and kept nowhere."""

    id: str
    account_id: str
    secret: str


class KeyInfo(NamedTuple):
    """A key as lists show it."""

    id: str
    account_id: str
    account: str
    plan: str
    shown: str
    created_us: int
    revoked_us: int | None


async def create_account(database: Database, name: str, plan: str, now_us: int) -> str:
    """Return the id of the account of that name, made if it does not exist; raise AccountError for an unknown or another plan."""
    if plan not in PLANS:
        raise AccountError(f"no plan is called {plan!r}: choose one of {', '.join(PLANS)}")
    if not 0 < len(name) <= 100 or not name.isprintable():
        raise AccountError("an account's name has 1 to 100 printable characters")
    # The update changes nothing; it makes RETURNING give the row that was there.
    row = await database.fetchrow(
        "INSERT INTO accounts (id, name, plan, created_us) VALUES ($1, $2, $3, $4) "
        "ON CONFLICT (name) DO UPDATE SET name = excluded.name RETURNING id, plan",
        f"acct_{secrets.token_hex(8)}", name, plan, now_us,
    )  # fmt: skip
    assert row is not None
    if row["plan"] != plan:
        raise AccountError(f"account {name!r} exists and has the plan {row['plan']!r}, not {plan!r}")
    return str(row["id"])


async def create_key(database: Database, account_id: str, now_us: int) -> NewKey:
    """Make a key for an account; raise AccountError if there is no such account."""
    plan = await database.fetchval("SELECT plan FROM accounts WHERE id = $1", account_id)
    if plan is None:
        raise AccountError(f"no account has the id {account_id!r}")
    secret, key_id = credentials.mint(plan), f"key_{secrets.token_hex(8)}"
    await database.execute(
        "INSERT INTO api_keys (id, account_id, hash, shown, created_us) VALUES ($1, $2, $3, $4, $5)",
        key_id, account_id, credentials.digest(secret), credentials.shown(secret), now_us,
    )  # fmt: skip
    return NewKey(key_id, account_id, secret)


async def list_keys(database: Database, account: str | None = None) -> list[KeyInfo]:
    """Return keys, oldest first; of one account's name where given."""
    rows = await database.fetch(
        "SELECT k.id, k.account_id, a.name, a.plan, k.shown, k.created_us, k.revoked_us FROM api_keys k "
        "JOIN accounts a ON a.id = k.account_id WHERE $1::text IS NULL OR a.name = $1 ORDER BY k.created_us, k.id",
        account,
    )
    return [KeyInfo(*row) for row in rows]


async def revoke_key(database: Database, key_id: str, now_us: int) -> bool:
    """End a key; False if no key of that id was live. Gateways refuse it within `lookup.TTL` seconds."""
    status = await database.execute("UPDATE api_keys SET revoked_us = $2 WHERE id = $1 AND revoked_us IS NULL", key_id, now_us)
    return bool(status == "UPDATE 1")


async def find(database: Database, digest: bytes) -> Caller | None:
    """Return whose key has that digest, None for an unknown or revoked one."""
    row = await database.fetchrow(
        "SELECT a.id, a.name, a.plan, k.id FROM api_keys k JOIN accounts a ON a.id = k.account_id "
        "WHERE k.hash = $1 AND k.revoked_us IS NULL",
        digest,
        timeout=5.0,
    )
    return None if row is None else Caller(*row)
