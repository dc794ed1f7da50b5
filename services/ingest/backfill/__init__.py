"""backfill: reads from the exchange's history, by itself, what was missed: trades of gaps, and markets nobody defined or settled.

Reads: the tables gaps, markets and events, for what is missing; the exchange's REST lists of trades and markets.
Writes: kalshi.raw.v1 alone, as the gatherer `backfill`: each trade and market as it came, and behind the trades of a gap a record
that all of it was read. The deduplicator and the persister make rows of that; a gap that was read over stays, marked.
Guarantees: a gap is marked only when the broker has every trade of it. Killed at any moment it leaves gaps that are not marked,
and the next look finds them. What is known already changes nothing: two of it, or one and a command, only ask more than need be.
What could not be read, or is not resolved yet, is asked for again after twice the time, up to a day.
Not by itself, since the exchange must be asked for very much: what is older than KB_BACKFILL_DAYS, markets older than its live
list (`kb backfill markets`), and trades from before a market was followed (`kb backfill trades --from --to`).
Scale: one is enough; its requests come on top of those of the gatherers, which have the same key's budget.
On SIGTERM: stops reading, delivers what it has, exits 0.

Rooms: `missing` asks the database, `history` the exchange, `fill` is what is done, `serve` is the process.
"""
