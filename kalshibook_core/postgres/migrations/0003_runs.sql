-- Deltas are stored as runs: up to 64 of one market in a row (kalshibook_core/postgres/runs.py has the form of `packed`), a
-- fifth of what a row each took. What stands in the tables already is taken over, each event as a row of its own.
--
-- Takes about five seconds a million events, and until it has committed 160 bytes of disk for each. Nobody can read or write
-- book_events meanwhile; a persister of the release before ends at its next batch and has lost nothing.

ALTER TABLE book_events RENAME TO book_events_before;

DO $$
DECLARE
    partition record;
BEGIN
    FOR partition IN SELECT c.relname AS name FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
                     WHERE inhparent = 'book_events_before'::regclass LOOP
        EXECUTE format('ALTER TABLE %I RENAME TO %I', partition.name, replace(partition.name, 'events_', 'events_before_'));
    END LOOP;
END $$;

-- A row is one event, or a run of deltas with versions in a row and effective times within one UTC day; effective_us and version
-- are its first event's. The rows of one market, by version, are its history: 1, 2, 3, … without a hole.
CREATE TABLE book_events (
    effective_us  bigint   NOT NULL,
    market_id     integer  NOT NULL,
    version       integer  NOT NULL,
    events        smallint NOT NULL,   -- how many: version … version + events - 1
    kind          smallint NOT NULL,   -- 1 snapshot, 2 deltas, 3 gap (its start and cause: gaps, by opened_version)
    packed        bytea    NOT NULL,   -- what they say, sealed: kalshibook_core.postgres.runs
    PRIMARY KEY (market_id, effective_us, version)
) PARTITION BY RANGE (effective_us);
CREATE TABLE book_events_default PARTITION OF book_events DEFAULT;

DO $$
DECLARE
    day bigint;
BEGIN
    FOR day IN SELECT DISTINCT effective_us / 86400000000 FROM book_events_before
               WHERE effective_us >= 0 AND effective_us < 253399622400000000 LOOP
        EXECUTE format('CREATE TABLE book_events_%s PARTITION OF book_events FOR VALUES FROM (%s) TO (%s)',
            to_char(to_timestamp(day * 86400) AT TIME ZONE 'UTC', 'YYYYMMDD'), day * 86400000000, (day + 1) * 86400000000);
    END LOOP;
END $$;

INSERT INTO book_events (effective_us, market_id, version, events, kind, packed)
SELECT effective_us, market_id, version, 1, kind,
       substring(sha256(int4send(market_id) || int4send(version) || int8send(effective_us) || int2send(1::smallint)
                        || int2send(kind) || body) FOR 4) || body
FROM (
    SELECT effective_us, market_id, version, kind,
           int8send(checksum) || CASE kind
               WHEN 2 THEN '\x0444'::bytea || int8send(effective_us - exchange_us) || int8send(recv_us - effective_us)
                           || int2send((price - 32768 * side)::smallint) || int8send(delta)
               ELSE int8send(recv_us) || levels
           END AS body
    FROM book_events_before
) events;

DROP TABLE book_events_before;
