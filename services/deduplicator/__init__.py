"""deduplicator: one numbered, canonical stream a market out of everything the gatherers received.

Reads kalshi.raw.v1 (group kb-deduplicator). Writes kalshi.book.v1, kalshi.trades.v1, kalshi.tickers.v1, kalshi.lifecycle.v1, and
kb.deduplicator.v1, its own memory. Raw partition p feeds partition p of each; keys pass through unchanged.

Guarantees. A market's book events carry versions 1, 2, 3, … without a hole, a non-decreasing effective time and the checksum
of the book after them. What was lost is a `Gap` in the stream, never a silence. Events and the raw offsets they were made of
commit in one Kafka transaction a partition, so what readers of committed records see after a kill -9 or a rebalance is, version
for version, what they would have seen without it. A frame that cannot be read is counted, told once a kind and minute, and passed
over: the raw topic keeps it.

Scaling: as many processes as partitions, all in one group. One core takes tens of thousands of frames a second.

Rooms: `alignment` says which source may extend a market's log, `market_log` numbers book events, `trade_log` does trades and
their gaps, `definitions` reads lifecycle and grids, `partition` joins them (all pure); `restore` rebuilds a partition from Kafka;
`serve` is the process. One gatherer is exact. A second one's frames are refused while the first leads (see `alignment`).
"""
