"""Every instant has exactly one partition, and neighbouring ones touch."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from kalshibook_core.postgres import partitions

INSTANTS = st.integers(0, 4_102_444_800_000_000)  # 1970 to 2100


@given(st.sampled_from(sorted(partitions.TABLES)), INSTANTS)
def test_an_instant_lies_inside_its_partition_and_the_next_one_begins_at_its_end(table, at_us):
    found = partitions.containing(table, at_us)
    assert found is not None and found.start_us <= at_us < found.end_us
    assert partitions.containing(table, found.start_us) == partitions.containing(table, found.end_us - 1) == found
    after = partitions.containing(table, found.end_us)
    assert after is not None and after.start_us == found.end_us and after.name > found.name
    start = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=found.start_us)
    assert found.name == f"{table}_{start:%Y%m%d}" if partitions.TABLES[table] == "day" else f"{table}_{start:%Y%m}"


def test_an_instant_without_a_date_has_none():
    assert partitions.containing("tickers", -1) is None
    assert partitions.containing("book_events", 2**63 - 1) is None
