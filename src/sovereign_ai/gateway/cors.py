"""Cross-origin requests: which pages in a browser may call the gateway. Pure.

https://fetch.spec.whatwg.org/#http-cors-protocol. Credentials in the browser's sense (cookies) are not
allowed: a key travels in a header that the page itself sets.
"""

from __future__ import annotations

from collections.abc import Collection

Headers = list[tuple[bytes, bytes]]

ANY = "*"
PREFLIGHT_AGE_S = b"600"
"""How long a browser may remember what it asked; ten minutes, as Chromium caps it at two hours anyway."""

_EXPOSED = (
    b"retry-after, x-should-retry, x-ratelimit-limit-requests, x-ratelimit-remaining-requests, "
    b"x-ratelimit-reset-requests, x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, "
    b"x-ratelimit-reset-tokens, x-sovereign-fallback"
)


def answer_headers(allowed: Collection[str], origin: str | None) -> Headers:
    """What every answer to a page of `origin` carries; [] where it is not allowed or no page asks."""
    if origin is None or not (origin in allowed or ANY in allowed):
        return []
    return [
        (b"access-control-allow-origin", origin.encode("latin-1")),
        (b"access-control-expose-headers", _EXPOSED),
        (b"vary", b"origin"),
    ]


def preflight_headers(allowed: Collection[str], origin: str | None, wanted: str | None) -> Headers:
    """The answer to the question before a request with the header names `wanted`. [] refuses."""
    headers = answer_headers(allowed, origin)
    if not headers:
        return []
    names = (wanted or "authorization, content-type, x-api-key, anthropic-version").encode("latin-1")
    return [
        *headers,
        (b"access-control-allow-methods", b"GET, POST, DELETE"),
        (b"access-control-allow-headers", names),
        (b"access-control-max-age", PREFLIGHT_AGE_S),
    ]
