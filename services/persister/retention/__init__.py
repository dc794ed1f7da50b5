"""retention: drops from Postgres the days that the archive holds, once each of their rows was compared with the archive's.

Reads the archive of `kalshibook_core.archive` and the tables book_events, tickers and checkpoints. Drops their partitions by
time, and writes cold_days and cold_spans: what was dropped, and what of it is of which market. A part of the persister, which
owns these tables, as a process of its own: comparing takes a core's whole attention, which writing must not miss.

A partition is dropped when its last day has been over for more than KB_HOT_DAYS, and the archive holds exactly its rows, value
for value: none is missing, none differs, and (but for checkpoints, whose topic is compacted) none is there that the table lacks.
Anything else is told, by market and version, and the partition stays. trades, lifecycle and gaps are small and are kept.

Bounds: some ten thousand rows of each side are held at a time, or one market's day. Readers are held up for a quarter of a second
at the most, writers of the day that goes for as long as its rows are counted.

Run one; another waits until the first is gone.

Rooms: `compare` what differs (pure), `verify` a partition against the archive, `store` every statement, `serve` is the process.
"""
