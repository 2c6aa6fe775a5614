"""Several choices and log-probabilities through the whole gateway."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.gateway.fake_triton import FakeTriton
from tests.gateway.running import in_loop, running, until

TEXT = "The capital is Paris"


def samplings(fake: FakeTriton) -> list[dict[str, Any]]:
    return [json.loads(body["sampling_parameters"]) for body in fake.bodies]


@in_loop
async def test_several_choices() -> None:
    fake = FakeTriton()
    async with running(fake) as gateway:
        status, body = await gateway.chat(n=3, seed=4)
        assert status == 200
        assert [choice["message"]["content"] for choice in body["choices"]] == [TEXT] * 3
        assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 12, "total_tokens": 15}
        assert sorted(sampling["seed"] for sampling in samplings(fake)) == [4, 5, 6]
        assert all("n" not in sampling for sampling in samplings(fake))


@in_loop
async def test_several_choices_streamed() -> None:
    async with running(FakeTriton()) as gateway:
        *events, usage, done = await gateway.stream(n=3, stream_options={"include_usage": True})
        assert done == "[DONE]"
        assert json.loads(usage)["usage"]["completion_tokens"] == 12
        choices = [json.loads(event)["choices"][0] for event in events]
        for index in range(3):
            mine = [choice for choice in choices if choice["index"] == index]
            assert mine[0]["delta"]["role"] == "assistant"
            assert "".join(choice["delta"].get("content", "") for choice in mine) == TEXT
            assert [choice["finish_reason"] for choice in mine if choice["finish_reason"]] == ["stop"]


@in_loop
async def test_several_completions() -> None:
    async with running(FakeTriton()) as gateway:
        _, body = await gateway.post("/v1/completions", {"model": "smol", "prompt": "a", "n": 2})
        assert [choice["text"] for choice in body["choices"]] == [TEXT] * 2


@in_loop
async def test_one_choice_that_fails_ends_the_others() -> None:
    fake = FakeTriton()
    fake.refusal = (400, "no such thing")
    async with running(fake) as gateway:
        status, body = await gateway.chat(n=4)
        assert (status, body["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("stream", [False, True])
@in_loop
async def test_several_choices_are_all_left_when_the_client_leaves(stream: bool) -> None:
    fake = FakeTriton()
    fake.gate = asyncio.Event()
    async with running(fake) as gateway:
        body = {"model": "smol", "messages": [{"role": "user", "content": "x"}], "n": 3, "stream": stream}
        task = asyncio.create_task(gateway.post("/v1/chat/completions", body))
        await until(lambda: fake.active == 3)
        task.cancel()
        await until(lambda: fake.left == 3)


@in_loop
async def test_several_choices_are_continued_elsewhere() -> None:
    broken, whole = FakeTriton(), FakeTriton()
    broken.kill_after = 2
    async with running(broken, whole) as gateway:
        status, body = await gateway.chat(n=2, logprobs=True)
        assert status == 200
        assert [choice["message"]["content"] for choice in body["choices"]] == [TEXT] * 2
        assert all(len(choice["logprobs"]["content"]) == 4 for choice in body["choices"])


@in_loop
async def test_log_probabilities_of_a_chat() -> None:
    fake = FakeTriton()
    async with running(fake) as gateway:
        _, body = await gateway.chat(logprobs=True, top_logprobs=1, max_tokens=1)
        assert body["choices"][0]["logprobs"]["content"] == [
            {
                "token": "The",
                "logprob": -1.5,
                "bytes": [84, 104, 101],
                "top_logprobs": [{"token": "other", "logprob": -0.25, "bytes": [111, 116, 104, 101, 114]}],
            }
        ]
        assert samplings(fake) == [{"logprobs": 1, "max_tokens": 1}]
        await gateway.chat()
        assert "return_logprobs" not in fake.bodies[-1]


@in_loop
async def test_log_probabilities_of_held_back_text_are_streamed() -> None:
    fake = FakeTriton()
    fake.tokens = ["", "x"]
    async with running(fake) as gateway:
        events = await gateway.stream(logprobs=True)
        choices = [json.loads(event)["choices"][0] for event in events[1:-2]]
        assert [choice["delta"]["content"] for choice in choices] == ["", "x"]
        assert [choice["logprobs"]["content"][0]["token"] for choice in choices] == ["", "x"]


@in_loop
async def test_log_probabilities_of_a_completion() -> None:
    async with running(FakeTriton()) as gateway:
        body = {"model": "smol", "prompt": "a", "logprobs": 1, "max_tokens": 2}
        _, answer = await gateway.post("/v1/completions", body)
        assert answer["choices"][0]["logprobs"] == {
            "tokens": ["The", " capital"],
            "token_logprobs": [-1.5, -1.5],
            "top_logprobs": [{"other": -0.25, "The": -1.5}, {"other": -0.25, " capital": -1.5}],
            "text_offset": [0, 3],
        }


@in_loop
async def test_tokens_that_the_model_does_not_have() -> None:
    async with running(FakeTriton()) as gateway:
        status, body = await gateway.chat(logit_bias={"1": 5})
        assert (status, body["error"]["param"]) == (400, "logit_bias")


@in_loop
async def test_json_where_the_engine_can() -> None:
    fake = FakeTriton()
    async with running(fake) as gateway:
        await gateway.chat(response_format={"type": "json_object"})
        assert json.loads(samplings(fake)[0]["structured_outputs"]) == {"json_object": True}


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (400, "Unexpected keyword argument 'structured_outputs'"),
        (500, "Error generating stream: 'NoneType' object has no attribute 'lora_name'"),
    ],
)
@in_loop
async def test_json_where_the_engine_cannot_is_refused_by_name(status: int, words: str) -> None:
    fake = FakeTriton()
    fake.refusal = (status, words)
    async with running(fake) as gateway:
        status, body = await gateway.chat(response_format={"type": "json_object"})
        assert (status, body["error"]["param"]) == (400, "response_format")
        assert "too old" in body["error"]["message"]
        assert gateway.log("upstream_failed") == []


@in_loop
async def test_a_schema_that_the_engine_refuses_is_refused_by_name() -> None:
    fake = FakeTriton()
    fake.refusal = (400, "Grammar error: Invalid type: nonsense")
    async with running(fake) as gateway:
        schema = {"name": "x", "schema": {"type": "nonsense"}}
        status, body = await gateway.chat(response_format={"type": "json_schema", "json_schema": schema})
        assert (status, body["error"]["param"]) == (400, "response_format")
        assert "Invalid type" in body["error"]["message"]


@in_loop
async def test_json_that_breaks_off_is_not_continued() -> None:
    broken, whole = FakeTriton(), FakeTriton()
    broken.kill_after = 2
    async with running(broken, whole) as gateway:
        status, _ = await gateway.chat(response_format={"type": "json_object"})
        assert status == 502
