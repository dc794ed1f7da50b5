"""The one API key of the simulated exchange: an id, and an RSA key pair whose private half lies in a file only its owner can
read.
"""

from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from kalshibook_core.kalshi import signing

KEY_ID = "5eed0000-0000-4000-8000-000000000001"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What a client signs with, and what its signature is checked against."""

    key_id: str
    private_key_path: Path
    public_key: rsa.RSAPublicKey = field(repr=False)


def open_key(folder: Path) -> ApiKey:
    """Return the key in this folder, making a 2048-bit one (mode 0600) where there is none yet."""
    path = folder / "simulator.pem"
    if path.exists():
        return ApiKey(KEY_ID, path, signing.load_private_key(path.read_bytes()).public_key())
    folder.mkdir(parents=True, exist_ok=True)
    private = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
    pem = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    # Written beside and renamed, so that a simulator started at the same moment never reads half a key.
    fresh = path.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_bytes(pem)
    fresh.rename(path)
    return ApiKey(KEY_ID, path, private.public_key())
