"""How good the record is: of one market in a span, by hour and day, and of all markets by day."""
