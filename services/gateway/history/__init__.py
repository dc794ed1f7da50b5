"""The recorded past: the book at an instant with its proof, many instants, what they show, and the events they are made of."""
