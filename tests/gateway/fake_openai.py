"""A stand-in for vLLM's own server, for tests of what is passed on to it.

It speaks the protocol as vLLM 0.32 was seen to, with scripted words. It does NOT prove that a real server
continues a last message as if nothing had happened, nor that its tokenizer counts as this one does (words);
tests/e2e/test_upstreams.py does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

WORDS = ["The", " capital", " of", " France", " is", " Paris"]


class FakeOpenAI:
    """`kill_after`: pieces after which the connection is broken off; `fail_with`: status of every answer."""

    def __init__(self, words: list[str] = WORDS, *, key: str = "") -> None:
        self.words, self.key = words, key
        self.url = ""
        self.bodies: list[dict[str, Any]] = []
        self.raw: list[bytes] = []
        self.paths: list[str] = []
        self.running = 0
        self.healthy = True
        self.kill_after: int | None = None
        self.kill_at_end = False
        self.error_after: int | None = None
        self.stop_after: int | None = None
        self.fail_with: int | None = None
        self.hang = False
        self.crlf = False
        self.torn = False
        self.at_once = False
        self._held: bytes = b""
        self.extra: dict[str, Any] = {}

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[FakeOpenAI]:
        app = web.Application(client_max_size=1 << 26)
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/tokenize", self._tokenize)
        app.router.add_post("/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.healthy else 503)

    async def _models(self, request: web.Request) -> web.Response:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        return web.json_response({"object": "list", "data": []}, status=200 if self.healthy else 503)

    async def _tokenize(self, request: web.Request) -> web.Response:
        return web.json_response({"count": len((await request.json())["prompt"].split())})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.raw.append(await request.read())
        body = json.loads(self.raw[-1])
        self.bodies.append(body)
        self.paths.append(request.path)
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        if self.fail_with is not None:
            error = {"error": {"message": "no", "type": "x", "code": self.fail_with}}
            return web.json_response(error, status=self.fail_with, headers={"Retry-After": "7"})
        self.running += 1
        try:
            if self.hang:
                await asyncio.sleep(3600)
            if request.path.endswith("/embeddings"):
                return web.json_response({"data": [{"embedding": [1.0]}], "usage": {"prompt_tokens": 4}})
            return await (self._stream if body.get("stream") else self._whole)(request, body)
        finally:
            self.running -= 1

    def _left(self, body: dict[str, Any]) -> list[str]:
        """The words that are still to be said."""
        before = body.get("prompt", "")
        if body.get("continue_final_message"):
            before = body["messages"][-1]["content"]
        text = "".join(self.words)
        said = max((n for n in range(len(text) + 1) if before.endswith(text[:n])), default=0)
        left, count = list(self.words), 0
        while left and count < said:
            count += len(left.pop(0))
        return left[: body.get("max_tokens") or body.get("max_completion_tokens")]

    def _usage(self, body: dict[str, Any], answer: int) -> dict[str, int]:
        texts = [message["content"] for message in body.get("messages", ())] or [body["prompt"]]
        prompt = sum(len(text.split()) for text in texts)
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}

    async def _whole(self, request: web.Request, body: dict[str, Any]) -> web.Response:
        words = self._left(body)
        message = {"role": "assistant", "content": "".join(words)}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        answer = {"id": "up-1", "choices": choices, "usage": self._usage(body, len(words)), **self.extra}
        return web.json_response(answer)

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        assert request.transport is not None
        chat, words = "messages" in body, self._left(body)
        head = {"id": f"up-{id(self) % 1000}", "object": "chunk", "created": 1, "model": body["model"]}
        if chat:
            role = {"delta": {"role": "assistant", "content": ""}, "index": 0, "finish_reason": None}
            await self._event(response, {**head, "choices": [role]})
        for number, word in enumerate(words):
            if number == self.kill_after:
                request.transport.abort()
                return response
            if number == self.stop_after:
                return response
            if number == self.error_after:
                await self._event(response, {"error": {"message": "EngineCore encountered an issue"}})
                break
            piece = {"delta": {"content": word}} if chat else {"text": word}
            reason = "stop" if number == len(words) - 1 else None
            choice = {"index": 0, **piece, "finish_reason": reason, **self.extra}
            await self._event(response, {**head, "choices": [choice]})
        if self.kill_at_end:
            request.transport.abort()
            return response
        if (body.get("stream_options") or {}).get("include_usage"):
            await self._event(response, {**head, "choices": [], "usage": self._usage(body, len(words))})
        await response.write(self._held + b"data: [DONE]" + self._gap)
        return response

    @property
    def _gap(self) -> bytes:
        return b"\r\n\r\n" if self.crlf else b"\n\n"

    async def _event(self, response: web.StreamResponse, event: dict[str, Any]) -> None:
        data = b"data: " + json.dumps(event, separators=(",", ":")).encode() + self._gap
        if self.at_once:
            self._held += data
            return
        parts = [data[:9], data[9:]] if self.torn else [data]
        for part in parts:
            await response.write(part)
            await asyncio.sleep(0.002 if self.torn else 0)
