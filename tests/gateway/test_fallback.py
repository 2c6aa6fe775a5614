"""Another model answers: told through the whole gateway, with a fake engine for each model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import msgspec
import pytest

from sovereign_ai.config import GatewaySettings, RouteLimits
from sovereign_ai.gateway.admission import Limits, digest
from sovereign_ai.gateway.door import Door
from sovereign_ai.gateway.fallback import TurnAway, turned_away_once
from sovereign_ai.gateway.journal import RequestRecord
from sovereign_ai.spec import Route, Routes
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.running import (
    CONTEXT,
    KEY,
    Keys,
    Running,
    chat_body,
    in_loop,
    key_table,
    running,
    until,
)

PATIENT = GatewaySettings(queue_timeout_s=30.0)
"""Who waits in vain with these settings fails the test by its time."""

MESSAGES = [{"role": "user", "content": "hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "hello"},
    "/v1/responses": {"input": "hello"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 8},
    "/v1/embeddings": {"input": ["hello"]},
    "/v1/rerank": {"query": "hello", "documents": ["a", "b"]},
}


def chained(
    *others: str, contexts: dict[str, int] | None = None, chain: Sequence[str] | None = None
) -> Callable[[Routes], Routes]:
    """Fake 0 serves `smol` and `minilm`, each further one another model of both kinds: `smol-NAME` and
    `minilm-NAME`, to which the first falls back in this order, unless `chain` says otherwise."""

    def change(routes: Routes) -> Routes:
        made: list[Route] = []
        for route in routes.routes:
            names = [route.model, *(f"{route.model}-{other}" for other in others)]
            for name, endpoint in zip(names, route.endpoints, strict=True):
                made.append(
                    msgspec.structs.replace(
                        route,
                        model=name,
                        endpoints=(endpoint,),
                        context=(contexts or {}).get(name, route.context),
                        fallback=tuple(names[1:] if chain is None else chain) if name == route.model else (),
                    )
                )
        return Routes(routes=tuple(made))

    return change


def before(
    *fakes: FakeTriton, others: Sequence[str] = ("b",), settings: GatewaySettings = PATIENT, **fields: Any
) -> AbstractAsyncContextManager[Running]:
    contexts, chain = fields.pop("contexts", None), fields.pop("chain", None)
    change = chained(*others, contexts=contexts, chain=chain)
    return running(*fakes, settings=settings, change=change, **fields)


def down() -> FakeTriton:
    fake = FakeTriton()
    fake.ready = False
    return fake


def failing() -> FakeTriton:
    """Ready, and breaks every answer before its first token."""
    fake = FakeTriton()
    fake.kill_after = 0
    return fake


def using(*models: str) -> Keys:
    keys = key_table()
    keys.records[digest(KEY)] = msgspec.structs.replace(keys.records[digest(KEY)], models=models)
    return keys


async def asked(gateway: Running, path: str, **fields: Any) -> tuple[int, str | None, Any]:
    """Status, the header that announces another model, and the answer."""
    body = {"model": "smol", **BODIES[path], **fields}
    async with gateway.session.post(gateway.url + path, json=body) as response:
        return response.status, response.headers.get("x-sovereign-fallback"), await response.json()


class Book:
    """Takes usage."""

    def __init__(self) -> None:
        self.records: list[RequestRecord] = []

    def add(self, record: RequestRecord, duration_s: float) -> None:
        self.records.append(record)


@pytest.mark.parametrize("path", BODIES)
@in_loop
async def test_every_format_falls_back_and_says_so(path: str) -> None:
    kind = "minilm" if path in ("/v1/embeddings", "/v1/rerank") else "smol"
    book = Book()
    async with before(down(), FakeTriton(), usage=book) as gateway:
        status, header, body = await asked(gateway, path, model=kind)
        assert (status, header, body["model"]) == (200, f"{kind}-b", f"{kind}-b")
        (line,) = gateway.log()
        assert (line["model"], line["asked"], line["status"]) == (f"{kind}-b", kind, 200)
        assert line["queue_s"] < 1.0, "nobody waits for a model that is not there"
        (record,) = book.records
        assert (record.model, record.asked) == (f"{kind}-b", kind)
        text = gateway.gateway.metrics.text().decode()
        assert f'sovereign_fallbacks_total{{model="{kind}",to="{kind}-b"}} 1.0' in text
        assert f'sovereign_requests_total{{model="{kind}-b",status="200"}} 1.0' in text


@in_loop
async def test_a_model_that_is_there_answers_itself() -> None:
    async with before(FakeTriton(), FakeTriton()) as gateway:
        status, header, body = await asked(gateway, "/v1/chat/completions")
        assert (status, header, body["model"]) == (200, None, "smol")
        assert gateway.log()[0]["asked"] is None
        assert "sovereign_fallbacks_total{" not in gateway.gateway.metrics.text().decode()


@in_loop
async def test_a_stream_is_announced_before_its_first_event() -> None:
    async with before(failing(), FakeTriton()) as gateway:
        body = chat_body(stream=True)
        async with gateway.session.post(gateway.url + "/v1/chat/completions", json=body) as response:
            assert response.headers["x-sovereign-fallback"] == "smol-b"
            events = (await response.text()).split("\n\n")
        assert json.loads(events[0].removeprefix("data: "))["model"] == "smol-b"
        assert events[-2] == "data: [DONE]"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/embeddings"])
@in_loop
async def test_attempts_that_failed(path: str) -> None:
    """An engine that refuses before its first byte; the next one that is ready gets the request."""
    broken = FakeTriton()
    broken.refusal = (500, "out of memory")
    model = "minilm" if path == "/v1/embeddings" else "smol"
    async with before(broken, down(), FakeTriton(), others=("b", "c")) as gateway:
        status, header, body = await asked(gateway, path, model=model)
        assert (status, header, body["model"]) == (200, f"{model}-c", f"{model}-c")


@in_loop
async def test_nothing_falls_back_after_the_first_byte() -> None:
    half = FakeTriton()
    half.kill_after = 2
    other = FakeTriton()
    async with before(half, other) as gateway:
        assert "error" in json.loads((await gateway.stream())[-1])
        status, header, _ = await asked(gateway, "/v1/chat/completions")
        assert (status, header) == (502, None)
        assert other.bodies == []
        assert [line["model"] for line in gateway.log()] == ["smol", "smol"]


@in_loop
async def test_without_a_chain_nothing_falls_back() -> None:
    async with before(
        down(), FakeTriton(), chain=(), settings=GatewaySettings(queue_timeout_s=0.2)
    ) as gateway:
        for path, model in (("/v1/chat/completions", "smol"), ("/v1/embeddings", "minilm")):
            status, header, body = await asked(gateway, path, model=model)
            assert (status, header, body["error"]["code"]) == (503, None, "engine_unavailable")


@pytest.mark.parametrize("chain", [("nobody",), ("minilm",), ("smol",), ("minilm-b", "nobody")])
@in_loop
async def test_names_that_cannot_answer_are_passed_over(chain: tuple[str, ...]) -> None:
    settings = GatewaySettings(queue_timeout_s=0.2)
    async with before(down(), FakeTriton(), chain=chain, settings=settings) as gateway:
        status, header, _ = await asked(gateway, "/v1/chat/completions")
        assert (status, header) == (503, None)


@in_loop
async def test_a_chain_is_not_followed_further() -> None:
    """smol → smol-b, which would go to smol-c."""

    def change(routes: Routes) -> Routes:
        every = chained("b", "c", chain=("smol-b",))(routes).routes
        further = {"smol-b": ("smol-c",)}
        return Routes(
            routes=tuple(
                msgspec.structs.replace(one, fallback=further.get(one.model, one.fallback)) for one in every
            )
        )

    settings = GatewaySettings(queue_timeout_s=0.2)
    async with running(down(), down(), FakeTriton(), settings=settings, change=change) as gateway:
        assert (await gateway.chat())[0] == 503
        assert (await gateway.chat(model="smol-b"))[1]["model"] == "smol-c"


@in_loop
async def test_a_key_gets_only_models_that_it_may_use() -> None:
    keys = using("smol", "smol-c")
    async with before(down(), FakeTriton(), FakeTriton(), others=("b", "c"), keys=keys) as gateway:
        assert (await asked(gateway, "/v1/chat/completions"))[1] == "smol-c"
    settings = GatewaySettings(queue_timeout_s=0.2)
    async with before(down(), FakeTriton(), keys=using("smol"), settings=settings) as gateway:
        status, header, body = await asked(gateway, "/v1/chat/completions")
        assert (status, header, body["error"]["code"]) == (503, None, "engine_unavailable")


@in_loop
async def test_the_other_models_context_counts() -> None:
    """A request that the next model has no room for goes on to one that has; without one the error is that
    of the asked model."""
    contexts = {"smol-b": 4}
    async with before(failing(), FakeTriton(), FakeTriton(), others=("b", "c"), contexts=contexts) as gateway:
        status, header, _ = await asked(gateway, "/v1/chat/completions", max_tokens=CONTEXT - 3)
        assert (status, header) == (200, "smol-c")
    async with before(failing(), FakeTriton(), contexts=contexts) as gateway:
        status, header, body = await asked(gateway, "/v1/chat/completions", max_tokens=CONTEXT - 3)
        assert (status, header, body["error"]["code"]) == (502, None, "engine_stopped")
        assert gateway.log()[0]["model"] == "smol"
        assert gateway.log()[0]["asked"] is None


@in_loop
async def test_where_all_fail_the_error_is_that_of_the_asked_model() -> None:
    async with before(failing(), failing()) as gateway:
        status, header, body = await asked(gateway, "/v1/chat/completions")
        assert (status, header, body["error"]["code"]) == (502, None, "engine_stopped")
        assert gateway.log()[0]["endpoint"] == "smol-up-1", "the one that was asked last"


def door_of(gateway: Running) -> Door:
    door = gateway.gateway._door
    assert isinstance(door, Door)
    return door


@in_loop
async def test_turned_away_and_refused_it_waits_for_the_asked_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other model has no room: the request is where it would be without a chain."""
    monkeypatch.setattr("sovereign_ai.gateway.pool.PROBE_INTERVAL_S", 0.02)
    first = down()
    async with before(first, FakeTriton(), contexts={"smol-b": 4}) as gateway:
        waiting = asyncio.create_task(asked(gateway, "/v1/chat/completions", max_tokens=CONTEXT - 3))
        await until(lambda: len(door_of(gateway)._line("smol")) == 1)
        first.ready = True
        status, header, body = await waiting
        assert (status, header, body["model"]) == (200, None, "smol")


@in_loop
async def test_those_who_wait_go_when_their_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sovereign_ai.gateway.pool.PROBE_INTERVAL_S", 0.02)
    first = FakeTriton()
    first.gate = asyncio.Event()
    limits = RouteLimits(model="smol", concurrency=1)
    settings = GatewaySettings(queue_timeout_s=30.0, limits=(limits,))
    async with before(first, FakeTriton(), settings=settings) as gateway:
        stream = asyncio.create_task(gateway.stream())
        await until(lambda: first.active == 1)
        waiting = asyncio.create_task(asked(gateway, "/v1/chat/completions"))
        await until(lambda: len(door_of(gateway)._line("smol")) == 1)
        first.ready = False
        status, header, _ = await waiting
        assert (status, header) == (200, "smol-b")
        first.gate.set()
        assert (await stream)[-1] == "[DONE]"


@in_loop
async def test_who_waits_for_two_models_gets_the_first_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sovereign_ai.gateway.pool.PROBE_INTERVAL_S", 0.02)
    second = down()
    async with before(down(), second) as gateway:
        waiting = asyncio.create_task(asked(gateway, "/v1/chat/completions"))
        await until(lambda: len(door_of(gateway)._line("smol")) == 1)
        second.ready = True
        assert (await waiting)[:2] == (200, "smol-b")


@pytest.mark.parametrize(("queue", "code"), [(0, "rate_limit_exceeded"), (5, "queue_timeout")])
@in_loop
async def test_a_busy_model_does_not_fall_back(queue: int, code: str) -> None:
    """A full queue is 429, a wait in vain 503: both of the asked model."""
    first, second = FakeTriton(), FakeTriton()
    first.gate = asyncio.Event()
    limits = RouteLimits(model="smol", concurrency=1, queue=queue)
    async with before(
        first, second, settings=GatewaySettings(queue_timeout_s=0.2, limits=(limits,))
    ) as gateway:
        stream = asyncio.create_task(gateway.stream())
        await until(lambda: first.active == 1)
        _, header, body = await asked(gateway, "/v1/chat/completions")
        assert (header, body["error"]["code"]) == (None, code)
        first.gate.set()
        await stream
    assert second.bodies == []


@in_loop
async def test_the_other_models_limits_hold() -> None:
    limits = RouteLimits(model="smol-b", tokens_per_minute=10)
    settings = GatewaySettings(queue_timeout_s=30.0, limits=(limits,))
    async with before(down(), FakeTriton(), settings=settings) as gateway:
        status, header, body = await asked(gateway, "/v1/chat/completions", max_tokens=8)
        assert (status, header, body["error"]["code"]) == (429, "smol-b", "rate_limit_exceeded")
        assert (await asked(gateway, "/v1/chat/completions", max_tokens=4))[:2] == (200, "smol-b")


@pytest.mark.parametrize("first", [down, failing])
@in_loop
async def test_only_who_answers_is_counted(first: Callable[[], FakeTriton]) -> None:
    """What was reserved at a model that did not answer is free again before the next one is asked: 3 tokens
    of a prompt and 8 of an answer fit once into 12."""
    keys = key_table()
    record = msgspec.structs.replace(keys.records[digest(KEY)], limits=Limits(tokens_per_minute=12))
    keys.records[digest(KEY)] = record
    limits = (
        RouteLimits(model="smol", tokens_per_minute=12),
        RouteLimits(model="smol-b", tokens_per_minute=12),
    )
    settings = GatewaySettings(queue_timeout_s=30.0, limits=limits)
    async with before(first(), FakeTriton(), keys=keys, settings=settings) as gateway:
        assert (await asked(gateway, "/v1/chat/completions", max_tokens=8))[:2] == (200, "smol-b")
        door, now = door_of(gateway), gateway.gateway._monotonic()
        assert door._key_meter(record).tokens.total(now) == 7
        assert door._model_meter("smol").tokens.total(now) == 0
        assert door._model_meter("smol-b").tokens.total(now) == 7


@in_loop
async def test_several_choices_fall_back_together() -> None:
    async with before(failing(), FakeTriton()) as gateway:
        status, header, body = await asked(gateway, "/v1/chat/completions", n=3)
        assert (status, header, len(body["choices"])) == (200, "smol-b", 3)


@in_loop
async def test_a_block_ends_when_its_condition_holds() -> None:
    held: list[int] = []
    with pytest.raises(TurnAway):
        async with turned_away_once(lambda: bool(held)):
            await asyncio.sleep(0.1)
            held.append(1)
            await asyncio.sleep(30)
    async with turned_away_once(lambda: False):
        await asyncio.sleep(0)
