"""What a key looks like, its digest, and where a request carries it. Never in a query string: those end in logs."""

import hashlib
import re
import secrets
import string
from collections.abc import Iterable
from typing import Final

from services.gateway.errors import ApiError

_ALPHABET: Final = string.ascii_letters + string.digits
_KEY: Final = re.compile(r"kb_(?:live|demo)_[A-Za-z0-9]{32}", re.ASCII)


def mint(plan: str) -> str:
    """Return a new key; the only moment it exists in the clear on our side."""
    return f"kb_{'demo' if plan == 'demo' else 'live'}_" + "".join(secrets.choice(_ALPHABET) for _ in range(32))


def digest(key: str) -> bytes:
    """Return what is stored of a key."""
    return hashlib.sha256(key.encode()).digest()


def shown(key: str) -> str:
    """Return the part of a key that lists may show: enough to tell one's own keys apart, far too little to use."""
    return key[:12] + "…"


def of_request(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the key a request carries in `Authorization: Bearer` or `X-API-Key`; raise the 401 if there is none of ours.

    The error never repeats what was sent.
    """
    found = ""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            found = value[7:].decode("latin-1").strip()
            break
        if name == b"x-api-key":
            found = value.decode("latin-1").strip()
    if not found:
        message = "An API key is needed: send it as 'Authorization: Bearer <key>' or 'X-API-Key: <key>'."
        raise ApiError(401, "missing_key", message)
    if not _KEY.fullmatch(found):
        raise unknown()
    return found


def unknown() -> ApiError:
    """Return the 401 for a key that is not, or no longer, one of ours."""
    return ApiError(401, "unknown_key", "This API key is not known or was revoked.")
