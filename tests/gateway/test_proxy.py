from __future__ import annotations

import asyncio
import base64
import json
import struct
from typing import Any

import pytest

from tests.gateway.fake_triton import FakeTriton, vector
from tests.gateway.running import CONTEXT, NOW, in_loop, running

CHAT = "/v1/chat/completions"


def sampling(fake: FakeTriton) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(fake.bodies[-1]["sampling_parameters"])
    return found


@in_loop
async def test_a_chat() -> None:
    fake = FakeTriton()
    async with running(fake) as gateway:
        status, body = await gateway.chat(temperature=0, stop=["\n"], seed=1)
        assert status == 200
        assert body == {
            "id": "chatcmpl-1d",
            "object": "chat.completion",
            "created": int(NOW),
            "model": "smol",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "The capital is Paris", "refusal": None},
                    "logprobs": None,
                    "finish_reason": "stop",
                }
            ],
            "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7},
        }
        assert fake.bodies[0]["text_input"] == "user: hello assistant: "
        assert sampling(fake) == {"temperature": 0.0, "stop": ["\n"], "seed": 1, "max_tokens": CONTEXT - 3}


@in_loop
async def test_a_streamed_chat() -> None:
    async with running(FakeTriton()) as gateway:
        *events, done = await gateway.stream()
        assert done == "[DONE]"
        choices = [json.loads(event)["choices"][0] for event in events]
        assert choices[0]["delta"] == {"role": "assistant", "content": ""}
        assert [choice["delta"].get("content") for choice in choices[1:]] == [
            "The",
            " capital",
            " is",
            " Paris",
            None,
        ]
        assert [choice["finish_reason"] for choice in choices] == [None] * 5 + ["stop"]
        assert all("usage" not in json.loads(event) for event in events)


@in_loop
async def test_a_streamed_chat_with_usage() -> None:
    async with running(FakeTriton()) as gateway:
        events = await gateway.stream(stream_options={"include_usage": True}, max_tokens=2)
        last = json.loads(events[-2])
        assert last["choices"] == []
        assert last["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        assert json.loads(events[-3])["choices"][0]["finish_reason"] == "length"


@in_loop
async def test_a_completion() -> None:
    fake = FakeTriton()
    async with running(fake) as gateway:
        status, body = await gateway.post(
            "/v1/completions", {"model": "smol", "prompt": ["a b"], "max_tokens": 2}
        )
        assert (status, body["id"], body["choices"][0]["text"]) == (200, "cmpl-1d", "The capital")
        assert body["choices"][0]["finish_reason"] == "length"
        assert fake.bodies[0]["text_input"] == "a b"
        assert sampling(fake) == {"max_tokens": 2}


@in_loop
async def test_a_streamed_completion() -> None:
    async with running(FakeTriton()) as gateway:
        body = {"model": "smol", "prompt": "a", "stream": True, "stream_options": {"include_usage": True}}
        async with gateway.session.post(gateway.url + "/v1/completions", json=body) as response:
            events = [line.removeprefix("data: ") for line in (await response.text()).split("\n\n") if line]
        chunks = [json.loads(event) for event in events[:-1]]
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1]) == "The capital is Paris"
        assert chunks[-1]["usage"]["total_tokens"] == 5


@in_loop
async def test_empty_pieces_are_counted_but_not_sent() -> None:
    fake = FakeTriton()
    fake.tokens = ["", "x", ""]
    async with running(fake) as gateway:
        assert len(await gateway.stream()) == 4
        assert gateway.log()[0]["completion_tokens"] == 3


@in_loop
async def test_sixty_four_streams_at_once() -> None:
    fake = FakeTriton()
    fake.gate = asyncio.Event()
    fake.tokens = [f" {number}" for number in range(CONTEXT - 3)]
    async with running(fake) as gateway:
        streams = [asyncio.create_task(gateway.stream()) for _ in range(64)]
        async with asyncio.timeout(10):
            while fake.active < 64:
                await asyncio.sleep(0.005)
        fake.gate.set()
        answers = await asyncio.gather(*streams)
        assert fake.peak == 64
        assert all(answer == answers[0] and len(answer) == CONTEXT for answer in answers)


@pytest.mark.parametrize(
    ("path", "body", "param", "numbers"),
    [
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x " * 40}]},
            "messages",
            ["32", "42"],
        ),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "x"}], "max_tokens": 30},
            "messages",
            ["32", "33"],
        ),
        ("/v1/completions", {"prompt": "x " * 32}, "prompt", ["32"]),
    ],
)
@in_loop
async def test_what_does_not_fit_the_context(path: str, body: Any, param: str, numbers: list[str]) -> None:
    fake = FakeTriton()
    async with running(fake) as gateway:
        status, answer = await gateway.post(path, {"model": "smol", **body})
        assert (status, answer["error"]["code"], answer["error"]["param"]) == (
            400,
            "context_length_exceeded",
            param,
        )
        assert all(number in answer["error"]["message"] for number in numbers)
        assert fake.bodies == []


@in_loop
async def test_a_prompt_without_tokens() -> None:
    async with running(FakeTriton()) as gateway:
        status, answer = await gateway.post("/v1/completions", {"model": "smol", "prompt": ""})
        assert (status, answer["error"]["param"]) == (400, "prompt")


@in_loop
async def test_models_that_do_not_exist_and_tasks_that_do_not_fit() -> None:
    async with running(FakeTriton()) as gateway:
        status, answer = await gateway.chat(model="nope")
        assert (status, answer["error"]["code"]) == (404, "model_not_found")
        status, answer = await gateway.chat(model="minilm")
        assert (status, answer["error"]["param"]) == (400, "model")
        assert "/v1/embeddings" in answer["error"]["message"]
        status, answer = await gateway.post("/v1/embeddings", {"model": "smol", "input": "x"})
        assert (status, "/v1/chat/completions" in answer["error"]["message"]) == (400, True)


@in_loop
async def test_embeddings_as_numbers_and_as_base64() -> None:
    async with running(FakeTriton()) as gateway:
        body = {"model": "minilm", "input": ["one two", "x"]}
        status, answer = await gateway.post("/v1/embeddings", {**body, "dimensions": 3})
        assert status == 200
        assert answer["data"][0] == {"object": "embedding", "index": 0, "embedding": vector("one two")}
        assert answer["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
        _, answer = await gateway.post("/v1/embeddings", {**body, "encoding_format": "base64"})
        packed = base64.b64decode(answer["data"][1]["embedding"])
        assert list(struct.unpack("<3f", packed)) == vector("x")


@in_loop
async def test_many_inputs_are_split_and_stay_in_order() -> None:
    fake = FakeTriton()
    async with running(fake) as gateway:
        texts = ["x" * (1 + index % 100) for index in range(150)]
        _, answer = await gateway.post("/v1/embeddings", {"model": "minilm", "input": texts})
        assert [item["embedding"] for item in answer["data"]] == [vector(text) for text in texts]
        assert [len(body["inputs"][0]["data"]) for body in fake.bodies] == [64, 64, 22]
        assert answer["usage"]["total_tokens"] == 150


@in_loop
async def test_embedding_refusals() -> None:
    fake = FakeTriton()
    async with running(fake) as gateway:
        body: dict[str, Any] = {"model": "minilm", "input": ["ok", "w " * 9]}
        status, answer = await gateway.post("/v1/embeddings", body)
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
        assert answer["error"]["param"] == "input[1]"
        status, answer = await gateway.post(
            "/v1/embeddings", {"model": "minilm", "input": "w" * 10_000 + " w" * 9}
        )
        assert status == 400
        assert fake.bodies == []
        status, answer = await gateway.post(
            "/v1/embeddings", {"model": "minilm", "input": "x", "dimensions": 2}
        )
        assert (status, answer["error"]["param"]) == (400, "dimensions")
        assert "3 dimensions" in answer["error"]["message"]


@in_loop
async def test_nothing_that_was_said_is_written_down() -> None:
    fake = FakeTriton()
    fake.tokens = ["the-answer"]
    async with running(fake) as gateway:
        await gateway.chat(messages=[{"role": "user", "content": "the-prompt"}])
        await gateway.chat(messages=[{"role": "user", "content": "the-prompt " * 40}])
        fake.kill_after = 0
        await gateway.chat(stream=True, messages=[{"role": "user", "content": "the-prompt"}])
        written = b"".join(gateway.lines)
        assert len(gateway.log()) == 3
        assert b"the-prompt" not in written
        assert b"the-answer" not in written
        assert b"sk-test" not in written
