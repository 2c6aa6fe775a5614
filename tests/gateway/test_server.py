from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from sovereign_ai.config import GatewaySettings, TracingSettings, encode_gateway
from sovereign_ai.errors import NoPermission, PortTaken, UsageError
from sovereign_ai.gateway.admission import Limits
from sovereign_ai.gateway.ledger import Ledger
from sovereign_ai.gateway.server import serve
from sovereign_ai.gateway.usage import report
from sovereign_ai.spec import Routes
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.running import chat_body, in_loop, routes_to, until
from tests.gateway.test_templates import save_tokenizer
from tests.gateway.test_tracing import Receiver

SCRIPT = """
import sys
from pathlib import Path
from sovereign_ai.config import decode_gateway
from sovereign_ai.gateway.server import serve
serve(routes_file=Path(sys.argv[1]), ledger_file=Path(sys.argv[2]), settings=decode_gateway(sys.argv[3]))
"""


def write_routes(folder: Path, *fakes: FakeTriton) -> Path:
    save_tokenizer(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    routes = [msgspec.structs.replace(route, folder=str(folder)) for route in routes_to(*fakes).routes]
    path = folder / "routes.json"
    path.write_bytes(msgspec.json.encode(Routes(routes=tuple(routes))))
    return path


@asynccontextmanager
async def process(
    folder: Path, fake: FakeTriton, *, make_key: bool = True, script: str = SCRIPT, **settings: Any
) -> AsyncIterator[tuple[Process, str, str]]:
    """The gateway as a process of its own, its address, and a key."""
    secret = ""
    if make_key:
        with Ledger(folder / "ledger.sqlite") as keys:
            _, secret = keys.create_key("test")
    chosen = encode_gateway(GatewaySettings(**{"port": 0, "max_body_bytes": 65536, **settings}))
    command = [sys.executable, "-c", script, str(write_routes(folder, fake))]
    command += [str(folder / "ledger.sqlite"), chosen]
    running = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    try:
        assert running.stderr is not None
        listening: dict[str, Any] = json.loads(await running.stderr.readline())
        yield running, f"http://127.0.0.1:{listening['port']}", secret
    finally:
        if running.returncode is None:
            running.kill()
        await running.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@in_loop
async def test_a_signal_ends_streams_and_then_the_process(number: signal.Signals, tmp_path: Path) -> None:
    fake = FakeTriton()
    fake.gate = asyncio.Event()
    async with fake.listening(), process(tmp_path, fake) as (gateway, url, secret):
        headers = {"Authorization": f"Bearer {secret}"}
        body = chat_body(stream=True)
        async with aiohttp.ClientSession(headers=headers) as session:
            async with session.post(f"{url}/v1/chat/completions", json=body) as response:
                assert response.status == 200
                await response.content.readline()
                os.kill(gateway.pid, number)
                rest = await response.text()
            async with asyncio.timeout(10):
                assert gateway.stderr is not None
                log = await gateway.stderr.read()
                assert await gateway.wait() == 0
        assert "The gateway is shutting down" in rest
        assert "[DONE]" not in rest
        await until(lambda: fake.left == 1)
    events = [json.loads(line) for line in log.splitlines()]
    assert [event["event"] for event in events][-2:] == ["request", "stopped"]
    assert events[-2]["error"] == "shutting_down"


@pytest.mark.parametrize("there", [True, False])
@in_loop
async def test_traces_leave_the_process_and_its_log_stays_whole(there: bool, tmp_path: Path) -> None:
    """A receiver that is not there holds up neither requests nor the end."""
    fake = FakeTriton()
    async with fake.listening(), Receiver().listening() as receiver:
        tracing = TracingSettings(endpoint=receiver.url if there else "http://127.0.0.1:9")
        async with process(tmp_path, fake, tracing=tracing) as (gateway, url, secret):
            headers = {"Authorization": f"Bearer {secret}"}
            async with (
                aiohttp.ClientSession(headers=headers) as session,
                session.post(f"{url}/v1/chat/completions", json=chat_body()) as response,
            ):
                assert response.status == 200
            gateway.terminate()
            async with asyncio.timeout(3.5):
                assert gateway.stderr is not None
                log = await gateway.stderr.read()
                assert await gateway.wait() == 0
        assert ("chat smol" in receiver.spans()) == there
    events = [json.loads(line)["event"] for line in log.splitlines()]
    assert events.count("traces_unsent") == (0 if there else 1)


@in_loop
async def test_a_client_that_does_not_read_cannot_hold_the_end_up(tmp_path: Path) -> None:
    fake = FakeTriton()
    # far more than all buffers on the way hold
    fake.tokens = ["x" * 1_000_000] * 29
    async with fake.listening(), process(tmp_path, fake) as (gateway, url, secret):
        body = json.dumps(chat_body(stream=True, max_tokens=30)).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {secret}\r\n"
        _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await until(lambda: fake.written > 5)
        gateway.terminate()
        async with asyncio.timeout(10):
            await gateway.wait()
        writer.close()


def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=str(port)):
            start(write_routes(tmp_path), tmp_path, port=port)


def test_a_port_that_is_not_ours_to_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> socket.socket:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(NoPermission, match="port 80"):
        start(write_routes(tmp_path), tmp_path, port=80)


def test_an_address_that_is_not_here(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"192\.0\.2\.1"):
        start(write_routes(tmp_path), tmp_path, host="192.0.2.1")


def test_routes_that_are_missing_or_broken(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        start(tmp_path / "routes.json", tmp_path)
    (tmp_path / "routes.json").write_text("{}")
    with pytest.raises(UsageError, match="routes"):
        start(tmp_path / "routes.json", tmp_path)


def start(routes: Path, folder: Path, *, host: str = "127.0.0.1", port: int = 0) -> None:
    serve(
        routes_file=routes,
        ledger_file=folder / "ledger.sqlite",
        settings=GatewaySettings(host=host, port=port, max_body_bytes=1024),
    )


async def events(process: Process, *, until: str) -> list[dict[str, Any]]:
    """Log lines up to the first of this kind."""
    assert process.stderr is not None
    found: list[dict[str, Any]] = []
    async with asyncio.timeout(10):
        while not found or found[-1]["event"] != until:
            found.append(json.loads(await process.stderr.readline()))
    return found


@in_loop
async def test_routes_are_taken_over_without_dropping_a_stream(tmp_path: Path) -> None:
    """A stream that runs goes on at the old endpoint, the next request goes to the new one; a broken file
    changes nothing."""
    old, new = FakeTriton(), FakeTriton()
    old.gate, new.tokens = asyncio.Event(), ["new"]
    async with old.listening(), new.listening(), process(tmp_path, old) as (gateway, url, secret):
        headers = {"Authorization": f"Bearer {secret}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            chats = f"{url}/v1/chat/completions"
            async with session.post(chats, json=chat_body(stream=True)) as response:
                await response.content.readline()
                routes = tmp_path / "routes.json"
                good = routes.read_bytes()
                routes.write_bytes(good[:-20])
                broken = (await events(gateway, until="routes_broken"))[-1]
                assert "does not hold routes" in broken["error"]
                async with session.get(f"{url}/metrics") as metrics:
                    assert "sovereign_routes_valid 0.0" in await metrics.text()
                routes.write_bytes(good.replace(old.url.encode(), new.url.encode()))
                await events(gateway, until="routes_loaded")
                async with session.post(chats, json=chat_body()) as other:
                    assert (await other.json())["choices"][0]["message"]["content"] == "new"
                old.gate.set()
                assert "[DONE]" in await response.text()
            await events(gateway, until="endpoint_drained")


async def count_stream(url: str, secret: str, *, leave_after: int | None = None) -> tuple[int, int]:
    """Prompt and answer tokens of a stream as its client counts them; each is one event."""
    body = chat_body(stream=True, stream_options={"include_usage": True})
    prompt, tokens = 1, 0  # the template of these tests renders `hello`
    headers = {"Authorization": f"Bearer {secret}"}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{url}/v1/chat/completions", json=body) as response,
    ):
        async for line in response.content:
            if line.startswith(b"data: {"):
                event = json.loads(line[6:])
                tokens += any(choice["delta"].get("content") for choice in event["choices"])
            if tokens == leave_after:
                break
    return prompt, tokens


@in_loop
async def test_the_books_say_what_the_clients_counted(tmp_path: Path) -> None:
    """Whole streams, and one whose client left; over two gateways, of which the second knows the budget."""
    fake = FakeTriton()
    async with fake.listening():
        async with process(tmp_path, fake) as (gateway, url, secret):
            counted = [await count_stream(url, secret) for _ in range(3)]
            fake.gate = asyncio.Event()
            counted.append(await count_stream(url, secret, leave_after=3))
            await until(lambda: fake.left == 1)
            gateway.terminate()
            await gateway.wait()
            fake.gate = None
        total = sum(prompt + tokens for prompt, tokens in counted)
        ledger = tmp_path / "ledger.sqlite"
        (row,) = report(ledger, "key")
        assert (row.requests, row.total_tokens) == (4, total)
        with Ledger(ledger) as keys:
            keys.set_key(
                "test",
                lambda grants: msgspec.structs.replace(grants, limits=Limits(tokens_per_day=total + 5)),
            )
        async with process(tmp_path, fake, make_key=False) as (_, url, _):
            headers = {"Authorization": f"Bearer {secret}"}
            async with aiohttp.ClientSession(headers=headers) as session:
                chats = f"{url}/v1/chat/completions"
                async with session.post(chats, json=chat_body(max_tokens=5)) as response:
                    assert (await response.json())["error"]["code"] == "insufficient_quota"
                async with session.post(chats, json=chat_body(max_tokens=4)) as response:
                    assert response.status == 200
