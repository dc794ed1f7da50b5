"""The only door to Kafka: topics, a batching producer, a consumer that tells its rebalances, bounded reads.

Promises: order within a partition is kept, nothing is written twice by a retry, no failure is swallowed, every buffer is bounded.
"""
