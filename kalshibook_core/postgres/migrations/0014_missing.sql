-- What backfill looks for every minute: gaps of trades that nothing filled, markets without a definition, and those that closed
-- and are not settled.

CREATE INDEX gaps_unfilled ON gaps (start_us) WHERE channel = 'trade' AND end_us IS NOT NULL AND filled_us IS NULL;
CREATE INDEX markets_undefined ON markets (id) WHERE body IS NULL;
CREATE INDEX markets_unsettled ON markets (close_us) WHERE status IS DISTINCT FROM 'finalized';
