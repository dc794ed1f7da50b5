"""A setting that is missing or makes no sense is named."""

import pytest

from kalshibook_core.runtime.settings import ConfigurationError
from services.persister.archive.settings import from_env

BROKERS = {"KB_KAFKA_BROKERS": "k:1"}


def test_where_the_archive_is_must_be_said() -> None:
    with pytest.raises(ConfigurationError, match="KB_ARCHIVE is not set"):
        from_env(BROKERS)
    with pytest.raises(ConfigurationError, match="KB_ARCHIVE: 'gs://x' is neither a folder nor s3"):
        from_env(BROKERS | {"KB_ARCHIVE": "gs://x"})
    with pytest.raises(ConfigurationError, match="KB_ARCHIVE_BYTES"):
        from_env(BROKERS | {"KB_ARCHIVE": "a", "KB_ARCHIVE_BYTES": "1"})


def test_what_is_not_said_has_a_bound() -> None:
    settings = from_env(BROKERS | {"KB_ARCHIVE": "a"})
    assert (settings.rows, settings.seconds, settings.bytes) == (250_000, 900, 1 << 27)
