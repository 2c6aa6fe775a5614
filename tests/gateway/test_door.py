"""Limits and the queue, on a gateway that runs."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import pytest

from sovereign_ai.config import GatewaySettings, RouteLimits
from sovereign_ai.gateway.admission import Limits, digest
from sovereign_ai.gateway.door import Door
from sovereign_ai.gateway.journal import RequestRecord
from sovereign_ai.spec import Route, Routes
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.running import (
    KEY,
    Keys,
    Running,
    chat_body,
    in_loop,
    key_table,
    prompt_builder,
    running,
    until,
)

# What a request takes: `user: hello assistant:` is 3 tokens to gateway and engine, the fake's answer has 4.
PROMPT, ANSWER = 3, 4


def limited(**limits: int) -> Keys:
    return changed(limits=Limits(**limits))


def changed(**fields: Any) -> Keys:
    keys = key_table()
    keys.records[digest(KEY)] = msgspec.structs.replace(keys.records[digest(KEY)], **fields)
    return keys


def another(keys: Keys, secret: str, **fields: Any) -> dict[str, str]:
    """A second key in `keys`; the header that brings it."""
    first = keys.records[digest(KEY)]
    record = msgspec.structs.replace(first, id=secret, digest=digest(secret), **fields)
    keys.records[record.digest] = record
    return {"Authorization": f"Bearer {secret}"}


def one_place(**settings: Any) -> GatewaySettings:
    limits = RouteLimits(model="smol", concurrency=1)
    return GatewaySettings(**{"queue_timeout_s": 9.0, "limits": (limits,), **settings})


async def logged(gateway: Running, lines: int) -> None:
    await until(lambda: len(gateway.log()) == lines)


async def queued(gateway: Running, requests: int) -> None:
    await until(lambda: depth(gateway) == requests)


async def held(gateway: Running, fake: FakeTriton) -> asyncio.Task[list[str]]:
    """A stream that has the one place until the fake's gate opens."""
    active = fake.active
    stream = asyncio.create_task(gateway.stream())
    await until(lambda: fake.active > active)
    return stream


def with_places(route: Route, places: int) -> Route:
    endpoints = [msgspec.structs.replace(one, max_num_seqs=places) for one in route.endpoints]
    return msgspec.structs.replace(route, endpoints=tuple(endpoints))


def gated() -> FakeTriton:
    fake = FakeTriton()
    fake.gate = asyncio.Event()
    return fake


def door_of(gateway: Running) -> Door:
    door = gateway.gateway._door
    assert isinstance(door, Door)
    return door


def depth(gateway: Running) -> int:
    return len(door_of(gateway)._line("smol"))


@in_loop
async def test_concurrency_of_a_key() -> None:
    fake = gated()
    async with running(fake, keys=limited(concurrency=1)) as gateway:
        stream = await held(gateway, fake)
        async with gateway.session.post(gateway.url + "/v1/chat/completions", json=chat_body()) as response:
            assert response.status == 429
            assert response.headers["Retry-After"] == "1"
            assert (await response.json())["error"]["code"] == "rate_limit_exceeded"
        assert (await gateway.get("/v1/models"))[0] == 200, "only requests for models count"
        assert fake.gate is not None
        fake.gate.set()
        await stream
        assert (await gateway.chat())[0] == 200
        assert 'reason="concurrency"} 1.0' in gateway.gateway.metrics.text().decode()


@in_loop
async def test_requests_per_minute_and_the_headers_that_tell() -> None:
    async with running(FakeTriton(), keys=limited(requests_per_minute=2)) as gateway:
        url = gateway.url + "/v1/chat/completions"
        for left in (1, 0):
            async with gateway.session.post(url, json=chat_body(stream=bool(left))) as response:
                assert response.status == 200
                assert response.headers["x-ratelimit-limit-requests"] == "2"
                assert response.headers["x-ratelimit-remaining-requests"] == str(left)
                assert response.headers["x-ratelimit-reset-requests"].endswith("ms")
        async with gateway.session.post(url, json=chat_body()) as response:
            assert response.status == 429
            assert 0 < int(response.headers["Retry-After"]) <= 61
            assert (await response.json())["error"]["type"] == "requests"


@in_loop
async def test_tokens_are_reserved_and_settled() -> None:
    """100 would not do for two answers of 60, but they have 4 tokens each."""
    async with running(FakeTriton(), keys=limited(tokens_per_minute=30)) as gateway:
        url = gateway.url + "/v1/chat/completions"
        for used in (1, 2, 3):
            async with gateway.session.post(url, json=chat_body(max_tokens=12)) as response:
                assert response.status == 200
                await response.read()
            await logged(gateway, used)
        async with gateway.session.post(url, json=chat_body(max_tokens=12)) as response:
            error = (await response.json())["error"]
            assert (response.status, error["type"], error["code"]) == (429, "tokens", "rate_limit_exceeded")
            assert response.headers["x-ratelimit-remaining-tokens"] == str(30 - 3 * (PROMPT + ANSWER))


@in_loop
async def test_a_request_that_never_fits_is_told_so() -> None:
    async with running(FakeTriton(), keys=limited(tokens_per_minute=5)) as gateway:
        url = gateway.url + "/v1/chat/completions"
        async with gateway.session.post(url, json=chat_body(max_tokens=12)) as response:
            assert response.status == 429
            assert "Retry-After" not in response.headers
            assert response.headers["x-should-retry"] == "false"


@in_loop
async def test_a_days_budget() -> None:
    keys = limited(tokens_per_day=2 * (PROMPT + ANSWER) + 6)
    async with running(FakeTriton(), keys=keys) as gateway:
        for count in (1, 2):
            assert (await gateway.chat(max_tokens=4))[0] == 200
            await logged(gateway, count)
        status, body = await gateway.chat(max_tokens=4)
        assert (status, body["error"]["code"]) == (429, "insufficient_quota")
        record = keys.records[digest(KEY)]
        keys.records[digest(KEY)] = msgspec.structs.replace(record, limits=Limits(tokens_per_day=1000))
        assert (await gateway.chat(max_tokens=4))[0] == 200, "other limits hold at once"


@in_loop
async def test_embeddings_are_counted_too() -> None:
    async with running(FakeTriton(), keys=limited(tokens_per_day=10)) as gateway:
        body = {"model": "minilm", "input": ["a b c", "d e f"]}
        assert (await gateway.post("/v1/embeddings", body))[0] == 200
        await until(lambda: gateway.log())
        body = {"model": "minilm", "input": ["aaaa b", "cccc d", "eeee f"]}
        status, answer = await gateway.post("/v1/embeddings", body)
        assert (status, answer["error"]["code"]) == (429, "insufficient_quota")


@in_loop
async def test_limits_of_a_model() -> None:
    limits = RouteLimits(model="smol", requests_per_minute=1, tokens_per_minute=25)
    async with running(FakeTriton(), settings=GatewaySettings(limits=(limits,))) as gateway:
        status, body = await gateway.chat(max_tokens=28)
        assert (status, body["error"]["type"]) == (429, "tokens")
        assert (await gateway.chat(max_tokens=12))[0] == 200
        status, body = await gateway.chat(max_tokens=1)
        assert status == 429
        assert "The limit of the model `smol` is 1 request per minute" in body["error"]["message"]


@in_loop
async def test_a_key_of_some_models() -> None:
    async with running(FakeTriton(), keys=changed(models=("minilm",))) as gateway:
        status, body = await gateway.chat()
        assert (status, body["error"]["code"]) == (403, "model_not_allowed")
        assert [model["id"] for model in (await gateway.get("/v1/models"))[1]["data"]] == ["minilm"]
        assert (await gateway.get("/v1/models/smol"))[0] == 403
        assert (await gateway.post("/v1/embeddings", {"model": "minilm", "input": "x"}))[0] == 200


@in_loop
async def test_a_key_without_the_scope() -> None:
    async with running(FakeTriton(), keys=changed(scopes=("metrics",))) as gateway:
        status, body = await gateway.get("/v1/models")
        assert (status, body["error"]["code"]) == (403, "missing_scope")


@in_loop
async def test_metrics_with_a_key() -> None:
    keys = changed(scopes=("metrics",))
    async with running(FakeTriton(), keys=keys, settings=GatewaySettings(metrics_key=True)) as gateway:
        async with gateway.session.get(gateway.url + "/metrics") as response:
            assert response.status == 200
        async with gateway.session.get(gateway.url + "/metrics", headers={"Authorization": ""}) as response:
            assert response.status == 401
        async with gateway.session.get(gateway.url + "/healthz", headers={"Authorization": ""}) as response:
            assert response.status == 200


@in_loop
async def test_excess_waits_here_and_not_in_the_engine() -> None:
    fake = gated()
    async with running(fake, settings=one_place()) as gateway:
        stream = await held(gateway, fake)
        others = [asyncio.create_task(gateway.chat()) for _ in range(5)]
        await until(lambda: depth(gateway) == 5)
        assert fake.gate is not None
        fake.gate.set()
        await stream
        assert [status for status, _ in await asyncio.gather(*others)] == [200] * 5
        assert fake.peak == 1
        assert all(line["queue_s"] > 0 for line in gateway.log()[1:])
        assert depth(gateway) == 0
        assert b'sovereign_queue_depth{model="smol"} 0.0' in gateway.gateway.metrics.text()


@in_loop
async def test_the_endpoints_places_are_the_routes() -> None:
    fake = gated()
    async with running(fake) as gateway:
        routes = gateway.gateway._routes
        assert gateway.gateway.pool.capacity("smol") == 256
        smaller = Routes(routes=tuple(with_places(route, 2) for route in routes.routes))
        await gateway.gateway.replace(smaller, {"smol": prompt_builder(), "minilm": prompt_builder()})
        assert gateway.gateway.pool.capacity("smol") == 2
        assert gateway.gateway.pool.capacity("nope") == 0


@in_loop
async def test_priorities_and_turns() -> None:
    fake, keys = gated(), key_table()
    batch = another(keys, "batch", priority="batch")
    second = another(keys, "second")
    async with running(fake, keys=keys, settings=one_place()) as gateway:
        stream = await held(gateway, fake)
        waiting = []
        for number, headers in enumerate([batch, {}, {}, {}, second]):
            waiting.append(asyncio.create_task(gateway.post("/v1/chat/completions", chat_body(), **headers)))
            await queued(gateway, number + 1)
        assert fake.gate is not None
        fake.gate.set()
        await asyncio.gather(stream, *waiting)
        await until(lambda: len(gateway.log()) == 6)
        assert [line["key"] for line in gateway.log()[1:]] == ["key-1", "second", "key-1", "key-1", "batch"]


@in_loop
async def test_a_full_queue_refuses_at_once() -> None:
    fake = gated()
    async with running(fake, settings=one_place(queue=1)) as gateway:
        stream = await held(gateway, fake)
        waiting = asyncio.create_task(gateway.chat())
        await until(lambda: depth(gateway) == 1)
        async with gateway.session.post(gateway.url + "/v1/chat/completions", json=chat_body()) as response:
            assert (response.status, response.headers["Retry-After"]) == (429, "1")
        assert fake.gate is not None
        fake.gate.set()
        await stream
        assert (await waiting)[0] == 200
        assert 'reason="queue_full"} 1.0' in gateway.gateway.metrics.text().decode()


@in_loop
async def test_who_is_displaced_is_told() -> None:
    fake, keys = gated(), key_table()
    batch = another(keys, "batch", priority="batch")
    async with running(fake, keys=keys, settings=one_place(queue=1)) as gateway:
        stream = await held(gateway, fake)
        displaced = asyncio.create_task(gateway.post("/v1/chat/completions", chat_body(), **batch))
        await until(lambda: depth(gateway) == 1)
        waiting = asyncio.create_task(gateway.chat())
        assert (await displaced)[0] == 429
        assert fake.gate is not None
        fake.gate.set()
        assert (await waiting)[0] == 200
        await stream


@in_loop
async def test_a_client_that_leaves_the_queue_frees_its_place() -> None:
    fake = gated()
    async with running(fake, settings=one_place(queue=1)) as gateway:
        stream = await held(gateway, fake)
        leaving = asyncio.create_task(gateway.chat())
        await until(lambda: depth(gateway) == 1)
        leaving.cancel()
        await until(lambda: depth(gateway) == 0)
        assert gateway.log()[-1]["status"] == 499
        waiting = asyncio.create_task(gateway.chat())
        await until(lambda: depth(gateway) == 1)
        assert fake.gate is not None
        fake.gate.set()
        assert (await waiting)[0] == 200
        await stream
        assert len(fake.bodies) == 2


@in_loop
async def test_a_client_may_wait_less_but_not_longer() -> None:
    fake = gated()
    async with running(fake, settings=one_place()) as gateway:
        stream = await held(gateway, fake)
        path = "/v1/chat/completions"
        status, body = await gateway.post(path, chat_body(), **{"X-Request-Timeout": "0.05"})
        assert (status, body["error"]["code"]) == (503, "queue_timeout")
        assert depth(gateway) == 0
        for nonsense in ("0", "-1", "soon", "nan"):
            status, body = await gateway.post(path, chat_body(), **{"X-Request-Timeout": nonsense})
            assert (status, body["error"]["code"]) == (400, "invalid_value")
        assert fake.gate is not None
        fake.gate.set()
        await stream


@in_loop
async def test_who_comes_while_a_model_loads_waits_for_it() -> None:
    fake = FakeTriton()
    fake.ready = False
    async with running(fake, settings=GatewaySettings(queue_timeout_s=9.0)) as gateway:
        waiting = [asyncio.create_task(gateway.chat()) for _ in range(3)]
        await until(lambda: depth(gateway) == 3)
        fake.ready = True
        assert [status for status, _ in await asyncio.gather(*waiting)] == [200] * 3


@in_loop
async def test_stopping_tells_those_who_wait() -> None:
    fake = gated()
    async with running(fake, settings=one_place()) as gateway:
        stream = await held(gateway, fake)
        waiting = asyncio.create_task(gateway.chat())
        await until(lambda: depth(gateway) == 1)
        gateway.gateway.stop()
        status, body = await waiting
        assert (status, body["error"]["code"]) == (503, "shutting_down")
        await stream


class Book:
    """A ledger of usage in memory."""

    def __init__(self) -> None:
        self.rows: list[RequestRecord] = []

    def add(self, record: RequestRecord, duration_s: float) -> None:
        self.rows.append(record)


@in_loop
async def test_what_is_billed() -> None:
    fake, book = FakeTriton(), Book()
    async with running(fake, usage=book) as gateway:
        _, body = await gateway.chat()
        await gateway.chat(model="nope")
        await gateway.post("/v1/embeddings", {"model": "minilm", "input": ["a b", "c"]})
        fake.refusal = (500, "broken")
        await gateway.chat()
        await until(lambda: len(gateway.log()) == 4)
    usage = body["usage"]
    assert [(row.billed_prompt_tokens, row.completion_tokens) for row in book.rows] == [
        (usage["prompt_tokens"], usage["completion_tokens"]),
        (3, 0),
    ]


@in_loop
async def test_a_stream_that_its_client_left_is_billed_as_far_as_it_came() -> None:
    fake, book, keys = gated(), Book(), limited(tokens_per_day=1000)
    async with running(fake, usage=book, keys=keys) as gateway:
        url = gateway.url + "/v1/chat/completions"
        async with gateway.session.post(url, json=chat_body(stream=True)) as response:
            seen = 0
            while seen < ANSWER - 1:
                seen += b'"content":" ' in (line := await response.content.readline())
                seen += b'"content":"The"' in line
        await until(lambda: book.rows)
        row = book.rows[0]
        assert (row.status, row.billed_prompt_tokens, row.completion_tokens) == (499, PROMPT, ANSWER - 1)
        meter = door_of(gateway)._keys["key-1"]
        assert meter.days.spent("2023-11-14") == PROMPT + ANSWER - 1
        assert meter.running == 0


@in_loop
async def test_an_answer_that_was_continued_is_billed_once() -> None:
    first, second, book = FakeTriton(), FakeTriton(), Book()
    first.kill_after = 2
    async with AsyncExitStack() as stack:
        gateway = await stack.enter_async_context(running(first, second, usage=book))
        status, body = await gateway.chat()
        assert status == 200
        await until(lambda: book.rows)
        row = book.rows[0]
        assert row.completion_tokens == body["usage"]["completion_tokens"] == ANSWER
        assert (row.billed_prompt_tokens, row.continuations, row.retries) == (PROMPT, 1, 0)
        assert row.endpoint == "smol-up-1"


@in_loop
async def test_a_second_try_is_a_retry() -> None:
    first, second, book = FakeTriton(), FakeTriton(), Book()
    first.kill_after = 0
    async with running(first, second, usage=book) as gateway:
        assert (await gateway.chat())[0] == 200
        await until(lambda: book.rows)
        row = book.rows[0]
        assert (row.endpoint, row.continuations, row.retries) == ("smol-up-1", 0, 1)


@in_loop
async def test_a_full_endpoint_is_passed_over() -> None:
    first, second = gated(), FakeTriton()
    async with running(first, second) as gateway:
        pool = gateway.gateway.pool
        pool._places = {("smol", "smol-up-0"): 1, ("smol", "smol-up-1"): 5}
        stream = await held(gateway, first)
        for _ in range(4):
            assert (await gateway.chat())[0] == 200
        assert len(first.bodies) == 1
        assert first.gate is not None
        first.gate.set()
        await stream


@in_loop
async def test_content_is_logged_only_where_a_model_says_so() -> None:
    limits = RouteLimits(model="smol", log_content=True)
    async with running(FakeTriton(), settings=GatewaySettings(limits=(limits,))) as gateway:
        await gateway.stream()
        await gateway.chat()
        await gateway.post("/v1/embeddings", {"model": "minilm", "input": "secret"})
        await until(lambda: len(gateway.log()) == 3)
        first, second = gateway.log("content")
        assert '"hello"' in first["request"]
        assert first["answer"].endswith("data: [DONE]\n\n")
        assert "Paris" in second["answer"]
        assert all(b"secret" not in line for line in gateway.lines)


@pytest.mark.parametrize("origin", ["https://chat.example.org", "https://evil.example.org"])
@in_loop
async def test_cors(origin: str) -> None:
    settings = GatewaySettings(cors=("https://chat.example.org",))
    good = origin in settings.cors
    async with running(FakeTriton(), settings=settings) as gateway:
        asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        url = gateway.url + "/v1/chat/completions"
        async with gateway.session.options(url, headers={**asks, "Authorization": ""}) as response:
            assert response.status == (200 if good else 403)
            assert ("Access-Control-Allow-Headers" in response.headers) == good
        async with gateway.session.post(url, json=chat_body(), headers={"Origin": origin}) as response:
            assert response.headers.get("Access-Control-Allow-Origin") == (origin if good else None)
        bad = {"Origin": origin, "Authorization": "Bearer x"}
        async with gateway.session.post(url, json=chat_body(), headers=bad) as response:
            assert response.status == 401
            assert response.headers.get("Access-Control-Allow-Origin") == (origin if good else None)


@in_loop
async def test_without_cors_nothing_of_it_is_answered() -> None:
    async with running(FakeTriton()) as gateway:
        asks = {"Origin": "https://x.example.org", "Access-Control-Request-Method": "POST"}
        async with gateway.session.options(gateway.url + "/v1/models", headers=asks) as response:
            assert response.status == 405
            assert "Access-Control-Allow-Origin" not in response.headers
