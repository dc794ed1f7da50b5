-- How good the record is, and what the exchange's own books said of it. Only the persister writes these tables.

-- Effective time of the market's first book event: from here on its book is recorded. It outlives the events themselves.
ALTER TABLE markets ADD COLUMN recorded_us bigint;

UPDATE markets m SET recorded_us = (SELECT min(effective_us) FROM book_events WHERE market_id = m.id);

-- A book that REST had at some instant of [from_us, to_us], compared with what ours was (kalshi.audited.v1).
CREATE TABLE audits (
    to_us         bigint  NOT NULL,
    from_us       bigint  NOT NULL,
    judged_us     bigint  NOT NULL,    -- by our clock
    rest_checksum bigint  NOT NULL,
    checksum      bigint  NOT NULL,    -- of ours, and its version, when it was judged
    market_id     integer NOT NULL,
    version       integer NOT NULL,
    outcome       text    NOT NULL,    -- match, mismatch; unknown: ours was not known all the while
    PRIMARY KEY (market_id, to_us, from_us)
);

-- One market's hour, measured (kalshibook_core/postgres/coverage.py). What is learnt later is a further revision; the greatest
-- holds. Hours in which nothing was recorded have no row. Rows stay when the events they tell of have left for the archive.
CREATE TABLE coverage (
    hour_us              bigint   NOT NULL,
    changed_us           bigint   NOT NULL,   -- when this revision was made, by our clock
    recordable_us        bigint   NOT NULL,   -- microseconds of the hour, of the book's record: docs/quality.md
    covered_us           bigint   NOT NULL,
    trades_recordable_us bigint   NOT NULL,
    trades_covered_us    bigint   NOT NULL,
    latency_max_us       bigint   NOT NULL,
    market_id            integer  NOT NULL,
    events               integer  NOT NULL,   -- of the book
    trades               integer  NOT NULL,
    first_version        integer,
    last_version         integer,
    matched              integer  NOT NULL,   -- audits
    mismatched           integer  NOT NULL,
    unjudged             integer  NOT NULL,
    revision             smallint NOT NULL,
    latency              integer[] NOT NULL,  -- events by bucket: kalshibook_core.wire.coverage.BOUNDS_US
    gaps                 json     NOT NULL,   -- uncovered microseconds by cause
    trades_gaps          json     NOT NULL,
    PRIMARY KEY (market_id, hour_us, revision)
);
CREATE INDEX coverage_hour ON coverage (hour_us);

-- Hours up to hour_us are measured, or stand in coverage_due to be.
CREATE TABLE coverage_closed (
    hour_us   bigint PRIMARY KEY,
    closed_us bigint NOT NULL
);

-- What has rows that no revision knows.
CREATE TABLE coverage_due (
    hour_us   bigint  NOT NULL,
    market_id integer NOT NULL,
    PRIMARY KEY (hour_us, market_id)
);

-- What is to be said of a UTC day, over all markets; revisions as in coverage.
CREATE TABLE conditions (
    day_us           bigint   NOT NULL,
    changed_us       bigint   NOT NULL,
    uncovered_us     bigint   NOT NULL,   -- over all markets, of the hours in which something was recorded
    events           bigint   NOT NULL,
    trades           bigint   NOT NULL,
    markets          integer  NOT NULL,   -- of which something was recorded
    markets_with_gap integer  NOT NULL,
    matched          integer  NOT NULL,
    mismatched       integer  NOT NULL,
    revision         integer  NOT NULL,
    condition        text     NOT NULL,   -- available, degraded, missing
    PRIMARY KEY (day_us, revision)
);

CREATE TABLE conditions_due (
    day_us bigint PRIMARY KEY
);

ALTER TABLE audits ENABLE ROW LEVEL SECURITY;
ALTER TABLE coverage ENABLE ROW LEVEL SECURITY;
ALTER TABLE coverage_closed ENABLE ROW LEVEL SECURITY;
ALTER TABLE coverage_due ENABLE ROW LEVEL SECURITY;
ALTER TABLE conditions ENABLE ROW LEVEL SECURITY;
ALTER TABLE conditions_due ENABLE ROW LEVEL SECURITY;
