-- A gap may end where it began, and the next one begin there: both are rows now. `opened_version` tells them apart: of a book's
-- gap the version of the event that opened it, of a trades' gap 0, 1, … in their order.
--
-- A persister of the release before ends at its next gap and has lost nothing.

ALTER TABLE gaps DROP CONSTRAINT gaps_pkey, ADD PRIMARY KEY (market_id, channel, start_us, opened_version);
