"""Connections to Postgres: one pool a process, and one error for an unreachable server (it never holds the password)."""

from urllib.parse import urlsplit

import asyncpg

UNREACHABLE = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.AdminShutdownError,
    asyncpg.InterfaceError,  # the connection was closed under the statement
    asyncpg.InternalClientError,  # asyncpg's word for a server that took its leave between two steps of one call
)
"""What asyncpg raises while a server is away, starting or shutting down: worth a retry, where other errors are not."""

_SERVER_SETTINGS = {
    "application_name": "kalshibook",
    # A process that freezes inside a transaction keeps its locks; whoever takes over from it must not wait for ever.
    "idle_in_transaction_session_timeout": "15000",
    # Planning a point-in-time query anew each time takes five times as long as running it, with a hundred partitions. So each
    # statement has to have one good plan, whatever its arguments: a condition that an index helps is not an optional one.
    "plan_cache_mode": "force_generic_plan",
}


class DatabaseUnreachable(Exception):
    """No connection to the server could be made."""


def describe(dsn: str) -> str:
    """Return where a DSN points, without user or password."""
    parts = urlsplit(dsn)
    return f"{parts.hostname or 'local socket'}:{parts.port or 5432}{parts.path}"


async def connect(dsn: str) -> "asyncpg.Connection[asyncpg.Record]":
    """Return one connection; raise DatabaseUnreachable if there is none to be had."""
    try:
        return await asyncpg.connect(dsn, timeout=10)
    except UNREACHABLE as error:
        raise DatabaseUnreachable(f"Postgres at {describe(dsn)} cannot be reached ({error}): is it running?") from error


async def connect_pool(dsn: str, *, size: int = 4, reset: bool = True) -> "asyncpg.Pool[asyncpg.Record]":
    """Return an open pool of at most `size` connections; raise DatabaseUnreachable. Close it with `async with`.

    Without `reset` a connection is handed on as it was left, which saves a round trip a query: for callers that change no
    state of their session (no SET, no LISTEN, no advisory lock).
    """
    try:
        return await asyncpg.create_pool(
            dsn, min_size=1, max_size=size, timeout=10, command_timeout=60, server_settings=_SERVER_SETTINGS,
            reset=None if reset else _as_left,
        )  # fmt: skip
    except UNREACHABLE as error:
        raise DatabaseUnreachable(f"Postgres at {describe(dsn)} cannot be reached ({error}): is it running?") from error


async def _as_left(connection: object) -> None:
    pass
