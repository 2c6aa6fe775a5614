"""What a request leaves of itself as spans, told through the whole gateway."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from sovereign_ai.config import GatewaySettings, RouteLimits, TracingSettings
from sovereign_ai.gateway import tracing
from sovereign_ai.gateway.tracing import Complaints, Tracing, start_tracing
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.running import chat_body, in_loop, running, until
from tests.gateway.test_fallback import BODIES, before, down

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = PARENT[:-2] + "00"


class Spans:
    """Keeps what ends."""

    def __init__(self, sample: float = 1.0) -> None:
        self.exporter = InMemorySpanExporter()
        processor = SimpleSpanProcessor(self.exporter)
        self.tracing = Tracing(processor, sample=sample, address="127.0.0.1", port=8000)

    @property
    def all(self) -> dict[str, ReadableSpan]:
        return {span.name: span for span in self.exporter.get_finished_spans()}

    async def ended(self, name: str) -> ReadableSpan:
        """A request's span ends after its last byte."""
        await until(lambda: name in self.all)
        return self.all[name]


def told(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def is_child(span: ReadableSpan, parent: ReadableSpan) -> bool:
    assert span.context is not None
    assert parent.context is not None
    return (
        span.parent is not None
        and span.parent.span_id == parent.context.span_id
        and span.context.trace_id == parent.context.trace_id
    )


@pytest.mark.parametrize("stream", [False, True])
@in_loop
async def test_a_chat(stream: bool) -> None:
    spans, fake = Spans(), FakeTriton()
    async with running(fake, tracing=spans.tracing) as gateway:
        headers = {"traceparent": PARENT, "tracestate": "other=1"}
        body = chat_body(stream=stream, max_tokens=9, temperature=0.5)
        async with gateway.session.post(
            gateway.url + "/v1/chat/completions", json=body, headers=headers
        ) as response:
            await response.read()
        span = await spans.ended("chat smol")
        assert span.kind is SpanKind.SERVER
        assert told(span) == {
            "gen_ai.provider.name": "sovereign",
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "smol",
            "gen_ai.response.model": "smol",
            "gen_ai.request.max_tokens": 9,
            "gen_ai.request.temperature": 0.5,
            "gen_ai.usage.input_tokens": 3,
            "gen_ai.usage.output_tokens": 4,
            "gen_ai.response.finish_reasons": ("stop",),
            "server.address": "127.0.0.1",
            "server.port": 8000,
            "http.response.status_code": 200,
        }
        assert span.parent is not None
        assert f"{span.parent.trace_id:032x}-{span.parent.span_id:016x}" == PARENT[3:-3]
        queue, attempt = spans.all["queue smol"], spans.all["attempt smol-up-0"]
        assert is_child(queue, span)
        assert is_child(attempt, span)
        assert attempt.kind is SpanKind.CLIENT
        assert (told(attempt)["server.address"], told(attempt)["server.port"]) == (
            "127.0.0.1",
            int(fake.url.rpartition(":")[2]),
        )
        assert told(attempt)["sovereign.attempt"] == 1
        assert attempt.end_time is not None
        assert queue.end_time is not None
        assert queue.end_time <= attempt.end_time, "an attempt lasts as long as its answer"
        sent = fake.headers[0]
        assert attempt.context is not None
        assert sent["traceparent"] == f"{PARENT[:36]}{attempt.context.span_id:016x}-01"
        assert sent["tracestate"] == "other=1"
        assert sent["content-type"] == "application/json"


@pytest.mark.parametrize("path", BODIES)
@in_loop
async def test_every_format_has_a_trace_without_a_word_of_it(path: str) -> None:
    spans, fake = Spans(), FakeTriton()
    model = "minilm" if path in ("/v1/embeddings", "/v1/rerank") else "smol"
    operation = tracing.OPERATIONS[path]
    async with running(fake, tracing=spans.tracing) as gateway:
        assert (await gateway.post(path, {"model": model, **BODIES[path]}))[0] == 200
        span = await spans.ended(f"{operation} {model}")
        assert told(span)["gen_ai.operation.name"] == operation
        assert is_child(spans.all[f"attempt {model}-up-0"], span)
        every = "".join(one.to_json() for one in spans.all.values())
        assert not any(word in every for word in ("hello", "Paris", "sk-test", "key-1"))


@in_loop
async def test_paths_that_no_engine_answers_and_strangers_have_none() -> None:
    spans = Spans()
    async with running(FakeTriton(), tracing=spans.tracing) as gateway:
        await gateway.get("/v1/models")
        await gateway.get("/healthz")
        await gateway.post("/v1/tokenize", {"model": "smol", "prompt": "a"})
        assert (await gateway.post("/v1/chat/completions", chat_body(), Authorization="Bearer no"))[0] == 401
        await until(lambda: len(gateway.log()) == 3)
        assert spans.all == {}


@pytest.mark.parametrize(
    ("body", "name", "status", "error"),
    [
        (chat_body(model="nope"), "chat", 404, "model_not_found"),
        (chat_body(max_tokens=999), "chat smol", 400, "context_length_exceeded"),
    ],
)
@in_loop
async def test_a_client_that_is_wrong(body: dict[str, Any], name: str, status: int, error: str) -> None:
    spans = Spans()
    async with running(FakeTriton(), tracing=spans.tracing) as gateway:
        assert (await gateway.post("/v1/chat/completions", body))[0] == status
        span = await spans.ended(name)
        assert told(span)["error.type"] == error
        assert "gen_ai.response.model" not in told(span)
        assert span.status.status_code is StatusCode.UNSET, "it is not the server that failed"


@in_loop
async def test_tries_and_continuations_are_spans_of_their_own() -> None:
    spans = Spans()
    first, second, third = FakeTriton(), FakeTriton(), FakeTriton()
    first.kill_after, second.kill_after = 0, 2
    async with running(first, second, third, tracing=spans.tracing) as gateway:
        assert (await gateway.chat())[1]["choices"][0]["message"]["content"] == "The capital is Paris"
        span = await spans.ended("chat smol")
        tries = [one for one in spans.exporter.get_finished_spans() if one.name.startswith("attempt ")]
        assert [(one.name, told(one).get("error.type")) for one in tries] == [
            ("attempt smol-up-0", "engine_stopped"),
            ("attempt smol-up-1", "engine_stopped"),
            ("attempt smol-up-0", "engine_stopped"),  # a continuation looks among all but where it broke off
            ("attempt smol-up-2", None),
        ]
        assert [told(one)["sovereign.attempt"] for one in tries] == [1, 2, 3, 4]
        assert [one.status.status_code for one in tries[2:]] == [StatusCode.ERROR, StatusCode.UNSET]
        assert all(is_child(one, span) for one in tries)
        assert span.status.status_code is StatusCode.UNSET
        assert told(span)["gen_ai.usage.output_tokens"] == 4


@in_loop
async def test_an_answer_that_fails() -> None:
    spans, fake = Spans(), FakeTriton()
    fake.kill_after = 2
    async with running(fake, tracing=spans.tracing) as gateway:
        await gateway.stream()
        span = await spans.ended("chat smol")
        assert (told(span)["error.type"], span.status.status_code) == ("engine_stopped", StatusCode.ERROR)
        assert told(span)["http.response.status_code"] == 502
        assert "gen_ai.response.finish_reasons" not in told(span)


@in_loop
async def test_a_wait_in_vain() -> None:
    spans, fake = Spans(), FakeTriton()
    fake.gate = asyncio.Event()
    limits = RouteLimits(model="smol", concurrency=1)
    settings = GatewaySettings(queue_timeout_s=0.2, limits=(limits,))
    async with running(fake, tracing=spans.tracing, settings=settings) as gateway:
        stream = asyncio.create_task(gateway.stream())
        await until(lambda: fake.active == 1)
        assert (await gateway.chat())[0] == 503
        await spans.ended("chat smol")
        queue = [one for one in spans.exporter.get_finished_spans() if one.name == "queue smol"][-1]
        assert told(queue) == {"error.type": "queue_timeout"}
        assert queue.start_time is not None
        assert queue.end_time is not None
        assert queue.end_time - queue.start_time >= 0.1e9
        fake.gate.set()
        await stream


@in_loop
async def test_a_client_that_leaves_is_no_error() -> None:
    spans, fake = Spans(), FakeTriton()
    fake.gate = asyncio.Event()
    async with running(fake, tracing=spans.tracing) as gateway:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await gateway.stream()
        span = await spans.ended("chat smol")
        assert told(span)["http.response.status_code"] == 499
        for one in spans.all.values():
            assert "error.type" not in told(one)
            assert one.status.status_code is StatusCode.UNSET
        assert "attempt smol-up-0" in spans.all


@in_loop
async def test_another_models_answer_names_both() -> None:
    spans = Spans()
    async with before(down(), FakeTriton(), tracing=spans.tracing) as gateway:
        assert (await gateway.chat())[0] == 200
        span = await spans.ended("chat smol")
        assert told(span)["gen_ai.request.model"] == "smol"
        assert told(span)["gen_ai.response.model"] == "smol-b"
        assert told(spans.all["queue smol"])["error.type"] == "TurnAway"
        assert is_child(spans.all["queue smol-b"], span)


@pytest.mark.parametrize(
    ("sample", "parent", "kept"),
    [(0.0, None, False), (0.0, PARENT, True), (1.0, UNSAMPLED, False), (1.0, None, True), (1.0, "x", True)],
)
@in_loop
async def test_the_client_decides_whether_a_trace_is_kept_else_chance(
    sample: float, parent: str | None, kept: bool
) -> None:
    spans, fake = Spans(sample), FakeTriton()
    async with running(fake, tracing=spans.tracing) as gateway:
        headers = {} if parent is None else {"traceparent": parent}
        assert (await gateway.post("/v1/chat/completions", chat_body(), **headers))[0] == 200
        await until(lambda: len(gateway.log()) == 1)
        assert ("chat smol" in spans.all) == kept
        flags = int(fake.headers[0]["traceparent"][-2:], 16)
        assert bool(flags & 1) == kept


@in_loop
async def test_off_nothing_is_sent_on() -> None:
    fake = FakeTriton()
    async with running(fake) as gateway:
        assert (await gateway.post("/v1/chat/completions", chat_body(), traceparent=PARENT))[0] == 200
        assert "traceparent" not in fake.headers[0]


class Receiver:
    """An OTLP/HTTP receiver."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.status = 200
        self.url = ""

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Receiver]:
        app = web.Application()
        app.router.add_post("/v1/traces", self._take)
        runner = web.AppRunner(app)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            await runner.cleanup()

    async def _take(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/x-protobuf"
        self.bodies.append(await request.read())
        return web.Response(status=self.status)

    def spans(self) -> dict[str, dict[str, Any]]:
        """Name → the attributes that are text."""
        found: dict[str, dict[str, Any]] = {}
        for body in self.bodies:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                service = {one.key: one.value.string_value for one in resource.resource.attributes}
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        values = {one.key: one.value.string_value for one in span.attributes}
                        found[span.name] = service | values
        return found


@contextmanager
def exporting(endpoint: str, complaints: list[str]) -> Iterator[Tracing]:
    wanted = TracingSettings(endpoint=endpoint)
    made = start_tracing(GatewaySettings(tracing=wanted), wanted, complaints.append)
    try:
        yield made
    finally:
        made.close()
        # its thread may try once more after the end
        logging.getLogger("opentelemetry").handlers[:] = [logging.NullHandler()]


@in_loop
async def test_a_real_receiver_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "BATCH_DELAY_MS", 50.0)
    complaints: list[str] = []
    async with Receiver().listening() as receiver:
        with exporting(receiver.url + "/", complaints) as made:
            async with running(FakeTriton(), tracing=made) as gateway:
                assert (await gateway.chat())[0] == 200
                await until(lambda: "chat smol" in receiver.spans())
                span = receiver.spans()["chat smol"]
                assert span["service.name"] == "sovereign-gateway"
                assert span["gen_ai.response.model"] == "smol"
                assert {"queue smol", "attempt smol-up-0"} <= set(receiver.spans())
    assert complaints == []


@in_loop
async def test_the_last_spans_are_sent_at_the_end() -> None:
    async with Receiver().listening() as receiver:
        with exporting(receiver.url, []) as made:
            async with running(FakeTriton(), tracing=made) as gateway:
                assert (await gateway.chat())[0] == 200
            await asyncio.to_thread(made.close)
        assert "chat smol" in receiver.spans()


@pytest.mark.parametrize("listens", [False, True])
@in_loop
async def test_a_receiver_that_takes_nothing_disturbs_nobody(
    listens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither one that is not there nor one that refuses; the end does not wait for it for long."""
    monkeypatch.setattr(tracing, "BATCH_DELAY_MS", 10.0)
    monkeypatch.setattr(tracing, "MAX_SPANS", 4)
    monkeypatch.setattr(tracing, "BATCH_SPANS", 2)
    complaints: list[str] = []
    async with Receiver().listening() as receiver:
        receiver.status = 503
        endpoint = receiver.url if listens else "http://127.0.0.1:9"
        with exporting(endpoint, complaints) as made:
            async with running(FakeTriton(), tracing=made) as gateway:
                answers = [await gateway.chat() for _ in range(20)]
                assert [status for status, _ in answers] == [200] * 20
                await until(lambda: complaints)
            began = time.monotonic()
            await asyncio.to_thread(made.close)
            assert time.monotonic() - began < tracing.CLOSE_S + 0.5
    assert len(complaints) == 1


def test_complaints_are_told_now_and_then() -> None:
    told: list[str] = []
    times = iter([0.0, 1.0, 59.0, 60.0])
    logger = logging.Logger("test")
    logger.addHandler(Complaints(told.append, lambda: next(times)))
    for number in range(4):
        logger.warning("no %d %s", number, "x" * 1000)
    logger.info("never")
    assert [line[:4] for line in told] == ["no 0", "no 3"]
    assert {len(line) for line in told} == {500}


@in_loop
async def test_a_stream_still_passes_while_it_is_traced() -> None:
    """Events come as they do without a trace, logprobs and several choices too."""
    spans = Spans()
    async with running(FakeTriton(), tracing=spans.tracing) as gateway:
        body = chat_body(stream=True, n=2)
        async with gateway.session.post(gateway.url + "/v1/chat/completions", json=body) as response:
            events = [line for line in (await response.text()).split("\n\n") if line]
        assert events[-1] == "data: [DONE]"
        assert {json.loads(one[6:])["choices"][0]["index"] for one in events[:-1]} == {0, 1}
        span = await spans.ended("chat smol")
        assert told(span)["gen_ai.response.finish_reasons"] == ("stop", "stop")
        assert len([1 for one in spans.exporter.get_finished_spans() if one.name.startswith("attempt")]) == 2
