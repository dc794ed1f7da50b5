"""gateway: what customers talk to. REST and websocket over the recorded history and the live books, keys, metering.

Reads: Postgres (the persister's tables), Redis (the reconstructor's latest books), kalshi.book.v1 (live events, without a group).
Writes: kb.usage.v1 and, as consumer group kb-ledger of it, `usage_ledger`; `accounts` and `api_keys`; credit counters in Redis.

Guarantees
- A book is served only if its recomputed checksum equals the recorded one; the answer carries the proof, and says itself
  where it lies in a gap or later than what is recorded.
- A stream gives each market a snapshot and then every version after it, without a hole; a client too slow for it is cut.
- A billable call that was answered is in the ledger exactly once, through crash and retry; a refused or failed call is not.
- Every error has one form: {"error": {"code", "message", "details"}}.

Scale: stateless; run any number behind a balancer. Each copy reads the whole book topic for its streams and shares the ledger
group's partitions with the others.

Rooms (one folder a noun: keys, metering, usage, markets, history, live) never import each other; they meet in `app.py`
and `serve.py`. The modules beside this one are the vocabulary all rooms share.
"""
