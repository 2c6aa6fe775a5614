from __future__ import annotations

import json

import pytest

from sovereign_ai.gateway.journal import Journal, RequestRecord


def test_a_request_is_one_line() -> None:
    lines: list[bytes] = []
    record = RequestRecord(
        method="POST",
        path="/v1/" + "x" * 500,
        started=1.0,
        status=200,
        model="m",
        asked="n",
        key="key-1",
        endpoint="up-0",
        first_token=1.125,
        queue_s=0.5,
        retries=1,
        continuations=2,
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
        "asked": "n",
        "key": "key-1",
        "endpoint": "up-0",
        "duration_s": 0.25,
        "queue_s": 0.5,
        "ttft_s": 0.125,
        "prompt_tokens": 0,
        "completion_tokens": 0,
        "retries": 1,
        "continuations": 2,
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


def test_what_no_engine_read_is_not_billed() -> None:
    record = RequestRecord(method="POST", path="/", started=0.0, prompt_tokens=5)
    assert record.billed_tokens == 0
    record.answered, record.completion_tokens = True, 2
    assert (record.billed_prompt_tokens, record.billed_tokens) == (5, 7)
    assert record.ttft_s is None


def test_content_is_written_as_it_was() -> None:
    lines: list[bytes] = []
    record = RequestRecord(method="POST", path="/", started=0.0, model="m", key="k")
    Journal(lines.append, lambda: 1.0).content(record, b'{"a": 1}', b"data: x\xff")
    assert json.loads(lines[0]) == {
        "time": 1.0,
        "event": "content",
        "model": "m",
        "key": "k",
        "request": '{"a": 1}',
        "answer": "data: x\ufffd",
    }
