"""A setting that is missing or wrong is named in the error; a right one arrives in its type."""

from pathlib import Path

import pytest

from kalshibook_core.kafka.cluster import Cluster
from kalshibook_core.runtime import settings
from kalshibook_core.runtime.settings import ConfigurationError


@pytest.mark.parametrize("env", [{}, {"KB_X": ""}, {"KB_X": "  "}])
def test_a_required_setting_that_is_not_set_is_named(env: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError, match=r"^KB_X is not set$"):
        settings.required(env, "KB_X")


def test_what_is_set_is_read_without_its_blanks() -> None:
    assert settings.required({"KB_X": " a "}, "KB_X") == "a"
    assert settings.text({"KB_X": ""}, "KB_X", "d") == "d"
    assert settings.integer({"KB_X": "-3"}, "KB_X", 1) == -3
    assert settings.seconds({"KB_X": "0.5"}, "KB_X", 1) == 0.5
    assert settings.one_of({"KB_X": "b"}, "KB_X", ("a", "b"), "a") == "b"
    assert (settings.integer({}, "KB_X", 7), settings.seconds({}, "KB_X", 2)) == (7, 2)


@pytest.mark.parametrize("value", ["1.5", "x", "0", "11"])
def test_a_number_that_makes_no_sense_is_refused(value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^KB_X is "):
        settings.integer({"KB_X": value}, "KB_X", 1, minimum=1, maximum=10)


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "soon"])
def test_a_duration_that_makes_no_sense_is_refused(value: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^KB_X is "):
        settings.seconds({"KB_X": value}, "KB_X", 1)


def test_a_word_that_is_none_of_those_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="must be one of a, b"):
        settings.one_of({"KB_X": "c"}, "KB_X", ("a", "b"), "a")


def test_a_file_must_be_there(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    with pytest.raises(ConfigurationError, match="where there is no file"):
        settings.file({"KB_X": str(key)}, "KB_X")
    key.touch()
    assert settings.file({"KB_X": str(key)}, "KB_X") == key


def test_the_cluster() -> None:
    env = {"KB_KAFKA_BROKERS": "a:1,b:2", "KB_TOPIC_PREFIX": "x.", "KB_KAFKA_PARTITIONS": "8"}
    assert settings.cluster(env) == Cluster("a:1,b:2", "x.", 8)
    with pytest.raises(ConfigurationError, match="KB_KAFKA_BROKERS is not set"):
        settings.cluster({})
    assert settings.cluster(env | {"KB_INSTANCE": "kb-1"}) == Cluster("a:1,b:2", "x.", 8, "kb-1")
    with pytest.raises(ConfigurationError, match="KB_INSTANCE is 'a b'"):
        settings.cluster(env | {"KB_INSTANCE": "a b"})
