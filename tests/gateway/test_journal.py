from __future__ import annotations

import json

import pytest

from sovereign_ai.gateway.journal import Journal, RequestRecord


def test_a_request_is_one_line() -> None:
    lines: list[bytes] = []
    record = RequestRecord(
        method="POST", path="/v1/" + "x" * 500, started=1.0, status=200, model="m", key="key-1"
    )
    Journal(lines.append, lambda: 5.12345).request(record, 0.25)
    assert lines[0].count(b"\n") == 1
    line = json.loads(lines[0])
    assert len(line.pop("path")) == 200
    assert line == {
        "time": 5.123,
        "event": "request",
        "method": "POST",
        "status": 200,
        "model": "m",
        "key": "key-1",
        "duration_s": 0.25,
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "error": None,
    }


def test_a_fault_tells_where_but_not_what_the_client_sent() -> None:
    lines: list[bytes] = []
    with pytest.raises(ValueError, match="invalid literal") as caught:
        int("the secret prompt")
    Journal(lines.append, lambda: 0.0).fault(caught.value)
    line = json.loads(lines[0])
    assert line["error"] == "ValueError"
    assert "test_journal" in line["traceback"]
    assert "invalid literal" not in line["traceback"]
