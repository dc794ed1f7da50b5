"""What is missing or wrong is named, and the key never shows."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from kalshibook_core.runtime.settings import ConfigurationError
from services.ingest import settings


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    path = tmp_path / "key.pem"
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(*pem))
    return {"KB_KAFKA_BROKERS": "127.0.0.1:9092", "KALSHI_API_KEY_ID": "some-id", "KALSHI_PRIVATE_KEY_PATH": str(path)}


def test_defaults_are_the_demo_exchange(env: dict[str, str]) -> None:
    read = settings.from_env(env)
    assert (read.ws_url, read.rest_url) == settings.HOSTS["demo"]
    assert (read.gatherer, read.connections, read.subscriptions_per_connection, read.statuses) == (
        "g1",
        150,
        7500,
        ("open", "unopened", "paused", "closed"),
    )
    assert settings.from_env({**env, "KB_KALSHI_ENV": "prod"}).ws_url == settings.HOSTS["prod"][0]


def test_addresses_win_over_the_environment_s_name(env: dict[str, str]) -> None:
    read = settings.from_env({**env, "KB_KALSHI_WS_URL": "ws://127.0.0.1:1/x", "KB_KALSHI_REST_URL": "http://127.0.0.1:1/v2/"})
    assert (read.ws_url, read.rest_url) == ("ws://127.0.0.1:1/x", "http://127.0.0.1:1/v2")


@pytest.mark.parametrize("name", ["KB_KAFKA_BROKERS", "KALSHI_API_KEY_ID", "KALSHI_PRIVATE_KEY_PATH"])
def test_a_missing_setting_is_named(env: dict[str, str], name: str) -> None:
    del env[name]
    with pytest.raises(ConfigurationError, match=f"{name} is not set"):
        settings.from_env(env)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KB_KALSHI_ENV", "live"),
        ("KB_AUDITS_PER_MINUTE", "-1"),
        ("KB_RENEW_SECONDS", "-1"),
        ("KB_KALSHI_WS_URL", "http://127.0.0.1"),
        ("KB_KALSHI_REST_URL", "127.0.0.1"),
        ("KB_CONNECTIONS", "0"),
        ("KB_MARKET_STATUSES", "open,ajar"),
        ("KALSHI_PRIVATE_KEY_PATH", "/nowhere"),
    ],
)
def test_a_wrong_setting_is_named(env: dict[str, str], name: str, value: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        settings.from_env({**env, name: value})


def test_a_file_that_is_no_key_is_told_without_showing_it(env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("very secret")
    with pytest.raises(ConfigurationError, match="KALSHI_PRIVATE_KEY_PATH") as refused:
        settings.from_env({**env, "KALSHI_PRIVATE_KEY_PATH": str(tmp_path / "bad.pem")})
    assert "secret" not in str(refused.value)
    assert "PRIVATE" not in repr(settings.from_env(env)).replace("KALSHI_PRIVATE_KEY_PATH", "")
