"""The reconstructor's settings say what is wrong with them, and keep the password to themselves."""

import pytest

from kalshibook_core.runtime.settings import ConfigurationError
from services.reconstructor import settings
from services.reconstructor.checkpointing import Policy

ENV = {"KB_KAFKA_BROKERS": "127.0.0.1:9092", "KB_REDIS_URL": "redis://:secret@127.0.0.1/0"}


def test_defaults_are_the_promised_ones():
    read = settings.from_env(ENV)
    assert read.policy == Policy(events=1_000, interval_us=300_000_000)
    assert "secret" not in repr(read)


@pytest.mark.parametrize("name", list(ENV))
def test_what_is_missing_is_named(name):
    with pytest.raises(ConfigurationError, match=name):
        settings.from_env({key: value for key, value in ENV.items() if key != name})


@pytest.mark.parametrize("name", ["KB_CHECKPOINT_EVENTS", "KB_CHECKPOINT_SECONDS"])
def test_what_makes_no_sense_is_named(name):
    with pytest.raises(ConfigurationError, match=name):
        settings.from_env({**ENV, name: "0"})
