"""Requests that pass through to servers that speak OpenAI's protocol, on real sockets, before fakes."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from msgspec.structs import replace

from sovereign_ai.config import GatewaySettings, RouteLimits
from sovereign_ai.errors import UsageError
from sovereign_ai.gateway.admission import Limits
from sovereign_ai.spec import Endpoint, Route, Routes
from tests.gateway.fake_openai import WORDS, FakeOpenAI
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.running import IMPATIENT, Running, in_loop, key_table, running, until

TEXT = "".join(WORDS)
CHAT = {"model": "far", "messages": [{"role": "user", "content": "Where is it?"}]}
COMPLETION = {"model": "far", "prompt": "Tell me: "}
USAGE = {"stream_options": {"include_usage": True}}


def route(*fakes: FakeOpenAI, engine: Literal["vllm", "openai"] = "vllm", **more: Any) -> Route:
    endpoints = tuple(
        Endpoint(name=f"far-{i}", url=fake.url + "/v1", engine=engine, model=more.get("upstream", "far"))
        for i, fake in enumerate(fakes)
    )
    return Route(
        model="far",
        task="chat",
        context=0,
        folder="",
        endpoints=endpoints,
        continuations=more.get("continuations", 2),
    )


@asynccontextmanager
async def passing(
    *fakes: FakeOpenAI, settings: GatewaySettings = IMPATIENT, keys: Any = None, **more: Any
) -> AsyncIterator[Running]:
    async with AsyncExitStack() as stack:
        for fake in fakes:
            await stack.enter_async_context(fake.listening())
        here = running(FakeTriton(), settings=settings, keys=keys, more=(route(*fakes, **more),))
        yield await stack.enter_async_context(here)


async def stream(
    gateway: Running, body: dict[str, Any], path: str = "/v1/chat/completions"
) -> list[dict[str, Any]]:
    """The events, without [DONE]; the last one is an error where the stream was broken off."""
    sent = {**body, "stream": True}
    async with gateway.session.post(gateway.url + path, json=sent) as response:
        assert response.status == 200, await response.text()
        assert response.content_type == "text/event-stream"
        text = (await response.text()).replace("\r\n", "\n")
    payloads = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
    assert (payloads[-1] == "[DONE]") == ("error" not in payloads[-1]), payloads
    return [json.loads(one) for one in payloads if one != "[DONE]"]


def text_of(events: list[dict[str, Any]]) -> str:
    choices = [choice for event in events for choice in event.get("choices", ())]
    return "".join(c["text"] if "text" in c else c["delta"].get("content", "") for c in choices)


def billed(gateway: Running) -> tuple[int, int]:
    line = gateway.log()[-1]
    return line["prompt_tokens"], line["completion_tokens"]


@in_loop
async def test_bytes_pass_untouched() -> None:
    fake = FakeOpenAI()
    fake.extra = {"something": {"of": "tomorrow"}}
    async with passing(fake) as gateway:
        body = b'{"new_field" : 1,  "model":"far","messages":[{"role":"user","content":"Hi"}] }'
        status, answer = await gateway.post("/v1/chat/completions", body)
        assert (status, answer["choices"][0]["message"]["content"]) == (200, TEXT)
        assert answer["something"] == {"of": "tomorrow"}
        assert fake.raw == [body]
        assert billed(gateway) == (1, 6)
        events = await stream(gateway, {**CHAT, **USAGE})
        assert text_of(events) == TEXT
        assert events[-1]["usage"]["completion_tokens"] == 6
        assert gateway.log()[-1]["endpoint"] == "far-0"
        assert gateway.log()[-1]["ttft_s"] is not None


@pytest.mark.parametrize("framing", ["crlf", "torn", "plain"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@in_loop
async def test_usage_that_was_not_asked_for_is_counted_and_kept_back(framing: str, path: str) -> None:
    fake = FakeOpenAI()
    fake.crlf, fake.torn = framing == "crlf", framing == "torn"
    async with passing(fake) as gateway:
        asked = CHAT if "chat" in path else COMPLETION
        events = await stream(gateway, asked, path)
        assert text_of(events) == TEXT
        assert not any("usage" in event for event in events)
        assert fake.bodies[0]["stream_options"] == {"include_usage": True}
        assert billed(gateway) == (3 if "chat" in path else 2, 6)


@in_loop
async def test_the_model_is_called_what_the_endpoint_calls_it() -> None:
    fake = FakeOpenAI(key="")
    async with passing(fake, upstream="org/Far-7B") as gateway:
        await gateway.post("/v1/chat/completions", CHAT)
        await gateway.post("/v1/embeddings", {"model": "far", "input": "x"})
        assert [body["model"] for body in fake.bodies] == ["org/Far-7B"] * 2
        assert billed(gateway) == (4, 0)
        assert fake.paths == ["/v1/chat/completions", "/v1/embeddings"]
        _, listed = await gateway.get("/v1/models")
        assert "far" in [model["id"] for model in listed["data"]]


@in_loop
async def test_what_the_endpoint_refuses_the_client_reads() -> None:
    fake = FakeOpenAI()
    async with passing(fake) as gateway:
        fake.fail_with = 422
        assert (await gateway.post("/v1/chat/completions", CHAT))[1]["error"]["message"] == "no"
        assert gateway.log()[-1]["status"] == 422
        fake.fail_with = 429
        async with gateway.session.post(gateway.url + "/v1/chat/completions", json=CHAT) as response:
            assert (response.status, response.headers["Retry-After"]) == (429, "7")
        fake.fail_with = 401
        status, answer = await gateway.post("/v1/chat/completions", CHAT)
        assert (status, answer["error"]["code"]) == (502, "engine_refused")
        assert billed(gateway)[1] == 0


@in_loop
async def test_an_endpoint_that_fails_is_followed_by_another() -> None:
    bad, good = FakeOpenAI(), FakeOpenAI()
    bad.fail_with = 500
    async with passing(bad, good) as gateway:
        for _ in range(4):
            status, answer = await gateway.post("/v1/chat/completions", CHAT)
            assert (status, answer["choices"][0]["message"]["content"]) == (200, TEXT)
        assert sum(line["retries"] for line in gateway.log()) >= 1
        good.fail_with = 503
        assert (await gateway.post("/v1/chat/completions", CHAT))[0] == 502


@in_loop
async def test_nobody_there() -> None:
    fake = FakeOpenAI()
    fake.healthy = False
    async with passing(fake) as gateway:
        status, answer = await gateway.post("/v1/chat/completions", CHAT)
        assert (status, answer["error"]["code"]) == (503, "engine_unavailable")
        assert (await gateway.get("/readyz"))[1]["models"] == ["far"]


@pytest.mark.parametrize("how", ["killed", "error", "an end too early"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@in_loop
async def test_an_answer_that_breaks_off_is_continued(how: str, path: str) -> None:
    bad, good = FakeOpenAI(), FakeOpenAI()
    bad.kill_after = 2 if how == "killed" else None
    bad.error_after = 2 if how == "error" else None
    bad.stop_after = 2 if how == "an end too early" else None
    asked = {**(CHAT if "chat" in path else COMPLETION), **USAGE, "max_tokens": 6}
    async with passing(bad, good) as gateway:
        events = await stream(gateway, asked, path)
        assert text_of(events) == TEXT
        assert len({event["id"] for event in events}) == 1
        roles = [c for e in events for c in e["choices"] if (c.get("delta") or {}).get("role")]
        assert len(roles) == ("chat" in path)
        prompt = 3 if "chat" in path else 2
        assert events[-1]["usage"] == {
            "prompt_tokens": prompt,
            "completion_tokens": 6,
            "total_tokens": prompt + 6,
        }
        assert good.bodies[-1]["max_tokens"] == 4
        assert billed(gateway) == (prompt, 6)
        assert b'continuations_total{model="far"} 1.0' in gateway.gateway.metrics.text()
        await until(lambda: not bad.running and not good.running)
        assert all(one.outstanding == 0 for one in gateway.gateway.pool._by_model["far"])


@in_loop
async def test_only_the_end_was_missing() -> None:
    bad, good = FakeOpenAI(), FakeOpenAI()
    bad.kill_at_end = True
    async with passing(bad, good) as gateway:
        events = await stream(gateway, {**CHAT, **USAGE})
        assert text_of(events) == TEXT
        assert events[-1]["usage"]["completion_tokens"] >= 6
        assert good.bodies == []
        assert text_of(await stream(gateway, CHAT)) == TEXT


@in_loop
async def test_nothing_left_to_say() -> None:
    bad, good = FakeOpenAI(), FakeOpenAI()
    bad.kill_after = 3
    async with passing(bad, good) as gateway:
        # the role's event counts as a piece
        events = await stream(gateway, {**CHAT, "max_tokens": 4})
        assert events[-1]["choices"][0]["finish_reason"] == "length"
        assert good.bodies == []


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"n": 2},
        {"response_format": {"type": "json_object"}},
        {"logprobs": True},
    ],
)
@in_loop
async def test_what_cannot_be_continued_ends_with_an_error(fields: dict[str, Any]) -> None:
    bad, good = FakeOpenAI(), FakeOpenAI()
    bad.kill_after = 2
    async with passing(bad, good) as gateway:
        events = await stream(gateway, {**CHAT, **fields})
        assert events[-1]["error"]["code"] == "engine_stopped"
        assert good.bodies == []


@in_loop
async def test_not_by_servers_that_would_answer_it() -> None:
    """They may not know `continue_final_message`. A completion's prompt they all continue."""
    bad, good = FakeOpenAI(), FakeOpenAI()
    bad.kill_after = 2
    async with passing(bad, good, engine="openai") as gateway:
        assert "error" in (await stream(gateway, CHAT))[-1]
        bad.running = 0
        events = await stream(gateway, COMPLETION, "/v1/completions")
        assert text_of(events) == TEXT


@in_loop
async def test_more_than_text_is_not_continued() -> None:
    bad, good = FakeOpenAI(), FakeOpenAI()
    bad.kill_after, bad.extra = 2, {"logprobs": {"content": []}}
    async with passing(bad, good) as gateway:
        assert "error" in (await stream(gateway, CHAT))[-1]


@in_loop
async def test_nobody_can_go_on() -> None:
    bad, worse = FakeOpenAI(), FakeOpenAI()
    bad.kill_after, worse.kill_after = 2, 1
    async with passing(bad, worse, continuations=1) as gateway:
        events = await stream(gateway, CHAT)
        assert "error" in events[-1]
        worse.fail_with = 500
        assert "error" in (await stream(gateway, CHAT))[-1]
    alone = FakeOpenAI()
    alone.kill_after = 2
    async with passing(alone) as gateway:
        assert "error" in (await stream(gateway, CHAT))[-1]


@in_loop
async def test_an_error_before_the_first_word_is_a_status() -> None:
    fake = FakeOpenAI()
    fake.error_after = 0
    async with passing(fake, continuations=0) as gateway:
        assert "error" in (await stream(gateway, CHAT))[-1]


@in_loop
async def test_a_client_that_leaves_frees_the_endpoint() -> None:
    fake = FakeOpenAI()
    fake.hang = True
    async with passing(fake) as gateway:
        task = asyncio.create_task(gateway.post("/v1/chat/completions", CHAT))
        await until(lambda: fake.running == 1)
        task.cancel()
        await until(lambda: fake.running == 0)
        await until(lambda: gateway.gateway.pool._by_model["far"][0].outstanding == 0)
        with contextlib.suppress(asyncio.CancelledError):
            await task


@in_loop
async def test_limits_hold_for_what_passes() -> None:
    fake, keys = FakeOpenAI(), key_table()
    record = next(iter(keys.records.values()))
    keys.records[record.digest] = replace(record, limits=Limits(tokens_per_minute=300))
    async with passing(fake, keys=keys) as gateway:
        assert (await gateway.post("/v1/chat/completions", {**CHAT, "max_tokens": 250}))[0] == 200
        assert (await gateway.post("/v1/chat/completions", {**CHAT, "max_tokens": 250}))[0] == 200, "settled"
        assert (await gateway.post("/v1/chat/completions", {**CHAT, "max_tokens": 290}))[0] == 429
        keys.records[record.digest] = replace(record, models=("smol",))
        assert (await gateway.post("/v1/chat/completions", CHAT))[0] == 403
    limits = (RouteLimits(model="far", concurrency=1, queue=0),)
    async with passing(fake, settings=GatewaySettings(queue_timeout_s=0.3, limits=limits)) as gateway:
        fake.hang = True
        task = asyncio.create_task(gateway.post("/v1/chat/completions", CHAT))
        await until(lambda: fake.running == 1)
        assert (await gateway.post("/v1/chat/completions", CHAT))[0] == 429
        task.cancel()


@in_loop
async def test_other_models_are_answered_here_as_ever() -> None:
    async with passing(FakeOpenAI()) as gateway:
        assert (await gateway.chat())[1]["choices"][0]["message"]["content"] == "The capital is Paris"
        assert (await gateway.post("/v1/chat/completions", b"{"))[0] == 400
        assert (await gateway.post("/v1/chat/completions", {**CHAT, "stream": 3}))[0] in (400, 404)


@in_loop
async def test_a_key_for_the_endpoint(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("sk-far\n")
    async with FakeOpenAI(key="sk-far").listening() as fake:
        endpoint = Endpoint(name="far", url=fake.url, engine="openai", model="far", key_file=str(file))
        to = Route(model="far", task="chat", context=0, folder="", endpoints=(endpoint,))
        async with running(FakeTriton(), more=(to,)) as gateway:
            assert (await gateway.post("/v1/chat/completions", CHAT))[0] == 200
            gone = Routes(routes=(Route(**{**_fields(to), "endpoints": (_other(endpoint),)}),))
            with pytest.raises(UsageError, match="cannot read the key"):
                await gateway.gateway.replace(gone, {})
            assert (await gateway.post("/v1/chat/completions", CHAT))[0] == 200, "the old routes stay"
            file.write_text("\n")
            with pytest.raises(UsageError, match="does not hold a key"):
                await gateway.gateway.replace(Routes(routes=(to,)), {})


def _fields(one: Route) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__struct_fields__}


def _other(one: Endpoint) -> Endpoint:
    return Endpoint(name="other", url=one.url, engine="openai", model="far", key_file="/nowhere/key")


@pytest.mark.parametrize("usage", [{}, USAGE])
@in_loop
async def test_who_leaves_at_the_last_event_is_billed_exactly(usage: dict[str, Any]) -> None:
    """As OpenAI's own client does: it closes the connection when it has read [DONE]."""
    fake = FakeOpenAI()
    async with passing(fake) as gateway:
        for _ in range(20):
            sent = {**CHAT, **usage, "stream": True}
            async with gateway.session.post(gateway.url + "/v1/chat/completions", json=sent) as response:
                async for line in response.content:
                    if line.startswith(b"data: [DONE]"):
                        break
                response.close()
        await until(lambda: len(gateway.log()) == 20)
        for told in gateway.log():
            assert (told["prompt_tokens"], told["completion_tokens"], told["status"]) == (3, 6, 200)
        assert gateway.gateway.pool._by_model["far"][0].client.idle == 1, "and its connection is used again"


@in_loop
async def test_an_answer_that_comes_in_one_piece() -> None:
    fake = FakeOpenAI()
    fake.at_once = True
    async with passing(fake) as gateway:
        assert text_of(await stream(gateway, CHAT)) == TEXT
        assert billed(gateway) == (3, 6)
