"""The official client, unchanged, against the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from tests.gateway.fake_triton import FakeTriton, vector
from tests.gateway.running import KEY, in_loop, running, until

HELLO: list[ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


@asynccontextmanager
async def client_of(fake: FakeTriton, key: str = KEY) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        running(fake) as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as client,
    ):
        yield client


@in_loop
async def test_chat() -> None:
    async with client_of(FakeTriton()) as client:
        answer = await client.chat.completions.create(model="smol", messages=HELLO, max_completion_tokens=3)
        assert answer.choices[0].message.content == "The capital is"
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.total_tokens == 6


@in_loop
async def test_an_answer_can_be_sent_back() -> None:
    async with client_of(FakeTriton()) as client:
        answer = await client.chat.completions.create(model="smol", messages=HELLO)
        said = answer.choices[0].message.model_dump()
        await client.chat.completions.create(
            model="smol", messages=[*HELLO, cast(ChatCompletionMessageParam, said), *HELLO]
        )


@in_loop
async def test_chat_stream() -> None:
    async with client_of(FakeTriton()) as client:
        stream = await client.chat.completions.create(
            model="smol",
            messages=HELLO,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        texts = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
        assert "".join(texts) == "The capital is Paris"
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 4


@in_loop
async def test_completions() -> None:
    async with client_of(FakeTriton()) as client:
        answer = await client.completions.create(model="smol", prompt="hello")
        assert answer.choices[0].text == "The capital is Paris"


@in_loop
async def test_embeddings() -> None:
    async with client_of(FakeTriton()) as client:
        answer = await client.embeddings.create(model="minilm", input=["a", "bcd"])
        assert [item.embedding for item in answer.data] == [vector("a"), vector("bcd")]
        assert answer.usage.prompt_tokens == 2


@in_loop
async def test_models() -> None:
    async with client_of(FakeTriton()) as client:
        assert [model.id async for model in client.models.list()] == ["smol", "minilm"]
        assert (await client.models.retrieve("smol")).created == 7


@in_loop
async def test_error_classes() -> None:
    fake = FakeTriton()
    async with client_of(fake) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(model="smol", messages=HELLO, store=True)
        assert (refused.value.param, refused.value.code) == ("store", "unsupported_parameter")
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("nope")
        fake.kill_after = 0
        with pytest.raises(openai.InternalServerError) as failed:
            await client.chat.completions.create(model="smol", messages=HELLO)
        assert failed.value.status_code == 502
    async with client_of(FakeTriton(), key="sk-wrong") as client:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()


@in_loop
async def test_a_stream_that_breaks_raises() -> None:
    fake = FakeTriton()
    fake.kill_after = 2
    async with client_of(fake) as client:
        stream = await client.chat.completions.create(model="smol", messages=HELLO, stream=True)
        with pytest.raises(openai.APIError, match="the engine stopped while answering"):
            async for _ in stream:
                pass


@in_loop
async def test_leaving_a_stream() -> None:
    fake = FakeTriton()
    fake.gate = asyncio.Event()
    async with client_of(fake) as client:
        stream = await client.chat.completions.create(model="smol", messages=HELLO, stream=True)
        await anext(aiter(stream))
        await stream.close()
        await until(lambda: fake.left == 1)
