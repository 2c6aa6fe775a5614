"""The official JavaScript clients, unchanged, against the gateway: openai from npm, and @anthropic-ai/sdk."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.gateway.fake_triton import FakeTriton, vector
from tests.gateway.running import KEY, Running, in_loop, running, until
from tests.gateway.test_door import held, limited
from tests.gateway.test_tools import CALL, TOOL, fake_that_says, knows_tools, sampling
from tests.javascript.scripts import Scripts

TEXT = "The capital is Paris"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}


class Client:
    """Runs cases against a gateway, each in a process of its own."""

    def __init__(self, scripts: Scripts, gateway: Running, script: str = "openai.mjs") -> None:
        self._scripts, self._gateway, self._script = scripts, gateway, script

    async def run(self, case: str, **given: Any) -> Any:
        known = {"url": self._gateway.url, "key": KEY, "model": "smol", "question": "hello"}
        return await asyncio.to_thread(self._scripts.run, self._script, case, **{**known, **given})


@in_loop
async def test_models(scripts: Scripts) -> None:
    async with running(FakeTriton()) as gateway:
        found = await Client(scripts, gateway).run("models")
        assert found["ids"] == ["smol", "minilm"]
        assert (found["one"]["id"], found["one"]["created"]) == ("smol", 7)


@in_loop
async def test_chat(scripts: Scripts) -> None:
    async with running(FakeTriton()) as gateway:
        answer = await Client(scripts, gateway).run("chat", fields={"max_completion_tokens": 3})
        (choice,) = answer["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("The capital is", "length")
        assert answer["usage"]["total_tokens"] == 6


@in_loop
async def test_a_streamed_chat_with_usage(scripts: Scripts) -> None:
    async with running(FakeTriton()) as gateway:
        chunks = await Client(scripts, gateway).run("chat_stream")
        texts = [choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]]
        assert "".join(texts) == TEXT
        assert (chunks[-1]["choices"], chunks[-1]["usage"]["completion_tokens"]) == ([], 4)
        assert all(chunk["usage"] is None for chunk in chunks[:-1])


@in_loop
async def test_the_stream_helper(scripts: Scripts) -> None:
    async with running(FakeTriton()) as gateway:
        found = await Client(scripts, gateway).run("helper_stream")
        assert found["text"] == TEXT
        assert found["completion"]["choices"][0]["finish_reason"] == "stop"
        assert (found["events"]["content"], found["events"]["content.done"], found["events"]["end"]) == (
            len(TEXT.split()),
            1,
            1,
        )


@pytest.mark.parametrize("case", ["abort", "stream_abort", "leaving_the_loop"])
@in_loop
async def test_a_stream_that_is_left_frees_the_engine(scripts: Scripts, case: str) -> None:
    fake = FakeTriton()
    fake.gate = asyncio.Event()
    async with running(fake) as gateway:
        found = await Client(scripts, gateway).run(case)
        await until(lambda: fake.left == 1)
        await until(lambda: gateway.log())
        assert gateway.log()[0]["status"] == 499
        if case == "stream_abort":
            assert (found["aborted"], found["kind"]) == (True, "APIUserAbortError")


@in_loop
async def test_a_stream_that_breaks_raises(scripts: Scripts) -> None:
    fake = FakeTriton()
    fake.kill_after = 2
    async with running(fake) as gateway:
        error = await Client(scripts, gateway).run("broken_stream")
        assert error["isApiError"]
        assert "the engine stopped while answering" in error["message"]


@in_loop
async def test_completions(scripts: Scripts) -> None:
    async with running(FakeTriton()) as gateway:
        client = Client(scripts, gateway)
        assert (await client.run("completions"))["choices"][0]["text"] == TEXT
        chunks = await client.run("completions_stream")
        assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == TEXT


@in_loop
async def test_embeddings_in_base64_and_as_floats(scripts: Scripts) -> None:
    fake = FakeTriton()
    async with running(fake) as gateway:
        texts = ["a", "bcd", "ä and ö"]
        found = await Client(scripts, gateway).run("embeddings", embedder="minilm", texts=texts)
        for answer in found.values():
            assert [item["embedding"] for item in answer["data"]] == [vector(text) for text in texts]
        assert found["byDefault"]["usage"]["prompt_tokens"] == 5


@in_loop
async def test_streamed_tools(scripts: Scripts) -> None:
    async with running(fake_that_says("Well. ", *CALL), prompts=knows_tools()) as gateway:
        found = await Client(scripts, gateway).run("tools_stream", tools=[TOOL])
        message = found["completion"]["choices"][0]["message"]
        (call,) = message["tool_calls"]
        assert (message["content"], call["id"][:5]) == ("Well.", "call_")
        assert (call["function"]["name"], call["function"]["arguments"]) == ("look", '{"a": 1}')
        assert "".join(found["pieces"]) == '{"a": 1}'
        assert [done["name"] for done in found["done"]] == ["look"]
        assert found["completion"]["choices"][0]["finish_reason"] == "tool_calls"


@in_loop
async def test_the_tool_runner(scripts: Scripts) -> None:
    """It calls the function itself, and sends back what that returned."""
    fake = fake_that_says(*CALL)
    async with running(fake, prompts=knows_tools()) as gateway:
        found = await Client(scripts, gateway).run("tools_run", tools=[TOOL])
        assert found["asked"][0] == {"a": 1}
        assert [message["role"] for message in found["messages"][:3]] == ["user", "assistant", "tool"]
        assert "call:look1 tool:found" in fake.bodies[1]["text_input"]


@in_loop
async def test_a_response(scripts: Scripts) -> None:
    async with running(FakeTriton()) as gateway:
        answer = await Client(scripts, gateway).run("response", fields={"max_output_tokens": 9})
        assert (answer["output_text"], answer["status"]) == (TEXT, "completed")
        assert answer["usage"]["output_tokens"] == 4


@in_loop
async def test_a_streamed_response(scripts: Scripts) -> None:
    async with running(FakeTriton()) as gateway:
        client = Client(scripts, gateway)
        events = await client.run("response_stream")
        assert (events[0]["type"], events[-1]["type"]) == ("response.created", "response.completed")
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        found = await client.run("response_helper")
        assert (found["final"]["output_text"], found["pieces"]) == (TEXT, 4)


@in_loop
async def test_an_answer_by_a_schema(scripts: Scripts) -> None:
    fake = fake_that_says('{"city"', ': "Paris"}')
    async with running(fake) as gateway:
        choice = await Client(scripts, gateway).run("schema", schema=SCHEMA)
        assert json.loads(choice["message"]["content"]) == {"city": "Paris"}
        assert json.loads(sampling(fake)["structured_outputs"]) == {"json": SCHEMA}


@in_loop
async def test_error_classes(scripts: Scripts) -> None:
    fake = FakeTriton()
    async with running(fake) as gateway:
        found = await Client(scripts, gateway).run("errors")
        assert {name: error["kind"] for name, error in found.items()} == {
            "wrong_key": "AuthenticationError",
            "no_model": "NotFoundError",
            "chat_no_model": "NotFoundError",
            "bad_field": "BadRequestError",
            "bad_value": "BadRequestError",
        }
        assert (found["bad_field"]["param"], found["bad_field"]["code"]) == ("store", "unsupported_parameter")
        assert found["chat_no_model"]["code"] == "model_not_found"
        fake.kill_after = 0
        failed = await Client(scripts, gateway).run("error")
        assert (failed["kind"], failed["status"]) == ("InternalServerError", 502)


@in_loop
async def test_a_rate_limit_without_retries(scripts: Scripts) -> None:
    async with running(FakeTriton(), keys=limited(requests_per_minute=1)) as gateway:
        assert (await gateway.chat())[0] == 200
        error = await Client(scripts, gateway).run("error")
        assert (error["kind"], error["status"]) == ("RateLimitError", 429)
        assert error["code"] == "rate_limit_exceeded"


@in_loop
async def test_a_spent_budget_is_not_tried_again(scripts: Scripts) -> None:
    async with running(FakeTriton(), keys=limited(tokens_per_day=1)) as gateway:
        error = await Client(scripts, gateway).run("error", retries=3)
        assert (error["kind"], error["code"]) == ("RateLimitError", "insufficient_quota")
        assert len(gateway.log()) == 1


@in_loop
async def test_a_rate_limit_that_passes_is_waited_for(scripts: Scripts) -> None:
    fake = FakeTriton()
    fake.gate = asyncio.Event()
    async with running(fake, keys=limited(concurrency=1)) as gateway:
        stream = await held(gateway, fake)
        asking = asyncio.create_task(Client(scripts, gateway).run("chat", retries=2))
        await until(lambda: gateway.log())
        fake.gate.set()
        assert (await asking)["choices"][0]["message"]["content"] == TEXT
        assert [line["status"] for line in gateway.log()] == [429, 200, 200]
        await stream


@in_loop
async def test_an_engine_that_comes_back_is_waited_for(scripts: Scripts) -> None:
    fake = FakeTriton()
    fake.ready = False
    async with running(fake) as gateway:
        asking = asyncio.create_task(Client(scripts, gateway).run("chat", retries=4))
        await until(lambda: gateway.log())
        fake.ready = True
        assert (await asking)["choices"][0]["message"]["content"] == TEXT
        statuses = [line["status"] for line in gateway.log()]
        assert (statuses[0], statuses[-1]) == (503, 200)


@in_loop
async def test_headers(scripts: Scripts) -> None:
    async with running(FakeTriton(), keys=limited(requests_per_minute=9)) as gateway:
        found = await Client(scripts, gateway).run("headers")
        assert found["headers"]["x-ratelimit-limit-requests"] == "9"
        assert found["headers"]["x-ratelimit-remaining-requests"] == "8"


@in_loop
async def test_several_at_the_same_time(scripts: Scripts) -> None:
    async with running(FakeTriton()) as gateway:
        assert await Client(scripts, gateway).run("at_the_same_time") == [TEXT] * 8


# Anthropic's client


@in_loop
async def test_messages(scripts: Scripts) -> None:
    async with running(FakeTriton()) as gateway:
        client = Client(scripts, gateway, "anthropic.mjs")
        for case in ("message", "with_an_api_key"):
            answer = await client.run(case)
            assert (answer["content"], answer["stop_reason"]) == (
                [{"type": "text", "text": TEXT}],
                "end_turn",
            )
            assert answer["usage"]["output_tokens"] == 4
        assert (await client.run("count"))["input_tokens"] == 3


@in_loop
async def test_a_streamed_message(scripts: Scripts) -> None:
    async with running(FakeTriton()) as gateway:
        client = Client(scripts, gateway, "anthropic.mjs")
        events = await client.run("stream")
        assert (events[0]["type"], events[-1]["type"]) == ("message_start", "message_stop")
        found = await client.run("helper_stream")
        assert "".join(found["pieces"]) == found["final"]["content"][0]["text"] == TEXT
        assert found["final"]["usage"]["output_tokens"] == 4


@in_loop
async def test_a_message_that_is_left_frees_the_engine(scripts: Scripts) -> None:
    fake = FakeTriton()
    fake.gate = asyncio.Event()
    async with running(fake) as gateway:
        found = await Client(scripts, gateway, "anthropic.mjs").run("abort")
        assert found == {"kind": "APIUserAbortError"}
        await until(lambda: fake.left == 1)


@in_loop
async def test_a_streamed_tool_use(scripts: Scripts) -> None:
    async with running(fake_that_says(*CALL), prompts=knows_tools()) as gateway:
        tools = [{"name": "look", "input_schema": {"type": "object"}}]
        client = Client(scripts, gateway, "anthropic.mjs")
        answer = await client.run("tools", tools=tools, fields={"max_tokens": 20})
        (use,) = answer["content"]
        assert (use["type"], use["name"], use["input"]) == ("tool_use", "look", {"a": 1})
        assert answer["stop_reason"] == "tool_use"


@in_loop
async def test_errors_and_models_in_anthropics_words(scripts: Scripts) -> None:
    async with running(FakeTriton()) as gateway:
        client = Client(scripts, gateway, "anthropic.mjs")
        found = await client.run("errors")
        assert (found["no_model"]["kind"], found["no_model"]["type"]) == ("NotFoundError", "not_found_error")
        assert (found["bad_field"]["kind"], found["bad_field"]["type"]) == (
            "BadRequestError",
            "invalid_request_error",
        )
        assert await client.run("models") == ["smol", "minilm"]
