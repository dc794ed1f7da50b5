"""When two times of a trade are one: REST tells microseconds, the stream milliseconds, and its first frames seconds."""


def one_time(first: str, second: str) -> str:
    """Return the SQL condition that two expressions of microseconds name one instant, as far as the coarser of them tells."""
    whole = f"{first} % 1000000 = 0 OR {second} % 1000000 = 0"
    return f"abs({first} - {second}) < CASE WHEN {whole} THEN 1000000 ELSE 1000 END"
