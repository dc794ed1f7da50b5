"""persister: the canonical topics into Postgres, each event exactly once.

Reads kalshi.book.v1, kalshi.trades.v1, kalshi.tickers.v1, kalshi.lifecycle.v1, kalshi.checkpoints.v1 and kalshi.audited.v1 (group
kb-persister).
Writes the market tables of `kalshibook_core/postgres/migrations/0001`, and is the only service that does.

Guarantees: rows and the offsets they came from commit in one transaction, and the offsets move by compare-and-set, so a crash
repeats nothing, loses nothing, and a process that lost its partitions without noticing cannot write. On assignment it goes on
where the database says, whatever Kafka remembers. While Postgres is away it stops reading, keeps its one batch and retries.

Its second sink, Parquet files of the raw topic and of these, is a process of its own: `archive/`; and so is what drops from the
tables the days that the archive holds: `retention/`.

Scale it by starting more: at most one per partition has work.
"""
