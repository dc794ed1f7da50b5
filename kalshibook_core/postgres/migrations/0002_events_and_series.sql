-- What markets belong to: a market has an event (markets.event_ticker), an event a series. Only the persister writes these
-- tables; each row is the last definition read by REST, and lifecycle has all of them.

CREATE TABLE events (
    updated_us    bigint NOT NULL,     -- recv_us of the definition
    ticker        text   PRIMARY KEY,
    series_ticker text,
    title         text,
    category      text,
    body          json   NOT NULL      -- as sent
);
CREATE INDEX events_series ON events (series_ticker);

CREATE TABLE series (
    updated_us    bigint NOT NULL,
    ticker        text   PRIMARY KEY,
    title         text,
    category      text,
    body          json   NOT NULL
);
