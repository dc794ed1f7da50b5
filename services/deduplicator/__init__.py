"""deduplicator: one numbered, canonical stream a market out of everything the gatherers received.

Reads kalshi.raw.v1 (group kb-deduplicator). Writes kalshi.book.v1, kalshi.trades.v1, kalshi.tickers.v1, kalshi.lifecycle.v1, and
kb.deduplicator.v2, its own memory. Raw partition p feeds partition p of each; keys pass through unchanged.

Guarantees. Whatever happens to a connection or a gatherer, each event that the exchange sent to one whole gatherer is in the
stream once, in order; what none of them had, or nobody can place, is a `Gap`, never a silence. A market's book events carry
versions 1, 2, 3, … without a hole, a non-decreasing effective time and the checksum of the book after them. Events and the raw
offsets they were made of commit in one Kafka transaction a partition, so what readers of committed records see after a kill -9
or a rebalance is, version for version, what they would have seen without it. A frame that cannot be read is counted, told once
a kind and minute, and passed over: the raw topic keeps it.

One to five gatherers; one is the case n = 1 of the same rules. `kb verify-merge` proves it on any recording.

Scaling: as many processes as partitions, all in one group. One core takes more than a hundred thousand frames a
second of three gatherers, as nearly all are deltas that come when they should (`Partition.events`).

Rooms: `alignment` says where in a market's log each source stands, `market_log` numbers book events, `trade_log` does trades and
their gaps, `definitions` reads lifecycle and grids, `partition` joins them (all pure); `restore` rebuilds a partition from its
last savepoint and the raw records since; `serve` is the process.
"""
