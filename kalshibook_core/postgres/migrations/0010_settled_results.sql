-- What a YES contract of a settled market paid, in 1/10,000 dollar: of the exchange's "determined" frame, or of its REST object. What
-- stands in the table already is read out of that object by its text, since json with \u0000 in it cannot be taken apart.

ALTER TABLE markets ADD COLUMN settlement_value smallint;
UPDATE markets SET settlement_value = 10000 * substring(body::text FROM '"settlement_value_dollars"\s*:\s*"([01]\.\d{1,4})"')::numeric
WHERE body::text ~ '"settlement_value_dollars"\s*:\s*"[01]\.\d{1,4}"';

-- How markets are asked for: those of an event, of a series, settled within a time; and events of a category.
CREATE INDEX markets_event ON markets (event_ticker);
CREATE INDEX markets_series ON markets (series_ticker) WHERE series_ticker IS NOT NULL;
CREATE INDEX markets_settled ON markets (settled_us) WHERE settled_us IS NOT NULL;
