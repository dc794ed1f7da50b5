"""Signatures are the exchange's, and a private key never shows."""

import base64

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from kalshibook_core.kalshi import signing

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PATH = "/trade-api/ws/v2"


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, encryption: serialization.KeySerializationEncryption) -> bytes:
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def test_signature_is_the_documented_one() -> None:
    """Checked against the primitive directly: PSS, MGF1 and hash SHA-256, 32 bytes of salt, over time + method + path."""
    signature = base64.b64decode(signing.sign(KEY, 1703123456789, "GET", PATH))
    pss = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
    KEY.public_key().verify(signature, b"1703123456789GET/trade-api/ws/v2", pss, hashes.SHA256())


def test_query_is_not_signed() -> None:
    signature = signing.sign(KEY, 1, "GET", "/trade-api/v2/markets?limit=5")
    assert signing.verify(KEY.public_key(), signature, 1, "GET", "/trade-api/v2/markets")


@pytest.mark.parametrize(("time_ms", "method", "path"), [(2, "GET", PATH), (1, "POST", PATH), (1, "GET", "/other")])
def test_another_request_does_not_verify(time_ms: int, method: str, path: str) -> None:
    assert not signing.verify(KEY.public_key(), signing.sign(KEY, 1, "GET", PATH), time_ms, method, path)


@pytest.mark.parametrize("signature", ["", "not base64!", "AAAA", "é"])
def test_malformed_signature_does_not_verify(signature: str) -> None:
    assert not signing.verify(KEY.public_key(), signature, 1, "GET", PATH)


def test_headers_and_repr() -> None:
    credentials = signing.Credentials("some-id", KEY)
    headers = credentials.headers(1, "GET", PATH)
    assert headers["KALSHI-ACCESS-KEY"] == "some-id" and headers["KALSHI-ACCESS-TIMESTAMP"] == "1"
    assert signing.verify(KEY.public_key(), headers["KALSHI-ACCESS-SIGNATURE"], "1", "GET", PATH)
    assert "RSAPrivateKey" not in repr(credentials)


def test_private_key_loads() -> None:
    loaded = signing.load_private_key(pem(KEY, serialization.NoEncryption()))
    assert loaded.private_numbers() == KEY.private_numbers()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "PEM private key"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "PEM private key"),
        (pem(KEY, serialization.BestAvailableEncryption(b"secret")), "passphrase"),
        (pem(ec.generate_private_key(ec.SECP256R1()), serialization.NoEncryption()), "RSA"),
    ],
)
def test_unusable_key_is_told_apart(text: bytes, says: str) -> None:
    with pytest.raises(signing.UnusableKey, match=says):
        signing.load_private_key(text)
