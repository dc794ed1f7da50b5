"""What can go wrong with Kafka, named after what went wrong."""


class KafkaFault(Exception):
    """Any failure of this package."""


class ProduceFailed(KafkaFault):
    """A record given to a producer was not acknowledged. The producer is of no more use: stop, and start again."""


class Fenced(ProduceFailed):
    """Another producer took over this transactional id; nothing of the open transaction was kept."""


class TopicMismatch(KafkaFault):
    """A topic exists with another partition count than ours, so keys would not find their partition."""


class Displaced(KafkaFault):
    """A process of the same instance name joined our group in our place, or we were silent for longer than the group waits."""


class OffsetLost(KafkaFault):
    """The offset to read from is not in the log any more (retention) or not yet (another log): records would be missed.

    `records` is how many, 0 where nobody could say.
    """

    def __init__(self, why: str, records: int = 0) -> None:
        """Say why."""
        super().__init__(why)
        self.records = records


class OffsetBehind(OffsetLost):
    """Retention has taken records that were not read yet."""


class OffsetAhead(OffsetLost):
    """The log ends before the offset to read from: the brokers lost records that were read, or this is another log."""
