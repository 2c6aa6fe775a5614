"""Who may ask: API keys, as digests. Pure: the time is an argument.

A key is 256 random bits, so its digest needs neither salt nor stretching: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac

import msgspec

from sovereign_ai.errors import Unauthenticated

_CODE = "invalid_api_key"


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the ledger keeps of a key: never the key itself. Times in unix seconds."""

    id: str
    name: str
    prefix: str
    """What people are shown of the key: `sk-…` and its last four characters."""
    digest: str
    created: float
    expires: float | None = None
    revoked: float | None = None


def digest(secret: str) -> str:
    """SHA-256 of the key, as 64 hex digits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def bearer(authorization: str | None) -> str:
    """The key in an Authorization header. Raises Unauthenticated when there is none."""
    scheme, _, secret = (authorization or "").strip().partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise Unauthenticated("No API key: send the header `Authorization: Bearer sk-…`", code=_CODE)
    return secret.strip()


def admit(record: KeyRecord | None, presented: str, now: float) -> KeyRecord:
    """The record, if the key with digest `presented` may be used at `now`. Raises Unauthenticated.

    Only somebody who holds the key learns that it was revoked or has expired.
    """
    if record is None or not hmac.compare_digest(record.digest, presented):
        raise Unauthenticated("Incorrect API key", code=_CODE)
    if record.revoked is not None:
        raise Unauthenticated("This API key has been revoked", code=_CODE)
    if record.expires is not None and now >= record.expires:
        raise Unauthenticated("This API key has expired", code=_CODE)
    return record
