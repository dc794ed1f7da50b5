"""The API keys of the simulated exchange: an id for each client, by which the exchange tells them apart, and one RSA key pair for
all, whose private half lies in a file only its owner can read.
"""

from dataclasses import dataclass, field
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from kalshibook_core.kalshi import signing

KEY_IDS = tuple(f"5eed0000-0000-4000-8000-{number:012d}" for number in range(1, 6))
"""Client 1 signs with the first, and so on."""


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What clients sign with, and what their signatures are checked against."""

    key_ids: tuple[str, ...]
    private_key_path: Path
    public_key: rsa.RSAPublicKey = field(repr=False)


def open_key(folder: Path) -> ApiKey:
    """Return the key in this folder, making a 2048-bit one (mode 0600) where there is none yet."""
    path = folder / "simulator.pem"
    if path.exists():
        return ApiKey(KEY_IDS, path, signing.load_private_key(path.read_bytes()).public_key())
    folder.mkdir(parents=True, exist_ok=True)
    private = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
    pem = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    # Written beside and renamed, so that a simulator started at the same moment never reads half a key.
    fresh = path.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_bytes(pem)
    fresh.rename(path)
    return ApiKey(KEY_IDS, path, private.public_key())
