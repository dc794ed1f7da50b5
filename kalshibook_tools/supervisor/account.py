"""The demo account: an API key that works as soon as the first screen shows it. Its plan meters and never refuses.

The key is kept in KB_HOME, readable by its owner only, because the database holds no more than its digest.
"""

import json

from kalshibook_core.postgres import pool
from kalshibook_core.runtime import clock
from kalshibook_tools.supervisor.home import Home
from services.gateway.keys import credentials, store

NAME = PLAN = "demo"


async def demo_key(home: Home, dsn: str) -> str:
    """Return the demo account's key, made if there is none this database knows."""
    connection = await pool.connect(dsn)
    try:
        try:
            kept = str(json.loads(home.account_file.read_text())["key"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            kept = ""
        if kept and await store.find(connection, credentials.digest(kept)) is not None:
            return kept
        # 1. The key in the database: a crash here leaves one whose secret nobody has. 2. The key in our file.
        now_us = clock.now_us()
        made = await store.create_key(connection, await store.create_account(connection, NAME, PLAN, now_us), now_us)
        home.write(home.account_file, {"account": NAME, "key": made.secret})
        return made.secret
    finally:
        await connection.close()
