"""The recorded past: the book at an instant with its proof, and the events, trades and gaps it is made of."""
