from __future__ import annotations

from sovereign_ai.gateway.cors import answer_headers, preflight_headers

PAGE = "https://chat.example.org"


def test_only_pages_that_are_allowed_are_answered() -> None:
    assert answer_headers([PAGE], None) == []
    assert answer_headers([PAGE], "https://evil.example.org") == []
    assert dict(answer_headers([PAGE], PAGE))[b"access-control-allow-origin"] == PAGE.encode()
    assert dict(answer_headers(["*"], "null"))[b"access-control-allow-origin"] == b"null"


def test_a_preflight_allows_the_headers_that_are_wanted() -> None:
    assert preflight_headers([PAGE], "https://evil.example.org", "x-stainless-os") == []
    allowed = dict(preflight_headers([PAGE], PAGE, "authorization, x-stainless-os"))
    assert allowed[b"access-control-allow-headers"] == b"authorization, x-stainless-os"
    assert b"authorization" in dict(preflight_headers([PAGE], PAGE, None))[b"access-control-allow-headers"]
