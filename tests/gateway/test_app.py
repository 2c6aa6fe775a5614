from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from sovereign_ai.gateway.admission import digest
from sovereign_ai.gateway.app import create_app
from sovereign_ai.gateway.ledger import Ledger
from sovereign_ai.spec import Route, Routes
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.running import (
    KEY,
    MAX_BODY_BYTES,
    NOW,
    Running,
    chat_body,
    in_loop,
    key_table,
    running,
    until,
)
from tests.gateway.test_templates import save_tokenizer

V1 = ["/v1", "/v1/models", "/v1/models/smol", "/v1/chat/completions", "/v1/nothing"]


async def raw(gateway: Running, data: bytes, *, close: bool = False) -> bytes:
    """Bytes to the gateway, and all that comes back until it closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    writer.write(data)
    await writer.drain()
    if close:
        writer.write_eof()
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize("path", V1)
@pytest.mark.parametrize("header", [None, "Bearer sk-wrong", "Basic abc", "Bearer"])
@in_loop
async def test_without_a_good_key_nothing_under_v1_answers(path: str, header: str | None) -> None:
    async with running(FakeTriton()) as gateway, aiohttp.ClientSession() as session:
        headers = {} if header is None else {"Authorization": header}
        async with session.get(gateway.url + path, headers=headers) as response:
            assert response.status == 401
            assert response.headers["WWW-Authenticate"] == "Bearer"
            error = (await response.json())["error"]
            assert (error["code"], error["type"], error["param"]) == (
                "invalid_api_key",
                "invalid_request_error",
                None,
            )


@in_loop
async def test_the_gateways_own_pages_need_no_key() -> None:
    async with running(FakeTriton()) as gateway, aiohttp.ClientSession() as session:
        for path in ("/healthz", "/readyz", "/metrics"):
            async with session.get(gateway.url + path) as response:
                assert response.status == 200
        assert gateway.log() == []


@in_loop
async def test_an_expired_key() -> None:
    keys = key_table()
    record = keys.records[digest(KEY)]
    keys.records[digest(KEY)] = msgspec.structs.replace(record, expires=NOW)
    async with running(FakeTriton(), keys=keys) as gateway:
        status, body = await gateway.get("/v1/models")
        assert (status, body["error"]["message"]) == (401, "This API key has expired")


@in_loop
async def test_a_revoked_key_fails_at_its_next_request_and_its_stream_ends_well(tmp_path: Path) -> None:
    fake = FakeTriton()
    fake.gate = asyncio.Event()
    path = tmp_path / "ledger.sqlite"
    with Ledger(path) as keys, Ledger(path) as command_line:
        record, secret = command_line.create_key("laptop")
        async with running(fake, keys=keys) as gateway:
            gateway.session.headers["Authorization"] = f"Bearer {secret}"
            assert (await gateway.get("/v1/models"))[0] == 200
            stream = asyncio.create_task(gateway.stream())
            await until(lambda: fake.active)
            command_line.revoke_key(record.id)
            status, body = await gateway.get("/v1/models")
            assert (status, body["error"]["message"]) == (401, "This API key has been revoked")
            fake.gate.set()
            assert (await stream)[-1] == "[DONE]"
            assert gateway.log()[-1]["key"] == record.id


@in_loop
async def test_models() -> None:
    async with running(FakeTriton()) as gateway:
        status, body = await gateway.get("/v1/models")
        assert (status, body["object"], [model["id"] for model in body["data"]]) == (
            200,
            "list",
            ["smol", "minilm"],
        )
        assert await gateway.get("/v1/models/smol") == (200, body["data"][0])
        status, body = await gateway.get("/v1/models/nope")
        assert (status, body["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("path", ["/", "/v2", "/v1/", "/v1/chat", "/v1/models%20", "/health"])
@in_loop
async def test_unknown_paths(path: str) -> None:
    async with running(FakeTriton()) as gateway:
        status, body = await gateway.get(path)
        assert (status, body["error"]["code"]) == (404, "unknown_url")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("DELETE", "/v1/embeddings", "POST"),
        ("POST", "/v1/models", "GET"),
        ("DELETE", "/v1/models/smol", "GET"),
        ("POST", "/healthz", "GET"),
    ],
)
@in_loop
async def test_wrong_methods(method: str, path: str, allowed: str) -> None:
    async with (
        running(FakeTriton()) as gateway,
        gateway.session.request(method, gateway.url + path) as response,
    ):
        assert (response.status, response.headers["Allow"]) == (405, allowed)
        assert (await response.json())["error"]["code"] == "method_not_allowed"


@in_loop
async def test_malformed_json_says_where() -> None:
    async with running(FakeTriton()) as gateway:
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
            status, body = await gateway.post(path, b'{"model": smol}')
            assert (status, body["error"]["code"]) == (400, "invalid_json")
            assert "byte 10" in body["error"]["message"]


@pytest.mark.parametrize(
    ("name", "value"), [("n", 9), ("functions", [{}]), ("logit_bias", {"1": 1}), ("reasoning_effort", "low")]
)
@in_loop
async def test_what_is_not_supported_is_refused_by_name(name: str, value: Any) -> None:
    async with running(FakeTriton()) as gateway:
        status, body = await gateway.chat(**{name: value})
        assert (status, body["error"]["param"]) == (400, name)


HEAD = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"


@in_loop
async def test_a_body_announced_too_large_is_refused_unread() -> None:
    async with running(FakeTriton()) as gateway:
        answer = await raw(
            gateway, f"{HEAD}Content-Length: 9999999999\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"100 Continue" not in answer
        assert b"connection: close" in answer.lower()
        assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"]["code"] == "request_too_large"


@in_loop
async def test_a_chunked_body_is_refused_once_it_is_too_large() -> None:
    async with running(FakeTriton()) as gateway:
        piece = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
        answer = await raw(gateway, f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode() + piece * 5)
        assert answer.startswith(b"HTTP/1.1 413 ")


@in_loop
async def test_a_body_at_the_limit_is_read() -> None:
    async with running(FakeTriton()) as gateway:
        body = json.dumps(chat_body()).encode().ljust(MAX_BODY_BYTES)
        assert (await gateway.post("/v1/chat/completions", body))[0] == 200
        assert (await gateway.post("/v1/chat/completions", body + b" "))[0] == 413


@in_loop
async def test_a_client_that_leaves_while_sending() -> None:
    async with running(FakeTriton()) as gateway:
        await raw(gateway, f"{HEAD}Content-Length: 100\r\n\r\n".encode(), close=True)
        await until(lambda: gateway.log())
        assert gateway.log()[0]["status"] == 499


@in_loop
async def test_readiness_names_what_is_missing() -> None:
    fake = FakeTriton()
    fake.ready = False
    async with running(fake) as gateway:
        assert await gateway.get("/readyz") == (503, {"status": "not ready", "models": ["smol", "minilm"]})
        assert (await gateway.get("/healthz"))[0] == 200
        status, body = await gateway.chat()
        assert (status, body["error"]["code"]) == (503, "engine_unavailable")


@in_loop
async def test_metrics_count() -> None:
    async with running(FakeTriton()) as gateway:
        await gateway.chat()
        await gateway.chat(model="nope")
        async with gateway.session.get(gateway.url + "/metrics") as response:
            assert response.content_type == "text/plain"
            text = await response.text()
        assert 'sovereign_requests_total{model="smol",status="200"} 1.0' in text
        assert 'sovereign_requests_total{model="",status="404"} 1.0' in text
        assert 'sovereign_completion_tokens_total{endpoint="smol-up-0",model="smol"} 4.0' in text
        assert 'sovereign_requests_running{model="smol"} 0.0' in text
        assert 'sovereign_endpoint_up{endpoint="smol-up-0",model="smol"} 1.0' in text


@in_loop
async def test_a_fault_of_ours_is_a_500_and_ends_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(FakeTriton()) as gateway:
        monkeypatch.setattr(gateway.gateway.pool, "choose", lambda model, **_: 1 / 0)
        status, body = await gateway.chat()
        assert (status, body["error"]["code"]) == (500, "internal_error")
        assert gateway.log("fault")[0]["error"] == "ZeroDivisionError"
        assert (await gateway.get("/v1/models"))[0] == 200


@in_loop
async def test_stopping_tells_every_client() -> None:
    fake = FakeTriton()
    fake.gate = asyncio.Event()
    async with running(fake) as gateway:
        stream, whole = asyncio.create_task(gateway.stream()), asyncio.create_task(gateway.chat())
        await until(lambda: fake.active == 2)
        gateway.gateway.stop()
        last = json.loads((await stream)[-1])
        assert last["error"]["message"] == "The gateway is shutting down"
        assert (await whole)[0] == 503
        assert (await gateway.get("/v1/models"))[0] == 503
        await until(lambda: fake.left == 2)


@in_loop
async def test_a_cancellation_from_elsewhere_is_not_swallowed() -> None:
    fake = FakeTriton()
    fake.gate = asyncio.Event()
    async with running(fake) as gateway:
        body = json.dumps(chat_body()).encode()
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> Any:
            message = next(messages, None)
            return message if message is not None else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            raise AssertionError("nothing is answered")

        headers = [(b"authorization", f"Bearer {KEY}".encode())]
        scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": headers}
        task = asyncio.ensure_future(gateway.gateway(scope, receive, send))
        await until(lambda: fake.active == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: fake.left == 1)


@in_loop
async def test_other_scopes_are_ignored() -> None:
    async with running(FakeTriton()) as gateway:

        async def unused(*_: Any) -> Any:
            raise AssertionError("nothing is sent or received")

        await gateway.gateway({"type": "websocket"}, unused, unused)


def test_the_text_side_is_read_from_the_routes_folder(tmp_path: Path) -> None:
    save_tokenizer(tmp_path)
    route = Route(model="m", task="chat", context=8, folder=str(tmp_path), endpoints=())
    gateway = create_app(Routes(routes=(route,)), key_table(), max_body_bytes=1024, write=lambda line: None)
    assert gateway.pool.unready() == ["m"]
