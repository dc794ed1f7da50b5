"""archive: the raw and canonical topics into Parquet files, each record exactly once. The persister's second sink.

Reads kalshi.raw.v1, kalshi.book.v1, kalshi.trades.v1, kalshi.tickers.v1, kalshi.lifecycle.v1 and kalshi.checkpoints.v1 (group
kb-archive). Writes the archive of `kalshibook_core.archive`, and is the only service that does.

Guarantees: what the exchange sent is kept byte for byte. Which records are in the archive is said by the archive itself, so a
crash at any moment repeats nothing and loses nothing, and there are no offsets beside it that could disagree. Files are never
edited: what comes late makes another file of its day. While the storage is away or full it stops reading, holds what it has and
tries again; Kafka keeps the rest.

Bounds: what waits, waits in Kafka. One commit is held at a time, of at most KB_ARCHIVE_ROWS records and KB_ARCHIVE_BYTES; full,
it is written, and the rest of its partition makes the next.

Scale it by starting more: at most one per partition has work.

Rooms: `held` the records of a partition, and whose turn it is, `files` makes them files (both pure), `commit` writes those,
`repack` puts a finished day together, `serve` is the process.
"""
