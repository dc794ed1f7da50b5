"""What the services must agree on: the exchange's language, books, our events, and how a process lives.

Runs nothing by itself.
"""
