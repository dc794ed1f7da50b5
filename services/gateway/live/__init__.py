"""The present: the latest book of each market, the book events as they come, and the streams made of both."""
