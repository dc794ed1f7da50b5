"""Request signatures: RSA-PSS over SHA-256, MGF1 over SHA-256, salt of 32 bytes (Kalshi docs, "API keys").

What is signed is `{timestamp_ms}{METHOD}{path}`, the path from the host's root and without its query. The exchange refuses a
timestamp more than some seconds off its own clock, so every attempt wants a fresh signature.
"""

import base64
import binascii
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

KEY: Final = "KALSHI-ACCESS-KEY"
SIGNATURE: Final = "KALSHI-ACCESS-SIGNATURE"
TIMESTAMP: Final = "KALSHI-ACCESS-TIMESTAMP"

_SHA256: Final = hashes.SHA256()
_PSS: Final = padding.PSS(mgf=padding.MGF1(_SHA256), salt_length=padding.PSS.DIGEST_LENGTH)


class UnusableKey(ValueError):
    """The text is not a private key that requests can be signed with."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """An API key: its id, which may be shown, and its private key, which never is."""

    key_id: str
    private_key: rsa.RSAPrivateKey = field(repr=False)

    def headers(self, timestamp_ms: int, method: str, path: str) -> dict[str, str]:
        """Return the three headers of a signed request; `path` may carry a query, which is not signed."""
        return {
            KEY: self.key_id,
            SIGNATURE: sign(self.private_key, timestamp_ms, method, path),
            TIMESTAMP: str(timestamp_ms),
        }


def load_private_key(pem: bytes) -> rsa.RSAPrivateKey:
    """Return the RSA key in a PEM text; raise UnusableKey saying what is wrong with it, never what is in it."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        raise UnusableKey("the private key is encrypted: store it without a passphrase, readable by this user only") from None
    except (ValueError, UnsupportedAlgorithm):
        raise UnusableKey("not a PEM private key: use the file that Kalshi offered when the API key was made") from None
    if not isinstance(key, rsa.RSAPrivateKey):
        raise UnusableKey("not an RSA private key: Kalshi signs with RSA-PSS only")
    return key


def sign(private_key: rsa.RSAPrivateKey, timestamp_ms: int, method: str, path: str) -> str:
    """Return the base64 signature of one request."""
    return base64.b64encode(private_key.sign(_signed(str(timestamp_ms), method, path), _PSS, _SHA256)).decode()


def verify(public_key: rsa.RSAPublicKey, signature: str, timestamp_ms: str | int, method: str, path: str) -> bool:
    """Return whether the signature is this key's for this request; a malformed one is simply not."""
    try:
        public_key.verify(base64.b64decode(signature, validate=True), _signed(str(timestamp_ms), method, path), _PSS, _SHA256)
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def _signed(timestamp_ms: str, method: str, path: str) -> bytes:
    return f"{timestamp_ms}{method}{path.partition('?')[0]}".encode()
