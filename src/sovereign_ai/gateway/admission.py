"""Who may ask for what: API keys, as digests. Pure: the time is an argument.

A key is 256 random bits, so its digest needs neither salt nor stretching: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Literal

import msgspec

from sovereign_ai.errors import Forbidden, Unauthenticated

_CODE = "invalid_api_key"

Scope = Literal["inference", "metrics", "admin"]
"""What a key is good for: /v1; /metrics where that asks for a key; `admin` is kept for later."""

Priority = Literal["interactive", "batch"]
"""Interactive requests leave a model's queue before any batch request does."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What may be asked for, of a key or of a model; None: any amount. Days and months are UTC's."""

    concurrency: int | None = None
    """Requests at the same time."""
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Of prompts and answers together, as all tokens here."""
    tokens_per_day: int | None = None
    tokens_per_month: int | None = None


NO_LIMITS = Limits()


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
    previous_digest: str | None = None
    """Of the secret that the last rotation replaced; it works until `previous_until`."""
    previous_until: float = 0.0
    scopes: tuple[Scope, ...] = ("inference",)
    models: tuple[str, ...] = ()
    """The models that may be asked; (): all."""
    priority: Priority = "interactive"
    limits: Limits = NO_LIMITS

    def allows(self, model: str) -> bool:
        return not self.models or model in self.models


def digest(secret: str) -> str:
    """SHA-256 of the key, as 64 hex digits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def bearer(authorization: str | None) -> str:
    """The key in an Authorization header. Raises Unauthenticated when there is none."""
    scheme, _, secret = (authorization or "").strip().partition(" ")
    if scheme.lower() != "bearer" or not secret.strip():
        raise Unauthenticated("No API key: send the header `Authorization: Bearer sk-…`", code=_CODE)
    return secret.strip()


def admit(record: KeyRecord | None, presented: str, now: float, *, scope: Scope = "inference") -> KeyRecord:
    """The record, if the key with digest `presented` may be used at `now` for what `scope` covers. Raises
    Unauthenticated or Forbidden.

    Only somebody who holds the key learns that it was revoked, replaced or has expired.
    """
    if record is None or not (_is(record.digest, presented) or _is(record.previous_digest, presented)):
        raise Unauthenticated("Incorrect API key", code=_CODE)
    if record.revoked is not None:
        raise Unauthenticated("This API key has been revoked", code=_CODE)
    if record.expires is not None and now >= record.expires:
        raise Unauthenticated("This API key has expired", code=_CODE)
    if not _is(record.digest, presented) and now >= record.previous_until:
        raise Unauthenticated("This API key has been replaced by a new one", code=_CODE)
    if scope not in record.scopes:
        raise Forbidden(f"This API key lacks the scope `{scope}`", code="missing_scope")
    return record


def check_model(record: KeyRecord, model: str) -> None:
    """Raises Forbidden where the key may not ask `model`."""
    if not record.allows(model):
        raise Forbidden(
            f"This API key may not use the model `{model[:200]}`", param="model", code="model_not_allowed"
        )


def _is(known: str | None, presented: str) -> bool:
    return known is not None and hmac.compare_digest(known, presented)
