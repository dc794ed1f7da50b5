"""One gatherer: captures every market of the exchange into kalshi.raw.v1, byte for byte.

Reads: the exchange's websocket (order books, trades, tickers, lifecycle) and its REST list of markets.
Writes: kalshi.raw.v1 alone: every frame verbatim with its provenance, and where a connection could not vouch for a market (a hole
in a sid's seq, a lost connection, a dead subscription) a BREAK under that market's key, before anything that came after.
Guarantees: frames of a connection stand in the topic in order of receipt; nothing received is left out, also not what cannot be
parsed; a loss is never unsaid. While Kafka is away frames wait on the disk (KB_SPOOL), and are delivered in order and once, by
the next life of the process if this one is killed. Where there is no room left every market gets a BREAK (broker_outage) and
is captured anew when there is. A killed process says no BREAK; the next one says START first.
On SIGTERM: stops reading, breaks every market held, closes its sockets with 1000, flushes, exits 0.
Scale: one process takes one core. More of them, each with its own KB_GATHERER, capture the same markets once more.
Backfill (`kb-backfill`, a process of its own, and `kb backfill`): what was missed, from REST's history, into the same topic.
Imports (`kb import`, likewise): recorded frames, as a gatherer of their own name.
State: what the spool holds, and the markets known (KB_REGISTRY). All else the exchange tells again.
"""
