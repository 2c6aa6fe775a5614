"""Anthropic's official client, and its protocol by hand, against the gateway."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anthropic
import pytest
from anthropic.types import MessageParam, ToolParam

from sovereign_ai.gateway.templates import PromptBuilder
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.running import KEY, Running, in_loop, running
from tests.gateway.test_tools import CALL, fake_that_says, knows_tools, sampling

HELLO: list[MessageParam] = [{"role": "user", "content": "hello"}]
LOOK: ToolParam = {"name": "look", "input_schema": {"type": "object"}}


@asynccontextmanager
async def client_of(
    fake: FakeTriton, prompts: PromptBuilder | None = None
) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with (
        running(fake, prompts=prompts) as gateway,
        anthropic.AsyncAnthropic(base_url=gateway.url, auth_token=KEY, api_key=None, max_retries=0) as client,
    ):
        yield client


async def events_of(gateway: Running, **fields: Any) -> list[tuple[str, Any]]:
    """Name and payload of the events of a streamed message."""
    body = {"model": "smol", "max_tokens": 9, "messages": HELLO, "stream": True, **fields}
    async with gateway.session.post(gateway.url + "/v1/messages", json=body) as response:
        text = await response.text()
    events = [event.split("\n") for event in text.split("\n\n") if event]
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in events]


@in_loop
async def test_a_message() -> None:
    fake = FakeTriton()
    async with client_of(fake) as client:
        answer = await client.messages.create(
            model="smol",
            max_tokens=9,
            messages=HELLO,
            system="be brief",
            metadata={"user_id": "x"},
            extra_body={"temperature": 0.5, "top_k": 3},
        )
        assert answer.content[0].type == "text"
        assert answer.content[0].text == "The capital is Paris"
        assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (6, 4)
        assert fake.bodies[0]["text_input"] == "system: be brief user: hello assistant: "
        assert sampling(fake) == {"max_tokens": 9, "temperature": 0.5, "top_k": 3}


@in_loop
async def test_the_events_of_a_stream() -> None:
    async with running(FakeTriton()) as gateway:
        events = await events_of(gateway, max_tokens=2)
        assert [name for name, _ in events] == [
            "message_start",
            "content_block_start",
            "content_block_delta",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ]
        assert all(name == payload["type"] for name, payload in events)
        assert events[0][1]["message"]["usage"] == {"input_tokens": 3, "output_tokens": 0}
        assert events[2][1] == {
            "type": "content_block_delta",
            "index": 0,
            "delta": {"type": "text_delta", "text": "The"},
        }
        assert events[5][1]["delta"] == {"stop_reason": "max_tokens", "stop_sequence": None}
        assert events[5][1]["usage"]["output_tokens"] == 2


@in_loop
async def test_a_streamed_call() -> None:
    async with client_of(fake_that_says("Well. ", *CALL), knows_tools()) as client:
        async with client.messages.stream(model="smol", max_tokens=9, messages=HELLO, tools=[LOOK]) as stream:
            answer = await stream.get_final_message()
        text, use = answer.content
        assert (text.type, use.type) == ("text", "tool_use")
        assert use.type == "tool_use"
        assert (use.name, use.input) == ("look", {"a": 1})
        assert answer.stop_reason == "tool_use"


@in_loop
async def test_a_call_and_its_result_sent_back() -> None:
    fake = fake_that_says(*CALL)
    async with client_of(fake, knows_tools()) as client:
        answer = await client.messages.create(model="smol", max_tokens=9, messages=HELLO, tools=[LOOK])
        (use,) = answer.content
        assert use.type == "tool_use"
        result: MessageParam = {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": use.id, "content": "nothing", "is_error": True},
                {"type": "text", "text": "and?", "cache_control": {"type": "ephemeral"}},
            ],
        }
        said: MessageParam = {
            "role": "assistant",
            "content": [{"type": "tool_use", "id": use.id, "name": use.name, "input": use.input}],
        }
        await client.messages.create(
            model="smol", max_tokens=9, messages=[*HELLO, said, result], tools=[LOOK]
        )
        prompt = fake.bodies[-1]["text_input"]
        assert prompt.endswith(" assistant:call:look1 tool:Error: nothing user:and? assistant:")


@in_loop
async def test_which_stop_sequence_it_was() -> None:
    fake = fake_that_says("one ", "two E", "ND")
    async with running(fake) as gateway:
        body = {"model": "smol", "max_tokens": 9, "messages": HELLO, "stop_sequences": ["END", "no"]}
        _, answer = await gateway.post("/v1/messages", body)
        assert answer["content"] == [{"type": "text", "text": "one two "}]
        assert (answer["stop_reason"], answer["stop_sequence"]) == ("stop_sequence", "END")
        assert sampling(fake)["include_stop_str_in_output"] is True
        events = await events_of(gateway, stop_sequences=["END", "no"])
        text = "".join(e["delta"]["text"] for name, e in events if name == "content_block_delta")
        assert text == "one two "
        assert events[-2][1]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "END"}
        _, answer = await gateway.post("/v1/messages", {**body, "stop_sequences": ["x"]})
        assert (answer["stop_reason"], answer["content"][0]["text"]) == ("end_turn", "one two END")


@in_loop
async def test_the_beginning_of_an_answer() -> None:
    fake = FakeTriton()
    async with client_of(fake) as client:
        answer = await client.messages.create(
            model="smol", max_tokens=9, messages=[*HELLO, {"role": "assistant", "content": "The"}]
        )
        assert fake.bodies[0]["text_input"] == "user: hello assistant: The"
        assert answer.content[0].type == "text"
        assert answer.content[0].text == " capital is Paris"


@pytest.mark.parametrize(
    ("choice", "structured"),
    [
        ({"type": "auto", "disable_parallel_tool_use": True}, None),
        ({"type": "any"}, "array"),
        ({"type": "tool", "name": "look"}, "object"),
        ({"type": "none"}, None),
    ],
)
@in_loop
async def test_choices_of_tools(choice: Any, structured: str | None) -> None:
    fake = fake_that_says("{}")
    async with running(fake, prompts=knows_tools()) as gateway:
        body = {"model": "smol", "max_tokens": 9, "messages": HELLO, "tools": [LOOK], "tool_choice": choice}
        status, _ = await gateway.post("/v1/messages", body)
        assert status == 200
        found = sampling(fake).get("structured_outputs")
        assert (None if found is None else json.loads(found)["json"]["type"]) == structured


@in_loop
async def test_what_a_turn_may_hold() -> None:
    fake = FakeTriton()
    async with running(fake, prompts=knows_tools()) as gateway:
        result = {"type": "tool_result", "tool_use_id": "t"}
        messages = [
            {"role": "user", "content": []},
            {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
            {"role": "user", "content": [result]},
        ]
        body = {"model": "smol", "max_tokens": 9, "messages": messages}
        status, _ = await gateway.post("/v1/messages", body)
        assert status == 200
        assert fake.bodies[0]["text_input"] == "user: assistant:a tool: assistant:"


@in_loop
async def test_counting() -> None:
    async with client_of(FakeTriton()) as client:
        counted = await client.messages.count_tokens(model="smol", messages=HELLO, system="be brief")
        assert counted.input_tokens == 6


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, "image"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "role"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools"),
        ({"tools": [LOOK]}, "tools"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"n": 2}, "`n`"),
    ],
)
@in_loop
async def test_refusals(fields: dict[str, Any], words: str) -> None:
    fake = FakeTriton()
    async with running(fake) as gateway:
        body = {"model": "smol", "max_tokens": 9, "messages": HELLO, **fields}
        status, answer = await gateway.post("/v1/messages", body)
        assert status == 400
        assert words in answer["error"]["message"]
        assert fake.bodies == []


@in_loop
async def test_calls_that_the_limit_cut_off_have_no_input() -> None:
    async with running(fake_that_says(*CALL), prompts=knows_tools()) as gateway:
        body = {"model": "smol", "max_tokens": 3, "messages": HELLO, "tools": [LOOK]}
        _, answer = await gateway.post("/v1/messages", body)
        assert answer["stop_reason"] == "max_tokens"
        assert answer["content"][0]["input"] == {}
