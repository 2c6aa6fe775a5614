from __future__ import annotations

import json
from typing import Any

import pytest

from sovereign_ai.errors import InvalidRequest
from sovereign_ai.gateway.wire import requests
from sovereign_ai.gateway.wire.messages import for_template
from sovereign_ai.gateway.wire.requests import ChatRequest, CompletionRequest, EmbeddingsRequest

USER = {"role": "user", "content": "hello"}


def chat(**fields: Any) -> ChatRequest:
    return requests.parse_chat(json.dumps({"model": "m", "messages": [USER], **fields}).encode())


def completion(**fields: Any) -> CompletionRequest:
    return requests.parse_completion(json.dumps({"model": "m", "prompt": "p", **fields}).encode())


def embeddings(**fields: Any) -> EmbeddingsRequest:
    return requests.parse_embeddings(json.dumps({"model": "m", "input": "t", **fields}).encode())


def refusal(parse: Any, **fields: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(**fields)
    return caught.value


def test_every_supported_parameter_reaches_the_engine() -> None:
    request = chat(
        temperature=0,
        top_p=1,
        stop=["a", "b", "c", "d", "e"],
        seed=-5,
        presence_penalty=2,
        frequency_penalty=-2,
        top_k=40,
        min_p=0.05,
        repetition_penalty=1.1,
        min_tokens=2,
        ignore_eos=True,
        skip_special_tokens=False,
        include_stop_str_in_output=True,
        stop_token_ids=[3],
        logit_bias={"7": -100, "8": 1},
        logprobs=True,
        top_logprobs=5,
    )
    assert request.sampling(9) == {
        "top_k": 40,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "min_tokens": 2,
        "ignore_eos": True,
        "skip_special_tokens": False,
        "include_stop_str_in_output": True,
        "stop_token_ids": [3],
        "logit_bias": {"7": -100.0, "8": 1.0},
        "logprobs": 5,
        "temperature": 0.0,
        "top_p": 1.0,
        "stop": ["a", "b", "c", "d", "e"],
        "seed": -5,
        "presence_penalty": 2.0,
        "frequency_penalty": -2.0,
        "max_tokens": 9,
    }


def test_what_is_left_out_stays_out() -> None:
    assert chat().sampling(9) == {"max_tokens": 9}
    assert completion(stop="x").sampling(1) == {"stop": "x", "max_tokens": 1}


def test_the_two_names_of_the_answers_limit() -> None:
    assert chat().answer_limit is None
    assert chat(max_tokens=3).answer_limit == 3
    assert chat(max_completion_tokens=4).answer_limit == 4
    assert chat(max_tokens=4, max_completion_tokens=4).answer_limit == 4
    assert refusal(chat, max_tokens=3, max_completion_tokens=4).param == "max_tokens"
    assert completion(max_tokens=2).answer_limit == 2


def test_log_probabilities() -> None:
    assert chat(logprobs=True).sampling(1) == {"logprobs": 0, "max_tokens": 1}
    assert completion(logprobs=3).sampling(1) == {"logprobs": 3, "max_tokens": 1}
    assert completion(logprobs=0).sampling(1) == {"logprobs": 0, "max_tokens": 1}
    assert refusal(chat, top_logprobs=3).param == "top_logprobs"
    assert refusal(chat, logprobs=True, top_logprobs=21).param == "top_logprobs"
    assert refusal(completion, logprobs=True).param == "logprobs"


def test_every_choice_has_a_seed_of_its_own() -> None:
    assert [chat(n=3, seed=5).sampling(1, choice)["seed"] for choice in range(3)] == [5, 6, 7]
    assert chat(n=2, seed=2**63 - 1).sampling(1, 1)["seed"] == -(2**63)
    assert "seed" not in chat(n=2).sampling(1, 1)


def test_contradictions_are_pointed_out() -> None:
    assert refusal(chat, max_completion_tokens=2, min_tokens=3).param == "min_tokens"
    assert chat(min_tokens=3).min_tokens == 3


def test_tokens_that_the_model_does_not_have() -> None:
    requests.check_token_ids(chat(logit_bias={"9": 1}, stop_token_ids=[9]), 10)
    for fields in ({"logit_bias": {"10": 1}}, {"stop_token_ids": [1, 10]}):
        with pytest.raises(InvalidRequest, match="10 tokens") as caught:
            requests.check_token_ids(chat(**fields), 10)
        assert caught.value.param in fields


JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "string"}}}


def test_answers_that_must_be_json() -> None:
    assert chat().structure() is None
    assert chat(response_format={"type": "text"}).structure() is None
    assert chat(response_format={"type": "json_object"}).structure() == {"json_object": True}
    assert chat(response_format=JSON_SCHEMA).structure() == {"json": {"type": "string"}}
    assert refusal(chat, response_format={"type": "xml"}).param == "response_format.type"
    assert refusal(chat, response_format={"type": "json_schema"}).param == "response_format.json_schema"


NEUTRAL: list[dict[str, Any]] = [
    {"n": 1},
    {"top_k": -1, "min_tokens": 0, "ignore_eos": False, "skip_special_tokens": True, "stop_token_ids": []},
    {"top_k": 0, "prompt_cache_key": "x", "safety_identifier": "y", "store": False, "metadata": {}},
    {"best_of": 1},
    {"user": "somebody"},
    {"logit_bias": {}},
    {"anything_at_all": None},
    {"temperature": None, "stop": None, "stream": None, "stream_options": None},
    {"stream": True, "stream_options": {"include_usage": None, "include_obfuscation": False}},
]
NEUTRAL_CHAT: list[dict[str, Any]] = [
    {"logprobs": False},
    {"tools": []},
    {"tools": [], "tool_choice": "auto"},
    {"tool_choice": "none"},
    {"response_format": {"type": "text"}},
    {"tools": None, "response_format": None, "top_logprobs": None},
]


@pytest.mark.parametrize("fields", NEUTRAL + NEUTRAL_CHAT)
def test_neutral_values_are_accepted_in_chat(fields: dict[str, Any]) -> None:
    assert chat(**fields).sampling(1) == {"max_tokens": 1}


@pytest.mark.parametrize("fields", [*NEUTRAL, {"echo": False}, {"logprobs": None}, {"suffix": None}])
def test_neutral_values_are_accepted_in_completions(fields: dict[str, Any]) -> None:
    assert completion(**fields).sampling(1) == {"max_tokens": 1}


UNSUPPORTED: list[tuple[str, Any]] = [
    ("best_of", 2),
    ("user", 5),
    ("suffix", "x"),
    ("best_of", True),
    ("no_such_thing", 0),
    ("metadata", {"a": "b"}),
]
UNSUPPORTED_CHAT: list[tuple[str, Any]] = [
    ("store", True),
    ("functions", [{}]),
    ("reasoning_effort", "low"),
    ("prompt", "text"),
]
UNSUPPORTED_COMPLETION: list[tuple[str, Any]] = [
    ("echo", True), ("suffix", "end"), ("messages", [USER])
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), UNSUPPORTED + UNSUPPORTED_CHAT)
def test_nothing_is_dropped_in_silence_in_chat(name: str, value: Any) -> None:
    error = refusal(chat, **{name: value})
    assert (error.param, error.code) == (name, "unsupported_parameter")
    assert f"`{name}`" in error.message
    assert "not supported" in error.message


@pytest.mark.parametrize(("name", "value"), UNSUPPORTED + UNSUPPORTED_COMPLETION)
def test_nothing_is_dropped_in_silence_in_completions(name: str, value: Any) -> None:
    assert refusal(completion, **{name: value}).param == name


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("temperature", 2.1, "number <= 2"),
        ("temperature", -0.1, "number >= 0"),
        ("temperature", "hot", "got string"),
        ("temperature", True, "got boolean"),
        ("top_p", 0, "number > 0"),
        ("top_p", 1.5, "number <= 1"),
        ("presence_penalty", 3, "<= 2"),
        ("frequency_penalty", -3, ">= -2"),
        ("max_tokens", 0, "integer >= 1"),
        ("max_tokens", 1.5, "got number"),
        ("seed", 2**63, "integer <= 9223372036854775807"),
        ("stop", 5, "got integer"),
        ("stream", "yes", "expected boolean"),
        ("stream_options", [], "got array"),
        ("n", 0, "integer >= 1"),
        ("n", 9, "integer <= 8"),
        ("n", True, "got boolean"),
        ("top_k", -2, ">= -1"),
        ("min_p", 1.1, "<= 1"),
        ("repetition_penalty", 0, "> 0"),
        ("logit_bias", [], "got array"),
        ("logit_bias", {"word": 1}, "expected integer"),
        ("ignore_eos", 1, "expected boolean"),
        ("model", 5, "expected string"),
    ],
)
def test_types_and_ranges(name: str, value: Any, words: str) -> None:
    for parse in (chat, completion):
        error = refusal(parse, **{name: value})
        assert (error.param, error.code) == (name, "invalid_value")
        assert words in error.message


def test_an_empty_stop_is_refused_with_its_place() -> None:
    assert refusal(chat, stop=["a", ""]).param == "stop[1]"
    assert refusal(chat, stop="").param == "stop"


def test_stream_options_need_a_stream() -> None:
    assert refusal(chat, stream_options={"include_usage": True}).param == "stream_options"
    error = refusal(chat, stream=True, stream_options={"continuous_usage_stats": True})
    assert error.param == "stream_options.continuous_usage_stats"
    assert chat(stream=True, stream_options={"include_usage": True}).include_usage
    assert not chat(stream=True).include_usage


@pytest.mark.parametrize("name", ["model", "messages"])
def test_required_fields(name: str) -> None:
    error = refusal(chat, **{name: None})
    assert (error.param, error.code) == (name, "missing_required_parameter")


def test_messages_for_the_template() -> None:
    parts = [{"type": "text", "text": "one"}, {"text": "two", "type": "text"}]
    request = chat(
        messages=[
            {"role": "developer", "content": "be brief"},
            {"role": "user", "content": parts, "name": "ann"},
            {"role": "assistant", "content": "", "refusal": None, "tool_calls": None, "annotations": []},
            {"role": "assistant", "content": "x", "name": "bob"},
            {"role": "tool", "content": "y", "tool_call_id": "c", "name": "look"},
        ]
    )
    assert for_template(request.messages) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "one\ntwo", "name": "ann"},
        {"role": "assistant", "content": ""},
        {"role": "assistant", "content": "x", "name": "bob"},
        {"role": "tool", "content": "y", "tool_call_id": "c", "name": "look"},
    ]


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ("hello", "messages"),
        (["hello"], "messages[0]"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "critic", "content": "x"}], "messages[0].role"),
        ([{"role": "tool", "content": "x"}], "messages[0].tool_call_id"),
        ([{**USER, "tool_calls": [{"id": "1"}]}], "messages[0].tool_calls"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": None}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "assistant", "tool_calls": [{"id": "1"}]}], "messages[0].tool_calls[0].type"),
        ([{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text"),
        ([{"role": "user", "content": [{"text": "x"}]}], "messages[0].content[0].type"),
        (
            [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "x"}, {"image_url": {}, "type": "image_url"}],
                }
            ],
            "messages[0].content[1].type",
        ),
    ],
)
def test_refused_messages(messages: Any, param: str) -> None:
    assert refusal(chat, messages=messages).param == param


def test_a_refused_choice_says_what_would_do() -> None:
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    assert "only text" in refusal(chat, messages=image).message
    assert "system" in refusal(chat, messages=[{"role": "critic", "content": "x"}]).message
    assert "float, base64" in refusal(embeddings, encoding_format="int8").message


def test_long_values_are_not_echoed_whole() -> None:
    assert len(refusal(chat, messages=[{"role": "x" * 10_000, "content": "x"}]).message) <= 400
    assert len(refusal(chat, **{"x" * 10_000: 1}).message) <= 400


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "byte 0"),
        (b'{"model"', "byte 8"),
        (b'{"a" 1}', "byte 5"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b"[" * 100_000, "deeply"),
        (b'{"a": 1e999}', "byte 12"),
    ],
)
def test_malformed_json(body: bytes, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        requests.parse_chat(body)
    assert caught.value.code == "invalid_json"


def test_the_body_must_be_an_object() -> None:
    with pytest.raises(InvalidRequest, match="object"):
        requests.parse_completion(b"[]")


def test_prompts() -> None:
    assert completion().text == "p"
    assert completion(prompt=["only"]).text == "only"
    assert refusal(completion, prompt=["a", "b"]).param == "prompt"
    assert refusal(completion, prompt=[]).param == "prompt"
    assert refusal(completion, prompt=[1, 2]).code == "unsupported_parameter"
    assert refusal(completion, prompt=[[1, 2]]).code == "unsupported_parameter"
    assert refusal(completion, prompt=5).param == "prompt"
    assert refusal(completion, prompt=None).code == "missing_required_parameter"


def test_embedding_inputs() -> None:
    assert embeddings().texts == ["t"]
    assert embeddings(input=["a", "b"], user="me", encoding_format="base64", dimensions=3).texts == ["a", "b"]
    assert refusal(embeddings, input=[1, 2]).code == "unsupported_parameter"
    assert refusal(embeddings, input="").param == "input"
    assert refusal(embeddings, input=[]).param == "input"
    assert refusal(embeddings, input=["a", ""]).param == "input[1]"
    assert refusal(embeddings, input=["a"] * 2049).param == "input"
    assert refusal(embeddings, dimensions=0).param == "dimensions"
    assert refusal(embeddings, priority=1).param == "priority"


def test_the_answer_gets_what_the_context_leaves() -> None:
    assert requests.answer_budget(10, None, 32, param="prompt") == 22
    assert requests.answer_budget(10, 22, 32, param="prompt") == 22
    assert requests.answer_budget(31, None, 32, param="prompt") == 1


@pytest.mark.parametrize(
    ("prompt", "limit", "numbers"), [(32, None, ("32",)), (10, 23, ("32", "33", "10", "23"))]
)
def test_what_does_not_fit_is_refused_with_the_numbers(
    prompt: int, limit: int | None, numbers: tuple[str, ...]
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        requests.answer_budget(prompt, limit, 32, param="messages")
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    assert all(number in caught.value.message for number in numbers)


def test_embedding_lengths() -> None:
    requests.check_embedding_lengths([8, 1], 8)
    with pytest.raises(InvalidRequest, match="input 1 has 9") as caught:
        requests.check_embedding_lengths([8, 9], 8)
    assert (caught.value.param, caught.value.code) == ("input[1]", "context_length_exceeded")
    with pytest.raises(InvalidRequest) as caught:
        requests.check_embedding_lengths([9], 8)
    assert caught.value.param == "input"
