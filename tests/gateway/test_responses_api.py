"""The official client's Responses API against the gateway."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from openai.types.responses import FunctionToolParam, ResponseInputParam

from sovereign_ai.gateway.templates import PromptBuilder
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.running import KEY, in_loop, running
from tests.gateway.test_tools import CALL, fake_that_says, knows_tools, sampling

LOOK: FunctionToolParam = {"type": "function", "name": "look", "parameters": {}, "strict": None}
PATH = "/v1/responses"


@asynccontextmanager
async def client_of(
    fake: FakeTriton, prompts: PromptBuilder | None = None
) -> AsyncIterator[openai.AsyncOpenAI]:
    async with (
        running(fake, prompts=prompts) as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client,
    ):
        yield client


@in_loop
async def test_an_answer() -> None:
    fake = FakeTriton()
    async with client_of(fake) as client:
        answer = await client.responses.create(
            model="smol", input="hello", instructions="be brief", store=False, max_output_tokens=9
        )
        assert answer.output_text == "The capital is Paris"
        assert (answer.status, answer.incomplete_details) == ("completed", None)
        assert answer.usage is not None
        assert (answer.usage.input_tokens, answer.usage.output_tokens) == (6, 4)
        assert fake.bodies[0]["text_input"] == "system: be brief user: hello assistant: "


@in_loop
async def test_the_events_of_a_stream() -> None:
    async with client_of(FakeTriton()) as client:
        stream = await client.responses.create(model="smol", input="hello", stream=True, max_output_tokens=2)
        events = [event async for event in stream]
        assert [event.type for event in events] == [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added",
            "response.output_text.delta",
            "response.output_text.delta",
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete",
        ]
        assert [event.sequence_number for event in events] == list(range(10))
        last = events[-1]
        assert last.type == "response.incomplete"
        assert last.response.output_text == "The capital"
        assert last.response.incomplete_details is not None
        assert last.response.incomplete_details.reason == "max_output_tokens"


@in_loop
async def test_the_clients_own_reading_of_a_stream() -> None:
    async with client_of(FakeTriton()) as client:
        async with client.responses.stream(model="smol", input="hello") as stream:
            texts = [event.delta async for event in stream if event.type == "response.output_text.delta"]
            answer = await stream.get_final_response()
        assert "".join(texts) == answer.output_text == "The capital is Paris"


@in_loop
async def test_a_streamed_call() -> None:
    async with client_of(fake_that_says("Well. ", *CALL), knows_tools()) as client:
        stream = await client.responses.create(model="smol", input="hello", tools=[LOOK], stream=True)
        events = [event async for event in stream]
        done = [event for event in events if event.type == "response.function_call_arguments.done"]
        deltas = [event for event in events if event.type == "response.function_call_arguments.delta"]
        assert [event.arguments for event in done] == ['{"a": 1}']
        assert "".join(event.delta for event in deltas) == '{"a": 1}'
        assert {event.output_index for event in deltas} == {1}
        last = events[-1]
        assert last.type == "response.completed"
        assert [item.type for item in last.response.output] == ["message", "function_call"]


@in_loop
async def test_a_call_and_its_output_sent_back() -> None:
    fake = fake_that_says(*CALL)
    async with client_of(fake, knows_tools()) as client:
        answer = await client.responses.create(model="smol", input="hello", tools=[LOOK])
        (call,) = answer.output
        assert call.type == "function_call"
        again: ResponseInputParam = [
            {"role": "user", "content": "hello"},
            {
                "type": "function_call",
                "call_id": call.call_id,
                "name": call.name,
                "arguments": call.arguments,
            },
            {"type": "function_call_output", "call_id": call.call_id, "output": "found"},
        ]
        await client.responses.create(model="smol", input=again, tools=[LOOK])
        prompt = fake.bodies[-1]["text_input"]
        assert prompt == "tool:look user:hello assistant:call:look1 tool:found assistant:"


@in_loop
async def test_an_answer_can_be_sent_back() -> None:
    async with client_of(FakeTriton()) as client:
        answer = await client.responses.create(model="smol", input="hello")
        items: Any = [{"role": "user", "content": "hello"}, *(item.to_dict() for item in answer.output)]
        await client.responses.create(model="smol", input=[*items, {"role": "user", "content": "and?"}])


@in_loop
async def test_a_structured_answer() -> None:
    fake = FakeTriton()
    async with client_of(fake) as client:
        await client.responses.create(
            model="smol",
            input="hello",
            text={"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
        )
        assert json.loads(sampling(fake)["structured_outputs"]) == {"json": {"type": "object"}}


@in_loop
async def test_calls_beside_each_other_are_one_message() -> None:
    fake = FakeTriton()
    async with client_of(fake, knows_tools()) as client:
        items: Any = [
            {"role": "user", "content": "hello"},
            {"role": "assistant", "content": [{"type": "output_text", "text": "Well."}]},
            *(
                {"type": "function_call", "call_id": f"c{n}", "name": "look", "arguments": f'{{"a": {n}}}'}
                for n in (1, 2)
            ),
        ]
        outputs: Any = [{"type": "function_call_output", "call_id": f"c{n}", "output": "o"} for n in (1, 2)]
        await client.responses.create(model="smol", input=[*items, *outputs])
        prompt = fake.bodies[0]["text_input"]
        assert prompt == "user:hello assistant:Well.call:look1call:look2 tool:o tool:o assistant:"


@in_loop
async def test_an_answer_repeats_how_it_was_asked_for() -> None:
    fake = fake_that_says("{}")
    async with running(fake, prompts=knows_tools()) as gateway:
        choice = {"type": "function", "name": "look"}
        body = {"model": "smol", "input": "x", "tools": [LOOK], "tool_choice": choice, "temperature": 0.5}
        _, answer = await gateway.post(PATH, body)
        assert (answer["tool_choice"], answer["temperature"], answer["top_p"]) == (choice, 0.5, 1.0)
        assert answer["tools"][0]["name"] == "look"
        wanted = {"format": {"type": "json_schema", "name": "x", "schema": {}}}
        _, answer = await gateway.post(PATH, {"model": "smol", "input": "x", "text": wanted})
        assert answer["text"]["format"]["name"] == "x"
        assert answer["text"]["format"]["type"] == "json_schema"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [LOOK]}, "tools"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"max_output_tokens": 99}, "input"),
    ],
)
@in_loop
async def test_refusals(fields: dict[str, Any], param: str) -> None:
    fake = FakeTriton()
    async with running(fake) as gateway:
        status, body = await gateway.post(PATH, {"model": "smol", "input": "x", **fields})
        assert (status, body["error"]["param"]) == (400, param)
        assert fake.bodies == []
