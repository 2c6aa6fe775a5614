"""What happens when an engine fails: told through the whole gateway, because clients see nothing less."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from typing import Any

import aiohttp
import pytest
from yarl import URL

from sovereign_ai.config import GatewaySettings
from sovereign_ai.gateway.breaker import LEAST_FAILURES
from sovereign_ai.gateway.client import Client
from sovereign_ai.gateway.door import Door
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.running import KEY, Running, chat_body, in_loop, running, until


def client_to(port: int) -> Client:
    return Client(URL(f"http://127.0.0.1:{port}"))


def error_of(answer: tuple[int, Any]) -> tuple[int, str | None, str]:
    status, body = answer
    return status, body["error"]["code"], body["error"]["message"]


@pytest.mark.parametrize("framing", ["one by one", "all at once", "torn"])
@in_loop
async def test_however_the_events_arrive_the_answer_is_the_same(framing: Any) -> None:
    fake = FakeTriton()
    fake.framing = framing
    async with running(fake) as gateway:
        _, body = await gateway.chat()
        assert body["choices"][0]["message"]["content"] == "The capital is Paris"
        texts = [
            json.loads(event)["choices"][0]["delta"].get("content", "")
            for event in (await gateway.stream())[:-1]
        ]
        assert "".join(texts) == "The capital is Paris"


@in_loop
async def test_connections_are_used_again() -> None:
    fake = FakeTriton()
    async with running(fake) as gateway:
        for _ in range(5):
            await gateway.stream()
            await gateway.chat()
        assert gateway.gateway.pool.choose("smol").client.idle == 1


@in_loop
async def test_killed_before_the_first_token() -> None:
    fake = FakeTriton()
    fake.kill_after = 0
    async with running(fake) as gateway:
        assert error_of(await gateway.chat()) == (502, "engine_stopped", "the engine stopped while answering")
        assert (
            'upstream_failures_total{endpoint="smol-up-0",model="smol"} 1.0'
            in gateway.gateway.metrics.text().decode()
        )


@in_loop
async def test_killed_in_the_middle() -> None:
    fake = FakeTriton()
    fake.kill_after = 2
    async with running(fake) as gateway:
        assert error_of(await gateway.chat())[:2] == (502, "engine_stopped")
        events = await gateway.stream()
        assert json.loads(events[-2])["choices"][0]["delta"]["content"] == " capital"
        assert json.loads(events[-1])["error"]["message"] == "the engine stopped while answering"
        assert gateway.log()[-1]["status"] == 502
        assert gateway.log()[-1]["completion_tokens"] == 2


@in_loop
async def test_an_end_without_a_finish_reason_is_no_end() -> None:
    fake = FakeTriton()
    fake.stop_short = True
    async with running(fake) as gateway:
        assert error_of(await gateway.chat())[:2] == (502, "engine_stopped")
        assert "error" in json.loads((await gateway.stream())[-1])


@pytest.mark.parametrize("after", [0, 2])
@in_loop
async def test_a_dead_model_process_is_avoided(after: int) -> None:
    fake = FakeTriton()
    fake.error_after = after
    async with running(fake) as gateway:
        assert error_of(await gateway.chat())[:2] == (502, "engine_stopped")
        assert error_of(await gateway.chat())[:2] == (503, "engine_unavailable")
        assert gateway.log("upstream_failed")[0]["reason"] == fake.error_text
        assert (await gateway.get("/readyz"))[1] == {"status": "not ready", "models": ["smol"]}


@pytest.mark.parametrize("tokens", [["only"], ["two", " tokens"]])
@in_loop
async def test_requests_that_a_dead_model_process_leaves_hanging_are_ended(
    tokens: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sovereign_ai.gateway.pool.PROBE_INTERVAL_S", 0.01)
    monkeypatch.setattr("sovereign_ai.gateway.pool.SILENCE_S", 0.05)
    fake = FakeTriton()
    fake.tokens = tokens
    fake.gate = asyncio.Event()
    async with running(fake) as gateway:
        stream, whole = asyncio.create_task(gateway.chat(stream=True)), asyncio.create_task(gateway.chat())
        await until(lambda: fake.active == 2)
        fake.refusal = (400, fake.error_text)
        assert error_of(await whole)[:2] == (502, "engine_stopped")
        with contextlib.suppress(aiohttp.ContentTypeError):
            assert error_of(await stream)[0] == 502
        assert {line["status"] for line in gateway.log()} == {502}


@in_loop
async def test_one_requests_failure_does_not_take_the_endpoint_away() -> None:
    fake = FakeTriton()
    fake.error_after, fake.error_text = 1, "Error generating stream: something odd"
    async with running(fake) as gateway:
        assert (await gateway.chat())[0] == 502
        assert (await gateway.get("/readyz"))[0] == 200


@in_loop
async def test_nobody_listens_any_more() -> None:
    fake = FakeTriton()
    async with running(fake, settings=GatewaySettings(queue_timeout_s=0.2)) as gateway:
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port = unused.getsockname()[1]
        upstream = gateway.gateway.pool.choose("smol")
        upstream.client = client_to(port)
        assert error_of(await gateway.chat())[:2] == (503, "engine_unavailable")
        async with gateway.session.post(gateway.url + "/v1/chat/completions", json=chat_body()) as response:
            assert response.status == 503
            assert response.headers["Retry-After"] == "1"


@in_loop
async def test_who_finds_that_nobody_listens_waits_for_the_engine_to_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A lone engine was killed, and the next health check has not been yet: nothing was sent, so it is asked
    once it is there again; its tokens count once."""
    monkeypatch.setattr("sovereign_ai.gateway.pool.PROBE_INTERVAL_S", 0.02)
    async with running(FakeTriton()) as gateway:
        upstream = gateway.gateway.pool.choose("smol")
        there = upstream.client
        with socket.create_server(("127.0.0.1", 0)) as unused:
            upstream.client = client_to(unused.getsockname()[1])
        asking = asyncio.create_task(gateway.chat())
        await until(lambda: not upstream.available)
        assert not asking.done()
        upstream.client = there
        status, body = await asking
        assert (status, body["choices"][0]["message"]["content"]) == (200, "The capital is Paris")
        (line,) = gateway.log()
        assert (line["status"], line["endpoint"]) == (200, upstream.name)
        door = gateway.gateway._door
        assert isinstance(door, Door)
        (meter,) = door._keys.values()
        assert meter.tokens.total(time.monotonic()) == line["prompt_tokens"] + line["completion_tokens"]


@in_loop
async def test_before_the_first_token_another_endpoint_takes_over() -> None:
    bad, good = FakeTriton(), FakeTriton()
    bad.kill_after = 0
    async with running(bad, good) as gateway:
        status, body = await gateway.chat()
        assert (status, body["choices"][0]["message"]["content"]) == (200, "The capital is Paris")
        assert len(bad.bodies) == len(good.bodies) == 1


@in_loop
async def test_a_request_is_tried_twice_at_most() -> None:
    fakes = [FakeTriton() for _ in range(3)]
    for fake in fakes:
        fake.kill_after = 0
    async with running(*fakes) as gateway:
        assert (await gateway.chat())[0] == 502
        assert sum(len(fake.bodies) for fake in fakes) == 2


@in_loop
async def test_what_was_begun_is_continued_elsewhere() -> None:
    bad, good = FakeTriton(), FakeTriton()
    bad.kill_after = 2
    async with running(bad, good) as gateway:
        status, body = await gateway.chat()
        assert (status, body["choices"][0]["message"]["content"]) == (200, "The capital is Paris")
        assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        assert body["choices"][0]["finish_reason"] == "stop"
        assert good.bodies[0]["text_input"] == "user: hello assistant: The capital"
        text = gateway.gateway.metrics.text().decode()
        assert 'sovereign_continuations_total{model="smol"} 1.0' in text
        assert gateway.log("continued")[0]["endpoint"] == "smol-up-1"


@in_loop
async def test_a_stream_that_breaks_off_is_one_stream_to_its_client() -> None:
    bad, good = FakeTriton(), FakeTriton()
    bad.kill_after = 2
    async with running(bad, good) as gateway:
        events = await gateway.stream(stream_options={"include_usage": True})
        chunks = [json.loads(event) for event in events[:-1]]
        assert events[-1] == "[DONE]"
        texts = [one["choices"][0]["delta"].get("content", "") for one in chunks if one["choices"]]
        assert "".join(texts) == "The capital is Paris"
        assert chunks[-1]["usage"]["completion_tokens"] == 4
        assert {one["id"] for one in chunks} == {"chatcmpl-1d"}


@in_loop
async def test_a_route_may_do_without_continuing() -> None:
    bad, good = FakeTriton(), FakeTriton()
    bad.kill_after = 1
    async with running(bad, good, continuations=0) as gateway:
        assert (await gateway.chat())[0] == 502
        assert good.bodies == []


@in_loop
async def test_an_endpoint_that_fails_again_and_again_is_left_alone() -> None:
    bad, good = FakeTriton(), FakeTriton()
    bad.refusal = (500, "no")
    async with running(bad, good) as gateway:
        for _ in range(12):
            assert (await gateway.chat())[0] == 200
        assert len(bad.bodies) == LEAST_FAILURES
        text = gateway.gateway.metrics.text().decode()
        assert 'sovereign_ejections_total{endpoint="smol-up-0",model="smol"} 1.0' in text
        assert f'sovereign_retries_total{{model="smol"}} {LEAST_FAILURES}.0' in text
        assert gateway.log("endpoint_ejected")[0]["endpoint"] == "smol-up-0"


@in_loop
async def test_one_in_ten_that_fails_is_noticed_by_nobody() -> None:
    bad, good = FakeTriton(), FakeTriton()
    async with running(bad, good) as gateway:
        for number in range(40):
            bad.refusal = (500, "no") if number % 10 == 0 else None
            assert (await gateway.chat())[0] == 200
        assert not gateway.log("endpoint_ejected")


@in_loop
async def test_a_parameter_that_the_engine_refuses_is_the_clients_fault() -> None:
    fake = FakeTriton()
    fake.refusal = (400, "stop must not be so")
    async with running(fake, FakeTriton()) as gateway:
        status, _, message = error_of(await gateway.chat())
        assert (status, message) == (400, "the engine refused the request: stop must not be so")


@pytest.mark.parametrize("refusal", [(500, "no"), (400, "Request for unknown model: 'smol-up' is not found")])
@in_loop
async def test_a_server_that_refuses(refusal: tuple[int, str]) -> None:
    fake = FakeTriton()
    fake.refusal = refusal
    async with running(fake) as gateway:
        assert error_of(await gateway.chat())[0] == 502
        body = {"model": "minilm", "input": "x"}
        assert error_of(await gateway.post("/v1/embeddings", body))[0] == 502
        assert refusal[1] in gateway.log("upstream_failed")[0]["reason"]


async def leave_in_the_middle(gateway: Running, fake: FakeTriton, **fields: Any) -> None:
    """A client that closes its connection while the fake waits before its last token."""
    body = json.dumps(chat_body(**fields)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    _, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await until(lambda: fake.active == 1)
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("stream", [True, False])
@in_loop
async def test_when_the_client_leaves_the_engine_is_left(stream: bool) -> None:
    fake = FakeTriton()
    fake.gate = asyncio.Event()
    async with running(fake) as gateway:
        await leave_in_the_middle(gateway, fake, stream=stream)
        await until(lambda: fake.left == 1)
        await until(lambda: gateway.log())
        assert gateway.log()[0]["status"] == 499
        assert gateway.gateway.pool.choose("smol").outstanding == 0


@in_loop
async def test_when_the_client_leaves_before_the_first_token_too() -> None:
    fake = FakeTriton()
    fake.tokens = ["only"]
    fake.gate = asyncio.Event()
    async with running(fake) as gateway:
        await leave_in_the_middle(gateway, fake)
        await until(lambda: fake.left == 1)


@in_loop
async def test_a_stream_whose_end_does_not_come_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sovereign_ai.gateway.upstream.DRAIN_S", 0.01)
    fake = FakeTriton()
    fake.tokens = ["a", "b"]
    async with running(fake) as gateway:
        forever = asyncio.Event()
        original = FakeTriton._write

        async def write_and_hang(self: FakeTriton, response: Any, event: Any, *, last: bool) -> None:
            await original(self, response, event, last=last)
            if last:
                await forever.wait()

        monkeypatch.setattr(FakeTriton, "_write", write_and_hang)
        assert (await gateway.stream())[-1] == "[DONE]"
        await until(lambda: fake.left == 1)


@in_loop
async def test_large_prompts_pass() -> None:
    fake = FakeTriton()
    async with running(fake) as gateway:
        gateway.gateway._max_body_bytes = 4 * 1024 * 1024
        # one word, so one token: only its bytes are many
        status, _ = await gateway.chat(messages=[{"role": "user", "content": "x" * 2_000_000}])
        assert status == 200
        assert len(fake.bodies[0]["text_input"]) > 2_000_000


@in_loop
async def test_an_embedding_that_breaks_off() -> None:
    async def cut_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
        await writer.drain()
        writer.close()

    fake = FakeTriton()
    async with running(fake) as gateway, await asyncio.start_server(cut_off, "127.0.0.1", 0) as server:
        upstream = gateway.gateway.pool.choose("minilm")
        upstream.client = client_to(server.sockets[0].getsockname()[1])
        assert error_of(await gateway.post("/v1/embeddings", {"model": "minilm", "input": "x"}))[0] == 502


@in_loop
async def test_a_connection_that_is_closed_without_an_answer() -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    fake = FakeTriton()
    async with running(fake) as gateway, await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        upstream = gateway.gateway.pool.choose("smol")
        upstream.client = client_to(server.sockets[0].getsockname()[1])
        assert error_of(await gateway.chat())[:2] == (502, "engine_stopped")
