-- How good the record is. Only the persister writes these.

-- Effective time of the market's first book event: from here on its book is recorded. It outlives the events themselves.
ALTER TABLE markets ADD COLUMN recorded_us bigint;

UPDATE markets m SET recorded_us = (SELECT min(effective_us) FROM book_events WHERE market_id = m.id);
