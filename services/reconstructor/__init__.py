"""reconstructor: the live book of every market, verified event by event, in Redis and as checkpoints.

Reads kalshi.book.v1 (group kb-reconstructor), all of kalshi.audits.v1 and, when partitions are assigned, kalshi.checkpoints.v1.
Writes kalshi.checkpoints.v1 and kalshi.audited.v1, and in Redis the latest book of each market: key
`<prefix>kb:book:<ticker>`, value a Checkpoint.

Guarantees: each event's version, time and checksum are verified before its book is shown; a market that does not verify is
taken out of Redis, told and counted, and never shown or written down again. Checkpoints and the group's offset commit in one
Kafka transaction, under a transactional id of the partition, so a process that lost it without noticing cannot write them.
Each book that REST had is compared with ours of that time: the outcome is published (after a crash perhaps twice, or not), a
mismatch told; neither changes anything.
After kill -9 the books are the last checkpoints plus the events after them. Redis holds no truth: it is written anew at start.

Scale it by starting more: at most one per partition has work.
"""
