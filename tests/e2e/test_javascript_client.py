"""The official JavaScript clients, unchanged, against the running stack."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.conftest import Stack, wait_for
from tests.javascript.scripts import Scripts

pytestmark = pytest.mark.engine

MODEL, EMBEDDER = "smollm2-135m", "minilm-l6-v2"
QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."
GREEDY = {"temperature": 0}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}

Run = Callable[..., Any]


@pytest.fixture
def run(stack: Stack, scripts: Scripts) -> Run:
    def run(case: str, script: str = "openai.mjs", **given: Any) -> Any:
        known = {"url": stack.url, "key": stack.key, "model": MODEL, "question": QUESTION, "fields": GREEDY}
        return scripts.run(script, case, **{**known, **given})

    return run


def test_models(run: Run) -> None:
    assert run("models")["ids"] == [MODEL, EMBEDDER]


def test_chat(run: Run) -> None:
    answer = run("chat")
    assert answer["choices"][0]["message"]["content"] == ANSWER
    assert (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"]) == (37, 8)


def test_a_streamed_chat_with_usage(run: Run) -> None:
    chunks = run("chat_stream")
    texts = [choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]]
    assert "".join(texts) == ANSWER
    assert chunks[-1]["usage"]["completion_tokens"] == 8
    assert run("helper_stream")["text"] == ANSWER


@pytest.mark.parametrize("case", ["abort", "stream_abort", "leaving_the_loop"])
def test_a_stream_that_is_left_frees_the_engine(run: Run, stack: Stack, case: str) -> None:
    before = stack.engine_metric("vllm:generation_tokens_total")
    run(case, fields={"max_tokens": 4000, "ignore_eos": True})
    wait_for(lambda: stack.engine_metric("vllm:num_requests_running") == 0, 60, "the engine to be free")
    assert stack.engine_metric("vllm:generation_tokens_total") - before < 4000


def test_completions(run: Run) -> None:
    fields = {"temperature": 0, "max_tokens": 4}
    answer = run("completions", question="One, two, three,", fields=fields)
    assert answer["choices"][0]["text"].startswith(" four")
    chunks = run("completions_stream", question="One, two, three,", fields=fields)
    text = "".join(choice["text"] for chunk in chunks for choice in chunk["choices"])
    assert text == answer["choices"][0]["text"]


def test_embeddings_in_base64_and_as_floats(run: Run) -> None:
    texts = ["a cat", "a kitten", "the stock market"]
    found = run("embeddings", embedder=EMBEDDER, texts=texts)
    by_default, floats = ([item["embedding"] for item in answer["data"]] for answer in found.values())
    for one, other in zip(by_default, floats, strict=True):
        assert len(one) == 384
        assert one == pytest.approx(other, abs=1e-5)
        assert sum(x * x for x in one) == pytest.approx(1.0, abs=1e-4)


def test_responses(run: Run) -> None:
    assert run("response")["output_text"] == ANSWER
    events = run("response_stream")
    assert (events[0]["type"], events[-1]["type"]) == ("response.created", "response.completed")
    assert run("response_helper")["final"]["output_text"] == ANSWER


def test_an_answer_by_a_schema(run: Run) -> None:
    choice = run("schema", schema=SCHEMA, fields={"temperature": 0, "max_tokens": 32})
    assert json.loads(choice["message"]["content"])["city"] in ("Paris", "Rome")


def test_error_classes(run: Run) -> None:
    assert {name: error["kind"] for name, error in run("errors").items()} == {
        "wrong_key": "AuthenticationError",
        "no_model": "NotFoundError",
        "chat_no_model": "NotFoundError",
        "bad_field": "BadRequestError",
        "bad_value": "BadRequestError",
    }


def test_tools_are_refused_by_name_where_the_template_knows_none(run: Run) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    error = run("error", fields={"tools": [tool]})
    assert (error["kind"], error["param"]) == ("BadRequestError", "tools")


def test_several_at_the_same_time(run: Run) -> None:
    assert run("at_the_same_time") == [ANSWER] * 8


def test_messages(run: Run) -> None:
    fields = {"max_tokens": 20, "temperature": 0}
    answer = run("message", "anthropic.mjs", fields=fields)
    assert answer["content"] == [{"type": "text", "text": ANSWER}]
    found = run("helper_stream", "anthropic.mjs", fields=fields)
    assert "".join(found["pieces"]) == ANSWER
    events = run("stream", "anthropic.mjs", fields=fields)
    assert (events[0]["type"], events[-1]["type"]) == ("message_start", "message_stop")
