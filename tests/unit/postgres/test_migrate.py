"""Which migrations run: each once, by number; never over a database that contradicts the files."""

import pytest

from kalshibook_core.postgres import migrate
from kalshibook_core.postgres.migrate import Migration, MigrationError

ONE, TWO, LATER = (
    Migration(1, "0001_one", "SELECT 1"),
    Migration(2, "0002_two", "SELECT 2"),
    Migration(100, "0100_room", "SELECT 3"),
)


def applied(*migrations: Migration) -> dict[int, tuple[str, str]]:
    return {m.number: (m.name, m.sha256) for m in migrations}


def test_what_is_not_applied_runs_in_order_even_below_what_is():
    assert migrate.plan([ONE, TWO, LATER], {}) == [ONE, TWO, LATER]
    assert migrate.plan([ONE, TWO, LATER], applied(ONE, LATER)) == [TWO]
    assert migrate.plan([ONE], applied(ONE)) == []


def test_an_altered_file_is_named():
    with pytest.raises(MigrationError, match="0002_two was altered"):
        migrate.plan([ONE, Migration(2, "0002_two", "SELECT 22")], applied(ONE, TWO))


def test_a_database_newer_than_the_code_is_named():
    with pytest.raises(MigrationError, match=r"0002_two .* not in this release"):
        migrate.plan([ONE], applied(ONE, TWO))


def test_two_files_of_one_number_are_refused():
    with pytest.raises(MigrationError, match="0001_one, 0001_other"):
        migrate.plan([ONE, Migration(1, "0001_other", "SELECT 9")], {})


def test_the_shipped_ones_have_numbers_of_their_own():
    shipped = migrate.available()
    assert shipped[0].name == "0001_market_history"
    assert migrate.plan(shipped, {}) == shipped
