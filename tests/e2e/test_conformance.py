"""The API as its official clients see it, on the real engine.

The model is small and answers badly: what is judged is the protocol, types, counts, finish reasons and that
the same comes out twice, not the wit. Tools are judged with a chat template of our own, because the model's
knows none, and with calls that a grammar makes the model write.
"""

from __future__ import annotations

import asyncio
import functools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import anthropic
import jinja2
import msgspec
import openai
import pytest
import requests
import uvicorn
from anthropic.types import MessageParam
from openai.types.chat import ChatCompletionMessageParam, ChatCompletionToolParam
from openai.types.responses import FunctionToolParam
from tokenizers import Tokenizer

from sovereign_ai.gateway.app import create_app
from sovereign_ai.gateway.ledger import Ledger
from sovereign_ai.gateway.templates import PromptBuilder, ToolTemplate
from sovereign_ai.spec import Routes
from tests.e2e.conftest import Stack, free_port, model_folder, wait_for

pytestmark = pytest.mark.engine

MODEL, EMBEDDER = "smollm2-135m", "minilm-l6-v2"
QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "What is the capital of France?"}]
ASKED: list[MessageParam] = [{"role": "user", "content": "What is the capital of France?"}]
ANSWER = "The capital of France is Paris."
GREEDY: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "temperature": 0}


@pytest.fixture(scope="module")
def stack(first_up: tuple[Stack, str]) -> Stack:
    """The running stack, asked once: its state costs a second, and no test here changes it."""
    stack, _ = first_up
    if stack.status()["state"] not in ("ready", "starting", "degraded"):
        stack.up()
    stack.wait_ready()
    stack.ensure_key()
    return stack


@functools.cache
def openai_client(url: str, key: str) -> openai.OpenAI:
    """One for all tests: making one costs more than most requests."""
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=120)


@functools.cache
def anthropic_client(url: str, key: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, auth_token=key, api_key=None, max_retries=0, timeout=120)


@pytest.fixture
def client(stack: Stack) -> openai.OpenAI:
    return openai_client(stack.url, stack.key)


@pytest.fixture
def claude(stack: Stack) -> anthropic.Anthropic:
    return anthropic_client(stack.url, stack.key)


def chat(client: openai.OpenAI, **fields: Any) -> Any:
    extra = {name: fields.pop(name) for name in list(fields) if name in ENGINES_OWN}
    return client.chat.completions.create(**{**GREEDY, **fields}, extra_body=extra)


ENGINES_OWN = ("top_k", "min_p", "repetition_penalty", "min_tokens", "ignore_eos", "stop_token_ids",
               "skip_special_tokens", "include_stop_str_in_output")  # fmt: skip


def text_of(answer: Any) -> str:
    return str(answer.choices[0].message.content)


def post(stack: Stack, path: str, **body: Any) -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {stack.key}"}
    answer = requests.post(stack.url + path, json=body, headers=headers, timeout=120)
    return answer.status_code, answer.json()


# several choices


@pytest.mark.parametrize("n", [1, 3, 8])
def test_so_many_choices(client: openai.OpenAI, n: int) -> None:
    answer = chat(client, n=n, max_tokens=4)
    assert [choice.index for choice in answer.choices] == list(range(n))
    assert {choice.message.content for choice in answer.choices} == {"The capital of France"}
    assert answer.usage.completion_tokens == 4 * n
    assert answer.usage.prompt_tokens == 37


def test_choices_of_a_seed_differ_and_come_again(client: openai.OpenAI) -> None:
    def texts() -> list[str]:
        answer = chat(client, n=3, temperature=1.5, seed=7, max_tokens=12)
        return [choice.message.content for choice in answer.choices]

    first = texts()
    assert len(set(first)) > 1
    assert texts() == first


def test_choices_are_streamed_side_by_side(client: openai.OpenAI) -> None:
    chunks = list(chat(client, n=3, stream=True, stream_options={"include_usage": True}))
    for index in range(3):
        mine = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
        assert "".join(choice.delta.content or "" for choice in mine) == ANSWER
        assert [choice.finish_reason for choice in mine if choice.finish_reason] == ["stop"]
    assert chunks[-1].usage.completion_tokens == 24


def test_several_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="One, two, three,", n=2, temperature=0, max_tokens=3
    )
    assert answer.choices[0].text == answer.choices[1].text
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 6


# log-probabilities


@pytest.mark.parametrize("top", [0, 1, 5, 20])
def test_log_probabilities(client: openai.OpenAI, top: int) -> None:
    answer = chat(client, logprobs=True, top_logprobs=top, max_tokens=6)
    content = answer.choices[0].logprobs.content
    assert len(content) == 6
    assert b"".join(bytes(token.bytes) for token in content).decode() == text_of(answer)
    for token in content:
        assert len(token.top_logprobs) == top
        assert token.logprob <= 0
        assert [best.logprob for best in token.top_logprobs] == sorted(
            (best.logprob for best in token.top_logprobs), reverse=True
        )
        if top:  # greedy: the most probable is the one that came
            assert token.top_logprobs[0].token == token.token


def test_log_probabilities_are_streamed(client: openai.OpenAI) -> None:
    whole = chat(client, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    chunks = list(chat(client, logprobs=True, top_logprobs=2, stream=True))
    streamed = [
        token
        for chunk in chunks
        for choice in chunk.choices
        if choice.logprobs
        for token in choice.logprobs.content
    ]
    assert [token.token for token in streamed] == [token.token for token in whole]
    assert [token.logprob for token in streamed] == pytest.approx(
        [token.logprob for token in whole], abs=0.01
    )


@pytest.mark.parametrize("top", [0, 1, 5])
def test_log_probabilities_of_completions(client: openai.OpenAI, top: int) -> None:
    answer = client.completions.create(
        model=MODEL, prompt="One, two, three,", logprobs=top, temperature=0, max_tokens=4
    )
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.tokens is not None
    assert found.text_offset is not None
    assert "".join(found.tokens) == answer.choices[0].text
    assert found.text_offset == [len("".join(found.tokens[:n])) for n in range(4)]
    assert (found.top_logprobs is None) == (top == 0)


# sampling


def test_a_token_that_must_come(client: openai.OpenAI, stack: Stack) -> None:
    _, found = post(stack, "/v1/tokenize", model=MODEL, prompt=" cat")
    (token,) = found["tokens"]
    answer = chat(client, logit_bias={str(token): 100}, max_tokens=3)
    assert text_of(answer) == " cat cat cat"


def test_a_token_that_must_not_come(client: openai.OpenAI, stack: Stack) -> None:
    _, found = post(stack, "/v1/tokenize", model=MODEL, prompt="The")
    answer = chat(client, logit_bias={str(found["tokens"][0]): -100}, max_tokens=3)
    assert not text_of(answer).startswith("The")


@pytest.mark.parametrize(
    "fields",
    [{"top_k": 1, "temperature": 1}, {"min_p": 1.0, "temperature": 1}, {"top_p": 0.0001, "temperature": 1}],
)
def test_what_leaves_one_token_to_choose_from_is_greedy(
    client: openai.OpenAI, fields: dict[str, Any]
) -> None:
    assert text_of(chat(client, **fields)) == ANSWER


@pytest.mark.parametrize(
    "fields",
    [
        {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0},
        {"repetition_penalty": 1.9},
    ],
)
def test_penalties_have_an_effect_and_come_again(client: openai.OpenAI, fields: dict[str, Any]) -> None:
    """A text that repeats itself goes on so, unless that is made dear."""
    plain, first, second = (
        client.completions.create(
            model=MODEL, prompt="yes no yes no yes no", temperature=0, max_tokens=12, extra_body=given
        )
        .choices[0]
        .text
        for given in ({}, fields, fields)
    )
    assert first == second
    assert first != plain


def test_the_end_may_be_ignored(client: openai.OpenAI) -> None:
    answer = chat(client, ignore_eos=True, max_tokens=12)
    assert (answer.choices[0].finish_reason, answer.usage.completion_tokens) == ("length", 12)


def test_a_least_length(client: openai.OpenAI) -> None:
    answer = chat(client, min_tokens=12, max_tokens=16)
    assert 12 <= answer.usage.completion_tokens <= 16


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"stop": " France"}, "The capital of"),
        ({"stop": ["nothing", " is"]}, "The capital of France"),
        ({"stop": " is", "include_stop_str_in_output": True}, "The capital of France is"),
    ],
)
def test_stops(client: openai.OpenAI, fields: dict[str, Any], text: str) -> None:
    answer = chat(client, **fields)
    assert (text_of(answer), answer.choices[0].finish_reason) == (text, "stop")
    chunks = list(chat(client, stream=True, **fields))
    assert "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices) == text


def test_stops_at_a_token(client: openai.OpenAI, stack: Stack) -> None:
    _, found = post(stack, "/v1/tokenize", model=MODEL, prompt=" France")
    answer = chat(client, stop_token_ids=found["tokens"])
    assert text_of(answer).startswith("The capital of")
    assert answer.usage.completion_tokens == 4


# JSON


SCHEMAS: list[tuple[dict[str, Any], type]] = [
    ({"type": "integer"}, int),
    ({"type": "boolean"}, bool),
    ({"enum": ["red", "green"]}, str),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}, list),
    (
        {
            "type": "object",
            "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer"}},
            "required": ["name", "age"],
            "additionalProperties": False,
        },
        dict,
    ),
]


@pytest.mark.parametrize(("schema", "kind"), SCHEMAS)
def test_answers_by_a_schema(client: openai.OpenAI, schema: dict[str, Any], kind: type) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    answer = chat(client, response_format=wanted, max_tokens=48)
    value = json.loads(text_of(answer))
    assert kind is not dict or set(value) == {"name", "age"}
    assert isinstance(value, kind)


def test_a_streamed_answer_by_a_schema(client: openai.OpenAI) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMAS[4][0]}}
    chunks = list(chat(client, response_format=wanted, max_tokens=48, stream=True))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert set(json.loads(text)) == {"name", "age"}


def test_some_json_object(client: openai.OpenAI) -> None:
    answer = chat(client, response_format={"type": "json_object"}, max_tokens=32)
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text_of(answer)), dict)
    assert text_of(answer).lstrip().startswith("{")


@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"type": "string", "pattern": "("}])
def test_a_schema_that_cannot_be_is_refused_by_name(client: openai.OpenAI, schema: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    assert caught.value.param == "response_format"


# what is refused, by name


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 9}, "n"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"49152": 1}}, "logit_bias"),
        ({"stop_token_ids": [60000]}, "stop_token_ids"),
        ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"store": True}, "store"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "look"}}]}, "tools"),
        ({"audio": {"voice": "x", "format": "wav"}}, "audio"),
    ],
)
def test_refused_by_name(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, **fields)
    assert caught.value.param == param
    assert param in str(caught.value)


# tools, with a template that knows them


TEMPLATE = (
    "{% if tools %}<|im_start|>system\nCall one of: {{ tools | tojson }}"
    ' with <tool_call>{"name": …, "arguments": …}</tool_call><|im_end|>\n{% endif %}'
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
PARAMETERS: dict[str, object] = {
    "type": "object",
    "properties": {
        "city": {"enum": ["Paris", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}  # fmt: skip
WEATHER: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather of a city", "parameters": PARAMETERS},
}
CLOCK: ChatCompletionToolParam = {
    "type": "function",
    "function": {"name": "clock", "parameters": {"type": "object", "additionalProperties": False}},
}  # fmt: skip


@pytest.fixture(scope="module")
def tool_url(stack: Stack) -> Iterator[str]:
    """A second gateway in front of the same engine, in this process, with the template above."""
    routes = msgspec.json.decode((stack.home / "run" / "routes.json").read_bytes(), type=Routes)
    routes = Routes(routes=tuple(route for route in routes.routes if route.model == MODEL))
    prompts = {MODEL: tool_prompts(model_folder(stack, MODEL))}
    servers: list[uvicorn.Server] = []
    port = free_port()

    def serve() -> None:
        with Ledger(stack.home / "ledger.sqlite") as keys:
            app = create_app(routes, keys, max_body_bytes=1 << 20, write=lambda _: None, prompts=prompts)
            servers.append(uvicorn.Server(uvicorn.Config(app, port=port, lifespan="on", log_config=None)))
            asyncio.run(servers[0].serve())

    thread = threading.Thread(target=serve)
    thread.start()
    wait_for(lambda: servers and servers[0].started, 10, "the second gateway")
    yield f"http://127.0.0.1:{port}"
    servers[0].should_exit = True
    thread.join()


def tool_prompts(folder: Path) -> PromptBuilder:
    template = jinja2.Template(TEMPLATE)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return PromptBuilder(tokenizer, template, {}, tools=ToolTemplate(template, "hermes"))


@pytest.fixture
def caller(stack: Stack, tool_url: str) -> openai.OpenAI:
    return openai_client(tool_url, stack.key)


def valid(arguments: str) -> bool:
    found = json.loads(arguments)
    return set(found) == {"city", "days"} and found["city"] in ("Paris", "Rome") and 1 <= found["days"] <= 9


def test_a_named_call(caller: openai.OpenAI) -> None:
    answer = chat(
        caller,
        tools=[WEATHER, CLOCK],
        tool_choice={"type": "function", "function": {"name": "weather"}},
        max_tokens=40,
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "weather"
    assert valid(call.function.arguments)
    assert answer.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("parallel", [True, False])
def test_a_required_call(caller: openai.OpenAI, parallel: bool) -> None:
    answer = chat(
        caller,
        tools=[WEATHER],
        tool_choice="required",
        parallel_tool_calls=parallel,
        max_tokens=64,
    )
    calls = answer.choices[0].message.tool_calls
    assert calls[0].function.name == "weather"
    assert valid(calls[0].function.arguments)
    assert parallel or len(calls) == 1


def test_a_streamed_call(caller: openai.OpenAI) -> None:
    given: dict[str, Any] = {
        "tools": [WEATHER],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_tokens": 64,
    }
    whole = chat(caller, **given).choices[0].message.tool_calls[0].function
    deltas = [
        call
        for chunk in chat(caller, stream=True, **given)
        for choice in chunk.choices
        for call in choice.delta.tool_calls or ()
    ]
    assert (deltas[0].function.name, bool(deltas[0].id)) == ("weather", True)
    assert len(deltas) > 3
    assert "".join(call.function.arguments for call in deltas) == whole.arguments


def test_a_free_choice_of_tools(caller: openai.OpenAI) -> None:
    answer = chat(caller, tools=[WEATHER, CLOCK], max_tokens=24)
    message = answer.choices[0].message
    assert message.tool_calls or message.content
    assert answer.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_a_strict_call_that_the_model_may_choose(caller: openai.OpenAI) -> None:
    """The beginning of a call is made likely; that it follows the schema is the grammar's."""
    strict: Any = {"type": "function", "function": {**WEATHER["function"], "strict": True}}
    messages: list[ChatCompletionMessageParam] = [
        {"role": "user", "content": "Answer with <tool_call> and nothing else, as in <tool_call>"}
    ]
    answer = chat(caller, messages=messages, tools=[strict], max_tokens=64)
    for call in answer.choices[0].message.tool_calls or ():
        assert valid(call.function.arguments)


def test_a_calls_result_is_sent_back(caller: openai.OpenAI) -> None:
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "clock", "arguments": "{}"},
    }
    messages = [
        *QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "noon"},
    ]
    answer = chat(caller, messages=messages, tools=[CLOCK], max_tokens=8)
    assert answer.usage.completion_tokens <= 8


def test_a_call_in_anthropics_words(stack: Stack, tool_url: str) -> None:
    answer = anthropic_client(tool_url, stack.key).messages.create(
        model=MODEL,
        messages=ASKED,
        max_tokens=64,
        tools=[{"name": "weather", "input_schema": PARAMETERS}],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        extra_body={"temperature": 0},
    )
    (use,) = answer.content
    assert use.type == "tool_use"
    assert valid(json.dumps(use.input))
    assert answer.stop_reason == "tool_use"


def test_a_call_in_the_responses_api(caller: openai.OpenAI) -> None:
    tool: FunctionToolParam = {
        "type": "function",
        "name": "weather",
        "parameters": PARAMETERS,
        "strict": True,
    }
    with caller.responses.stream(
        model=MODEL,
        input="Rome?",
        temperature=0,
        tools=[tool],
        tool_choice={"type": "function", "name": "weather"},
        max_output_tokens=64,
    ) as stream:
        answer = stream.until_done().get_final_response()
    (item,) = answer.output
    assert item.type == "function_call"
    assert valid(item.arguments)


# the Responses API


def test_a_response(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input="What is the capital of France?", temperature=0)
    assert (answer.output_text, answer.status) == (ANSWER, "completed")
    assert answer.usage is not None
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (37, 8)


def test_a_streamed_response(client: openai.OpenAI) -> None:
    events = list(
        client.responses.create(
            model=MODEL,
            input=[{"role": "user", "content": "What is the capital of France?"}],
            temperature=0,
            stream=True,
        )
    )
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == ANSWER
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")


def test_a_response_that_is_cut_off(client: openai.OpenAI) -> None:
    answer = client.responses.create(model=MODEL, input="Hello", max_output_tokens=2)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"


def test_a_response_by_a_schema(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model=MODEL,
        input="Name a person.",
        instructions="Answer in JSON.",
        text={"format": {"type": "json_schema", "name": "person", "schema": SCHEMAS[4][0]}},
        temperature=0,
        max_output_tokens=48,
    )
    assert set(json.loads(answer.output_text)) == {"name", "age"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "z"}}}}, "text.format"),
    ],
)
def test_responses_refused_by_name(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(model=MODEL, input="x", **fields)
    assert caught.value.param == param


# Anthropic's Messages API


def said(answer: anthropic.types.Message) -> str:
    return "".join(block.text for block in answer.content if block.type == "text")


def test_a_message(claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(model=MODEL, messages=ASKED, max_tokens=20, extra_body={"temperature": 0})
    assert (said(answer), answer.stop_reason) == (ANSWER, "end_turn")
    assert (answer.usage.input_tokens, answer.usage.output_tokens) == (37, 8)


def test_a_streamed_message(claude: anthropic.Anthropic) -> None:
    with claude.messages.stream(
        model=MODEL, messages=ASKED, max_tokens=20, extra_body={"temperature": 0}
    ) as stream:
        assert "".join(stream.text_stream) == ANSWER
        answer = stream.get_final_message()
    assert answer.usage.output_tokens == 8


def test_a_message_that_is_cut_off(claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(model=MODEL, messages=ASKED, max_tokens=2)
    assert (answer.stop_reason, answer.usage.output_tokens) == ("max_tokens", 2)


def test_a_messages_stop_sequence(claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(
        model=MODEL,
        messages=ASKED,
        max_tokens=20,
        stop_sequences=[" Berlin", " is"],
        extra_body={"temperature": 0},
    )
    assert said(answer) == "The capital of France"
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", " is")


def test_a_message_that_is_begun(claude: anthropic.Anthropic) -> None:
    begun: MessageParam = {"role": "assistant", "content": "The capital of France is"}
    answer = claude.messages.create(
        model=MODEL, messages=[*ASKED, begun], max_tokens=5, extra_body={"temperature": 0}
    )
    assert "Paris" in said(answer)


def test_counted_as_it_is_charged(claude: anthropic.Anthropic) -> None:
    counted = claude.messages.count_tokens(model=MODEL, messages=ASKED, system="Be brief.")
    answer = claude.messages.create(model=MODEL, messages=ASKED, system="Be brief.", max_tokens=1)
    assert counted.input_tokens == answer.usage.input_tokens


def test_a_message_refused_by_name(claude: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError, match="thinking"):
        claude.messages.create(
            model=MODEL,
            messages=ASKED,
            max_tokens=5,
            extra_body={"thinking": {"type": "enabled", "budget_tokens": 1024}},
        )
    with pytest.raises(anthropic.NotFoundError):
        claude.messages.create(model="nobody", messages=ASKED, max_tokens=5)


# texts and tokens


def test_rerank(stack: Stack) -> None:
    documents = ["the stock market", "a kitten", {"text": "a small cat"}]
    status, answer = post(stack, "/v1/rerank", model=EMBEDDER, query="a cat", documents=documents)
    assert status == 200
    assert [result["index"] for result in answer["results"]] == [2, 1, 0]
    assert all(-1 <= result["relevance_score"] <= 1.001 for result in answer["results"])
    _, best = post(
        stack, "/v1/rerank", model=EMBEDDER, query="a cat", documents=documents, top_n=1,
        return_documents=False,
    )  # fmt: skip
    assert [set(result) for result in best["results"]] == [{"index", "relevance_score"}]


def test_rerank_is_the_cosine_of_embeddings(client: openai.OpenAI, stack: Stack) -> None:
    one, other = (
        item.embedding for item in client.embeddings.create(model=EMBEDDER, input=["cat", "dog"]).data
    )
    _, answer = post(stack, "/v1/rerank", model=EMBEDDER, query="cat", documents=["dog"])
    cosine = sum(a * b for a, b in zip(one, other, strict=True))
    assert answer["results"][0]["relevance_score"] == pytest.approx(cosine, abs=1e-4)


@pytest.mark.parametrize("text", ["One, two.", "naïve 🙂 日本", "<|im_start|>user\nHi<|im_end|>", ""])
def test_tokens_and_back(stack: Stack, text: str) -> None:
    status, found = post(stack, "/v1/tokenize", model=MODEL, prompt=text)
    assert (status, found["count"]) == (200, len(found["tokens"]))
    assert post(stack, "/v1/detokenize", model=MODEL, tokens=found["tokens"]) == (200, {"prompt": text})


def test_tokens_of_a_conversation_are_what_is_charged(client: openai.OpenAI, stack: Stack) -> None:
    _, found = post(stack, "/v1/tokenize", model=MODEL, messages=QUESTION)
    assert found["count"] == chat(client, max_tokens=1).usage.prompt_tokens == 37
    assert found["max_model_len"] == 8192


# counts


@pytest.mark.parametrize("limit", [1, 7])
def test_usage_is_the_same_streamed_or_not(client: openai.OpenAI, limit: int) -> None:
    whole = chat(client, max_tokens=limit).usage
    *_, last = chat(client, max_tokens=limit, stream=True, stream_options={"include_usage": True})
    assert last.usage.model_dump() == whole.model_dump()
    assert whole.completion_tokens == limit


def test_an_answer_can_be_sent_back(client: openai.OpenAI) -> None:
    message = chat(client).choices[0].message.model_dump()
    answer = chat(
        client,
        messages=[*QUESTION, cast(ChatCompletionMessageParam, message), *QUESTION],
        max_tokens=4,
    )
    assert answer.usage.completion_tokens == 4
