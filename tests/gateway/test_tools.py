"""Tools through the whole gateway, with a model that writes calls as Hermes and Qwen do."""

from __future__ import annotations

import json
from typing import Any

import jinja2
import pytest

from sovereign_ai.gateway.templates import PromptBuilder, ToolTemplate
from sovereign_ai.gateway.wire.toolcalls import Form
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.running import in_loop, running, word_tokenizer

TOOL = {
    "type": "function",
    "function": {"name": "look", "description": "Looks.", "parameters": {"type": "object"}},
}
GO = {"type": "function", "function": {"name": "go"}}
CALL = ['<tool_call>{"name": ', '"look", "argu', 'ments": {"a"', ": 1}", "}</tool", "_call>"]
SOURCE = (
    "{% for t in tools or [] %}tool:{{ t.function.name }} {% endfor %}"
    "{% for m in messages %}{{ m.role }}:{{ m.content }}"
    "{% for c in m.tool_calls or [] %}call:{{ c.function.name }}{{ c.function.arguments.a }}{% endfor %} "
    "{% endfor %}assistant:"
)


def knows_tools(form: Form = "hermes") -> PromptBuilder:
    template = jinja2.Template(SOURCE)
    return PromptBuilder(word_tokenizer(), template, {}, tools=ToolTemplate(template, form))


def fake_that_says(*tokens: str) -> FakeTriton:
    fake = FakeTriton()
    fake.tokens = list(tokens)
    return fake


def sampling(fake: FakeTriton) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(fake.bodies[-1]["sampling_parameters"])
    return found


@in_loop
async def test_a_call() -> None:
    fake = fake_that_says(*CALL)
    async with running(fake, prompts=knows_tools()) as gateway:
        status, body = await gateway.chat(tools=[TOOL])
        assert status == 200
        choice = body["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None
        (call,) = choice["message"]["tool_calls"]
        assert call["function"] == {"name": "look", "arguments": '{"a": 1}'}
        assert fake.bodies[0]["text_input"] == "tool:look user:hello assistant:"


@in_loop
async def test_a_streamed_call() -> None:
    async with running(fake_that_says("Well. ", *CALL), prompts=knows_tools()) as gateway:
        *events, done = await gateway.stream(tools=[TOOL])
        assert done == "[DONE]"
        choices = [json.loads(event)["choices"][0] for event in events]
        assert "".join(choice["delta"].get("content", "") for choice in choices) == "Well."
        calls = [choice["delta"]["tool_calls"][0] for choice in choices if "tool_calls" in choice["delta"]]
        assert calls[0]["id"].startswith("call_")
        assert calls[0]["function"] == {"name": "look", "arguments": ""}
        assert [call["function"]["arguments"] for call in calls[1:]] == ['{"a"', ": 1}"]
        assert choices[-1]["finish_reason"] == "tool_calls"


@in_loop
async def test_a_call_that_the_limit_cuts_off_ends_by_length() -> None:
    async with running(fake_that_says(*CALL), prompts=knows_tools()) as gateway:
        _, body = await gateway.chat(tools=[TOOL], max_tokens=3)
        assert body["choices"][0]["finish_reason"] == "length"
        assert body["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == '{"a"'


@in_loop
async def test_several_choices_with_calls() -> None:
    async with running(fake_that_says(*CALL), prompts=knows_tools()) as gateway:
        _, body = await gateway.chat(tools=[TOOL], n=2)
        ids = [choice["message"]["tool_calls"][0]["id"] for choice in body["choices"]]
        assert len(set(ids)) == 2


@in_loop
async def test_no_calls_where_none_are_wanted() -> None:
    fake = fake_that_says(*CALL)
    async with running(fake, prompts=knows_tools()) as gateway:
        _, body = await gateway.chat(tools=[TOOL], tool_choice="none")
        assert body["choices"][0]["message"]["content"] == "".join(CALL)
        assert fake.bodies[0]["text_input"] == "user:hello assistant:"


@in_loop
async def test_a_call_by_name_is_written_under_a_grammar() -> None:
    fake = fake_that_says('{"a"', ": 1}")
    async with running(fake, prompts=knows_tools()) as gateway:
        choice = {"type": "function", "function": {"name": "look"}}
        _, body = await gateway.chat(tools=[TOOL, GO], tool_choice=choice)
        assert json.loads(sampling(fake)["structured_outputs"]) == {"json": {"type": "object"}}
        (call,) = body["choices"][0]["message"]["tool_calls"]
        assert call["function"] == {"name": "look", "arguments": '{"a": 1}'}


@pytest.mark.parametrize("parallel", [True, False])
@in_loop
async def test_a_required_call_is_written_under_a_grammar(parallel: bool) -> None:
    fake = fake_that_says('[{"name": "go", ', '"parameters": {}}]')
    async with running(fake, prompts=knows_tools()) as gateway:
        _, body = await gateway.chat(tools=[TOOL, GO], tool_choice="required", parallel_tool_calls=parallel)
        schema = json.loads(sampling(fake)["structured_outputs"])["json"]
        assert (schema["type"], schema.get("maxItems")) == ("array", None if parallel else 1)
        assert body["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "go"
        assert body["choices"][0]["finish_reason"] == "tool_calls"


STRICT = {**TOOL, "function": {**TOOL["function"], "strict": True}}  # type: ignore[dict-item]


@pytest.mark.parametrize("parallel", [True, False])
@in_loop
async def test_strict_calls_are_written_under_a_grammar_that_leaves_the_choice(parallel: bool) -> None:
    fake = fake_that_says(*CALL)
    async with running(fake, prompts=knows_tools()) as gateway:
        _, body = await gateway.chat(tools=[STRICT, GO], parallel_tool_calls=parallel)
        assert body["choices"][0]["finish_reason"] == "tool_calls"
        tag = json.loads(json.loads(sampling(fake)["structured_outputs"])["structural_tag"])["format"]
        assert tag["stop_after_first"] is not parallel
        assert [one["begin"] for one in tag["tags"]] == [
            f'<tool_call>\n{{"name": "{name}", "arguments": ' for name in ("look", "go")
        ]


@pytest.mark.parametrize(
    ("words", "param"),
    [("Unexpected keyword argument 'structured_outputs'", "tools"), ("Invalid grammar", "tools")],
)
@in_loop
async def test_strict_calls_that_the_engine_refuses(words: str, param: str) -> None:
    fake = FakeTriton()
    fake.refusal = (400, words)
    async with running(fake, prompts=knows_tools()) as gateway:
        status, body = await gateway.chat(tools=[STRICT])
        assert (status, body["error"]["param"]) == (400, param)


@in_loop
async def test_strict_calls_of_a_model_whose_calls_have_no_end_mark() -> None:
    async with running(FakeTriton(), prompts=knows_tools("llama")) as gateway:
        status, body = await gateway.chat(tools=[STRICT])
        assert (status, body["error"]["param"]) == (400, "tools[0]")
        assert "strict" in body["error"]["message"]


@in_loop
async def test_an_engine_without_grammars_cannot_be_made_to_call() -> None:
    fake = FakeTriton()
    fake.refusal = (400, "Unexpected keyword argument 'structured_outputs'")
    async with running(fake, prompts=knows_tools()) as gateway:
        status, body = await gateway.chat(tools=[TOOL], tool_choice="required")
        assert (status, body["error"]["param"]) == (400, "tool_choice")


@in_loop
async def test_mistrals_mark_is_a_special_token_and_its_ids_are_short() -> None:
    fake = fake_that_says("[TOOL_CALLS]", "look", '{"a": 1}')
    async with running(fake, prompts=knows_tools("mistral")) as gateway:
        _, body = await gateway.chat(tools=[TOOL])
        assert sampling(fake)["skip_special_tokens"] is False
        assert len(body["choices"][0]["message"]["tool_calls"][0]["id"]) == 9
        await gateway.chat()
        assert "skip_special_tokens" not in sampling(fake)


@in_loop
async def test_calls_and_results_are_sent_back() -> None:
    fake = FakeTriton()
    async with running(fake, prompts=knows_tools()) as gateway:
        call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"a": 7}'}}
        messages = [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": [{"type": "text", "text": "found"}], "tool_call_id": "c1"},
        ]
        status, _ = await gateway.chat(messages=messages, tools=[TOOL])
        assert status == 200
        assert fake.bodies[0]["text_input"] == "tool:look user:q assistant:call:look7 tool:found assistant:"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "custom"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "no spaces"}}]}, "tools[0].function.name"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
        ({"tools": [TOOL], "tool_choice": "always"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"parallel_tool_calls": True}, "parallel_tool_calls"),
        ({"tools": [TOOL], "logprobs": True}, "logprobs"),
        ({"tools": [TOOL], "response_format": {"type": "json_object"}}, "response_format"),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {"id": "1", "type": "function", "function": {"name": "x", "arguments": "[]"}}
                        ],
                    }
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
    ],
)
@in_loop
async def test_refusals(fields: dict[str, Any], param: str) -> None:
    fake = FakeTriton()
    async with running(fake, prompts=knows_tools()) as gateway:
        status, body = await gateway.chat(**fields)
        assert (status, body["error"]["param"]) == (400, param)
        assert fake.bodies == []


@in_loop
async def test_a_model_whose_template_knows_no_tools() -> None:
    async with running(FakeTriton()) as gateway:
        status, body = await gateway.chat(tools=[TOOL])
        assert (status, body["error"]["param"], body["error"]["code"]) == (
            400,
            "tools",
            "unsupported_parameter",
        )
