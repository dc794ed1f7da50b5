"""What row security does not hold, taken from every role but the owner of a table: TRUNCATE, triggers, its sequence and the like.

Supabase and its like grant all of it on every new table to the roles of their REST interface (default privileges). SELECT,
INSERT, UPDATE and DELETE stay as granted: migration 0004 says how they are closed, and an operator may open some by a policy.
"""

from collections.abc import Sequence
from typing import Any, Final

_GRANTED: Final = """
WITH tables AS (
    SELECT to_regclass(name)::oid AS oid FROM unnest($1::text[]) AS named (name)
    UNION SELECT relid FROM unnest($1::text[]) AS named (name), pg_partition_tree(to_regclass(name))
), ours AS (
    SELECT oid FROM tables
    UNION SELECT objid FROM pg_depend JOIN tables ON refobjid = tables.oid
    WHERE classid = 'pg_class'::regclass AND refclassid = 'pg_class'::regclass AND deptype = 'i'  -- sequences of identity columns
)
SELECT CASE relkind WHEN 'S' THEN 'SEQUENCE ' ELSE '' END || oid::regclass AS on_what, string_agg(privilege_type, ', ') AS what,
       CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS whose
FROM pg_class JOIN ours USING (oid), aclexplode(relacl)
WHERE grantee <> relowner AND (relkind = 'S' OR privilege_type NOT IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE'))
GROUP BY oid, relkind, grantee"""


async def close(connection: Any, tables: Sequence[str]) -> None:
    """Do so for tables and their partitions; a name of which there is no table is passed over."""
    for on_what, what, whose in await connection.fetch(_GRANTED, tables):
        await connection.execute(f"REVOKE {what} ON {on_what} FROM {whose}")
