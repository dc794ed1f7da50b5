-- When a market's end was first heard, by the exchange's clock (lifecycle.clock_us of the first word that says so): a gap that nothing
-- ended is measured up to then. What has ended already is read out of lifecycle where it matters, by its index: markets in an open
-- gap, and those of the last week, of which a gap may still be told. Of others it is filled in when they are heard of again.

ALTER TABLE markets ADD COLUMN ended_us bigint;

UPDATE markets m SET ended_us = (
    SELECT clock_us FROM lifecycle l WHERE l.market_id = m.id
      AND (event_type IN ('determined', 'disputed', 'amended', 'settled', 'finalized') OR event_type = 'market'
           AND body::text ~ '"status"\s*:\s*"(determined|disputed|amended|settled|finalized)"')
    ORDER BY clock_us LIMIT 1)
WHERE status IN ('determined', 'disputed', 'amended', 'settled', 'finalized')
  AND (updated_us > (SELECT max(updated_us) FROM markets) - 604800000000
       OR id IN (SELECT market_id FROM gaps WHERE end_us IS NULL));

-- What was measured, and said of days, while such a gap had no end is measured and judged again.
INSERT INTO coverage_due (market_id, hour_us)
SELECT DISTINCT c.market_id, c.hour_us FROM coverage c JOIN markets m ON m.id = c.market_id
WHERE c.hour_us + 3600000000 > m.ended_us AND m.id IN (SELECT market_id FROM gaps WHERE end_us IS NULL)
ON CONFLICT DO NOTHING;
INSERT INTO conditions_due
SELECT DISTINCT day_us FROM conditions
WHERE day_us + 86400000000 > (SELECT min(ended_us) FROM markets WHERE id IN (SELECT market_id FROM gaps WHERE end_us IS NULL))
ON CONFLICT DO NOTHING;
