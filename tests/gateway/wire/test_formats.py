from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.gateway.wire.formats import (
    ChatFormat,
    CompletionFormat,
    Ending,
    Head,
    OpenAIFormat,
    Outcome,
    Usage,
    WholeCall,
    call_id,
)
from sovereign_ai.gateway.wire.logprobs import Entry
from sovereign_ai.gateway.wire.toolcalls import Arguments, Called

HEAD = Head("chatcmpl-1", 7, 'odd "" name')


def event(data: bytes) -> Any:
    assert data.startswith(b"data: ")
    assert data.endswith(b"\n\n")
    return json.loads(data[6:])


def events(data: bytes) -> list[Any]:
    return [event(part + b"\n\n") for part in data.split(b"\n\n") if part]


def test_chat_chunks() -> None:
    chat = ChatFormat(HEAD, include_usage=False)
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": 'odd "" name'}

    def chunk(delta: dict[str, str], reason: str | None) -> Any:
        return {**head, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}

    assert event(chat.first()) == chunk({"role": "assistant", "content": ""}, None)
    assert event(chat.text("hi")) == chunk({"content": "hi"}, None)
    assert event(chat.last(Ending("stop"))) == chunk({}, "stop")


def test_with_usage_every_chunk_has_the_field() -> None:
    chat = ChatFormat(HEAD, include_usage=True)
    assert [event(data)["usage"] for data in (chat.first(), chat.text("x"), chat.last(Ending("stop")))] == [
        None
    ] * 3
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
    assert event(completion.last(Ending("length")))["choices"][0] == {
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
def test_whole_answers(kind: type[OpenAIFormat], object_: str, content: dict[str, Any]) -> None:
    body = json.loads(kind(HEAD, include_usage=False).body([Outcome("hi", Ending("stop"))], Usage(1, 2)))
    assert body == {
        "id": "chatcmpl-1",
        "object": object_,
        "created": 7,
        "model": 'odd "" name',
        "choices": [{"index": 0, **content, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
    }


def test_several_choices() -> None:
    chat = ChatFormat(HEAD, include_usage=False, choices=2)
    assert [chunk["choices"][0]["index"] for chunk in events(chat.first())] == [0, 1]
    assert event(chat.text("x", 1))["choices"][0]["index"] == 1
    assert event(chat.last(Ending("length"), 1))["choices"][0]["index"] == 1
    body = json.loads(chat.body([Outcome("a", Ending("stop")), Outcome("b", Ending("length"))], Usage(1, 2)))
    assert [(c["index"], c["message"]["content"]) for c in body["choices"]] == [(0, "a"), (1, "b")]


def test_calls_in_chunks() -> None:
    chat = ChatFormat(HEAD, include_usage=False)
    first = event(chat.call(Called(1, "look")))["choices"][0]["delta"]["tool_calls"][0]
    function = {"name": "look", "arguments": ""}
    assert first == {"index": 1, "id": call_id("chatcmpl-1", 0, 1), "type": "function", "function": function}
    more = event(chat.arguments(Arguments(1, '{"a')))["choices"][0]["delta"]
    assert more == {"tool_calls": [{"index": 1, "function": {"arguments": '{"a'}}]}


def test_calls_in_whole_answers() -> None:
    chat = ChatFormat(HEAD, include_usage=False, short_ids=True)
    outcome = Outcome("", Ending("tool_calls"), calls=[WholeCall("look", "{}"), WholeCall("go", "{}")])
    choice = json.loads(chat.body([outcome], Usage(1, 2)))["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    calls = choice["message"]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["look", "go"]
    assert len({call["id"] for call in calls}) == 2
    assert all(len(call["id"]) == 9 for call in calls)


def test_log_probabilities() -> None:
    position = {"1": Entry(-1.5, 2, "hé"), "2": Entry(-0.5, 1, "x")}
    token = {"token": "hé", "logprob": -1.5, "bytes": [104, 195, 169]}
    best = {"token": "x", "logprob": -0.5, "bytes": [120]}
    content = [{**token, "top_logprobs": [best]}]
    chat = ChatFormat(HEAD, include_usage=False, top=1)
    chunk = event(chat.scored("hé", [position]))["choices"][0]
    assert chunk["logprobs"] == {"content": content, "refusal": None}
    outcome = Outcome("hé", Ending("stop"), positions=[position])
    body = json.loads(chat.body([outcome], Usage(1, 1)))
    assert body["choices"][0]["logprobs"] == {"content": content, "refusal": None}


def test_legacy_log_probabilities_count_characters() -> None:
    completion = CompletionFormat(HEAD, include_usage=False, choices=2, top=1)
    position = {"1": Entry(-1.5, 2, "hé"), "2": Entry(-0.5, 1, "x")}
    shapes = [
        event(completion.scored("hé", [position, position], index))["choices"][0]["logprobs"]
        for index in (0, 1, 0)
    ]
    assert [shape["text_offset"] for shape in shapes] == [[0, 2], [0, 2], [4, 6]]
    assert shapes[0]["tokens"] == ["hé", "hé"]
    assert shapes[0]["token_logprobs"] == [-1.5, -1.5]
    assert shapes[0]["top_logprobs"] == [{"x": -0.5, "hé": -1.5}] * 2
