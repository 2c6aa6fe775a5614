from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.errors import InvalidRequest, UpstreamFailed
from sovereign_ai.gateway.wire import responses
from sovereign_ai.gateway.wire.responses import ChatFormat, CompletionFormat, Format, Head, Usage
from sovereign_ai.spec import Route

HEAD = Head("chatcmpl-1", 7, 'odd "" name')
FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=8)


def event(data: bytes) -> Any:
    assert data.startswith(b"data: ")
    assert data.endswith(b"\n\n")
    return json.loads(data[6:])


def test_chat_chunks() -> None:
    chat = ChatFormat(HEAD, include_usage=False)
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": 'odd "" name'}

    def chunk(delta: dict[str, str], reason: str | None) -> Any:
        return {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}

    assert event(chat.first()) == chunk({"role": "assistant", "content": ""}, None)
    assert event(chat.text("hi")) == chunk({"content": "hi"}, None)
    assert event(chat.last("stop")) == chunk({}, "stop")


def test_with_usage_every_chunk_has_the_field() -> None:
    chat = ChatFormat(HEAD, include_usage=True)
    assert [event(data)["usage"] for data in (chat.first(), chat.text("x"), chat.last("stop"))] == [None] * 3
    last = event(chat.usage(Usage(3, 4)))
    assert last["choices"] == []
    assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_completion_chunks() -> None:
    completion = CompletionFormat(HEAD, include_usage=False)
    assert completion.first() == b""
    assert event(completion.text("hi"))["object"] == "text_completion"
    assert event(completion.text("hi"))["choices"] == [
        {"index": 0, "text": "hi", "logprobs": None, "finish_reason": None}
    ]
    assert event(completion.last("length"))["choices"][0] == {
        "index": 0, "text": "", "logprobs": None, "finish_reason": "length"
    }  # fmt: skip


@given(st.text())
def test_any_text_comes_back_from_a_chunk(text: str) -> None:
    chat, completion = ChatFormat(HEAD, include_usage=True), CompletionFormat(HEAD, include_usage=True)
    assert event(chat.text(text))["choices"][0]["delta"]["content"] == text
    assert event(completion.text(text))["choices"][0]["text"] == text


@pytest.mark.parametrize(
    ("kind", "object_", "content"),
    [
        (ChatFormat, "chat.completion", {"message": {"role": "assistant", "content": "hi", "refusal": None}}),
        (CompletionFormat, "text_completion", {"text": "hi"}),
    ],
)
def test_whole_answers(kind: type[Format], object_: str, content: dict[str, Any]) -> None:
    body = json.loads(kind(HEAD, include_usage=False).body("hi", "stop", Usage(1, 2)))
    assert body == {
        "id": "chatcmpl-1",
        "object": object_,
        "created": 7,
        "model": 'odd "" name',
        "choices": [{"index": 0, **content, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }


@given(FLOATS)
def test_base64_embeddings_hold_little_endian_float32(values: list[float]) -> None:
    row = struct.pack(f"<{len(values)}f", *values)
    body = json.loads(responses.embeddings_body([row], "base64", "m", 5))
    decoded = base64.b64decode(body["data"][0]["embedding"])
    assert struct.unpack(f"<{len(values)}f", decoded) == tuple(values)


@given(FLOATS)
def test_float_embeddings_lose_nothing(values: list[float]) -> None:
    row = struct.pack(f"<{len(values)}f", *values)
    body = json.loads(responses.embeddings_body([row, row], "float", "m", 5))
    assert [item["embedding"] for item in body["data"]] == [values, values]
    assert [item["index"] for item in body["data"]] == [0, 1]
    assert body["usage"] == {"prompt_tokens": 5, "total_tokens": 5}


def test_models() -> None:
    route = Route(model="smol", task="chat", context=8192, folder="/m", endpoints=(), created=9)
    one = {"id": "smol", "object": "model", "created": 9, "owned_by": "sovereign", "max_model_len": 8192}
    assert json.loads(responses.model_body(route)) == one
    assert json.loads(responses.models_body([route])) == {"object": "list", "data": [one]}


def test_errors_have_openais_shape() -> None:
    error = InvalidRequest("no", param="n", code="unsupported_parameter")
    shape = {"message": "no", "type": "invalid_request_error", "param": "n", "code": "unsupported_parameter"}
    assert json.loads(responses.error_body(error)) == {"error": shape}
    assert event(responses.error_event(UpstreamFailed("gone")))["error"]["type"] == "server_error"


def test_plain_body() -> None:
    assert responses.plain_body({"status": "ok"}) == b'{"status":"ok"}'
