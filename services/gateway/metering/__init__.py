"""What a call costs, taken once: credits in Redis, one usage event in Kafka, one row in the ledger.

    1 one Lua call takes the credits and keeps the usage event in Redis ("pending"), atomically
    2 the event is queued for Kafka, in memory
    3 the answer goes out
    4 Kafka has acknowledged the event; it is deleted from pending
    5 a consumer group writes the ledger and commits its offsets after

A crash after 1, 2 or 3 leaves the event pending, and the next sweep of any gateway publishes it; after 4 it is in Kafka. Its id
is the ledger's primary key, so publishing or writing it twice changes nothing. So whatever was answered is in the ledger
once; a call whose crash fell between 1 and 3 is billed although its caller saw the connection break.

When Redis is away calls are served and step 2 goes on without step 1: nothing is served unmetered, but allowances are not
enforced, a crash in those seconds can lose what Kafka had not acknowledged, and both are counted and told. When Kafka is away the
queue takes `outbox.MAX_WAITING` calls; past it billable calls get a 503 rather than an unmetered answer.
"""
