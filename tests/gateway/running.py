"""The gateway on a real socket, in the test's own event loop, with fakes behind it."""

from __future__ import annotations

import asyncio
import functools
import io
import json
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, ParamSpec

import aiohttp
import jinja2
import uvicorn
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from sovereign_ai.config import GatewaySettings
from sovereign_ai.gateway.admission import KeyRecord, digest
from sovereign_ai.gateway.app import Gateway, KeyTable, UsageBook, create_app
from sovereign_ai.gateway.protocol import Protocol
from sovereign_ai.gateway.templates import PromptBuilder
from sovereign_ai.gateway.tracing import Tracing
from sovereign_ai.spec import Endpoint, Route, Routes
from tests.gateway.fake_triton import FakeTriton

KEY = "sk-test"
CONTEXT = 32
MAX_BODY_BYTES = 64 * 1024
NOW = 1_700_000_000.0

IMPATIENT = GatewaySettings(queue_timeout_s=0.3)
"""Requests for a model that is not ready are refused soon."""

_P = ParamSpec("_P")


def in_loop(test: Callable[_P, Coroutine[Any, Any, None]]) -> Callable[_P, None]:
    """Runs an async test to its end."""

    @functools.wraps(test)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        asyncio.run(test(*args, **kwargs))

    return run


@dataclass
class Keys:
    """A ledger in memory."""

    records: dict[str, KeyRecord] = field(default_factory=dict)

    def lookup(self, digest: str) -> KeyRecord | None:
        return self.records.get(digest)


def key_table(secret: str = KEY) -> Keys:
    record = KeyRecord(id="key-1", name="test", prefix="sk-…test", digest=digest(secret), created=NOW)
    return Keys({record.digest: record})


def word_tokenizer() -> Tokenizer:
    """Every word between spaces is one token."""
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer


def prompt_builder() -> PromptBuilder:
    """Renders `user: hello assistant: `."""
    source = "{% for m in messages %}{{ m.role }}: {{ m.content }} {% endfor %}assistant: "
    return PromptBuilder(word_tokenizer(), jinja2.Template(source), {})


def routes_to(*fakes: FakeTriton, continuations: int = 2) -> Routes:
    def endpoints(model: str) -> tuple[Endpoint, ...]:
        return tuple(
            Endpoint(name=f"{model}-{i}", url=fake.url, engine="triton", model=model)
            for i, fake in enumerate(fakes)
        )

    return Routes(
        routes=(
            Route(
                model="smol",
                task="chat",
                context=CONTEXT,
                folder="",
                endpoints=endpoints("smol-up"),
                created=7,
                continuations=continuations,
            ),
            Route(model="minilm", task="embed", context=8, folder="", endpoints=endpoints("minilm-up")),
        )
    )


@dataclass
class Running:
    """A listening gateway, and a client session that carries the test key."""

    gateway: Gateway
    url: str
    port: int
    session: aiohttp.ClientSession
    server: uvicorn.Server
    lines: list[bytes]

    def log(self, event: str = "request") -> list[dict[str, Any]]:
        return [line for line in map(json.loads, self.lines) if line["event"] == event]

    async def post(self, path: str, body: Any, **headers: str) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(self.url + path, data=io.BytesIO(data), headers=headers) as response:
            return response.status, await response.json()

    async def chat(self, **fields: Any) -> tuple[int, Any]:
        return await self.post("/v1/chat/completions", chat_body(**fields))

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(self.url + path) as response:
            return response.status, await response.json()

    async def stream(self, **fields: Any) -> list[str]:
        """The payloads of all events of a streamed chat."""
        body = chat_body(stream=True, **fields)
        async with self.session.post(self.url + "/v1/chat/completions", json=body) as response:
            assert response.status == 200, await response.text()
            text = await response.text()
        return [line.removeprefix("data: ") for line in text.split("\n\n") if line]


def chat_body(**fields: Any) -> dict[str, Any]:
    return {"model": "smol", "messages": [{"role": "user", "content": "hello"}], **fields}


@asynccontextmanager
async def running(
    *fakes: FakeTriton,
    keys: KeyTable | None = None,
    continuations: int = 2,
    prompts: PromptBuilder | None = None,
    settings: GatewaySettings = IMPATIENT,
    usage: UsageBook | None = None,
    more: tuple[Route, ...] = (),
    tracing: Tracing | None = None,
    change: Callable[[Routes], Routes] = lambda routes: routes,
) -> AsyncIterator[Running]:
    """The gateway before `fakes`, which are started too where they are not yet. `prompts`: of `smol`;
    `change` makes other routes of those to the fakes, `more` are added."""
    async with AsyncExitStack() as stack:
        for fake in fakes:
            if not fake.url:
                await stack.enter_async_context(fake.listening())
        lines: list[bytes] = []
        routes = change(routes_to(*fakes, continuations=continuations))
        gateway = create_app(
            Routes(routes=(*routes.routes, *more)),
            keys or key_table(),
            max_body_bytes=MAX_BODY_BYTES,
            write=lines.append,
            settings=settings,
            usage=usage,
            tracing=tracing,
            prompts={route.model: prompt_builder() for route in routes.routes}
            | {"smol": prompts or prompt_builder()},
            clock=lambda: NOW,
            new_id=lambda: "1d",
        )
        server, port = await stack.enter_async_context(_serving(gateway))
        url = f"http://127.0.0.1:{port}"
        headers = {"Authorization": f"Bearer {KEY}"}
        connector = aiohttp.TCPConnector(limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(headers=headers, connector=connector))
        yield Running(gateway, url, port, session, server, lines)


@asynccontextmanager
async def _serving(gateway: Gateway) -> AsyncIterator[tuple[uvicorn.Server, int]]:
    config = uvicorn.Config(
        gateway, http=Protocol, lifespan="on", log_config=None, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        # asyncio, unlike the gateway's own uvloop, leaves it out for sockets that are given to it
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = asyncio.create_task(server._serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield server, listener.getsockname()[1]
        finally:
            server.should_exit = True
            await task


async def until(condition: Callable[[], object]) -> None:
    """Wait for something that happens soon; a test that waits in vain ends by this timeout."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)
