-- Whose offsets consumer_offsets has: another Kafka's mean other records, and going on with them would pass over some in silence.
-- One row, written by the persister when it first starts.

CREATE TABLE consumed_log (
    log text PRIMARY KEY   -- id of the cluster / prefix of its topics
);
ALTER TABLE consumed_log ENABLE ROW LEVEL SECURITY;
