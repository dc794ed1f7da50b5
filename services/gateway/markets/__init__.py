"""Which markets are recorded, and what the exchange says of them."""
