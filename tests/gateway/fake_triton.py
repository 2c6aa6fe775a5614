"""A stand-in for tritonserver with the vLLM backend, for tests of the gateway.

It speaks the generate and inference protocols as they were seen on the wire, with scripted answers. It does
NOT prove that a real Triton cancels generation when its client leaves (only that the connection closes), that
a real engine accepts the sampling parameters, counts tokens as we do or words its errors so, nor anything
about speed under a real engine's load.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal

from aiohttp import web

Framing = Literal["one by one", "all at once", "torn"]

DIMENSIONS = 3
MODELS = ("smol-up", "minilm-up")


class FakeTriton:
    """Set the attributes, then `async with fake.listening():`."""

    def __init__(self) -> None:
        self.tokens = ["The", " capital", " is", " Paris"]
        self.framing: Framing = "one by one"
        self.ready = True
        self.refusal: tuple[int, str] | None = None
        """Answer with this status and error instead."""
        self.error_after: int | None = None
        """After so many tokens send an error event."""
        self.error_text = "Stub process 'smol' is not healthy."
        self.kill_after: int | None = None
        """After so many tokens break the connection."""
        self.stop_short = False
        """End the stream in good order, but without a finish reason."""
        self.gate: asyncio.Event | None = None
        """If set, wait for it before the last token."""
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.left = 0
        """Connections that the gateway closed before the answer was complete."""
        self.active = self.peak = 0
        self.written = 0
        """Events that left, of all requests."""
        self.url = ""
        self._held = b""

    @asynccontextmanager
    async def listening(self, port: int = 0) -> AsyncIterator[FakeTriton]:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_get("/v2/models/{model}/ready", self._ready)
        app.router.add_post("/v2/models/{model}/generate_stream", self._generate)
        app.router.add_post("/v2/models/{model}/infer", self._infer)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", port)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield self
        finally:
            await runner.cleanup()

    async def _ready(self, request: web.Request) -> web.Response:
        return web.Response(status=200 if self.ready and request.match_info["model"] in MODELS else 400)

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.refusal is not None:
            # as the real one does: an event, although the status is no success
            text = f"data: {json.dumps({'error': self.refusal[1]})}\n\n"
            return web.Response(text=text, status=self.refusal[0], content_type="text/event-stream")
        self.active += 1
        self.peak = max(self.peak, self.active)
        try:
            return await self._stream(request, body)
        except (asyncio.CancelledError, ConnectionResetError):
            self.left += 1
            raise
        finally:
            self.active -= 1

    async def _stream(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        events = self._events(body)
        for index, event in enumerate(events):
            if self.gate is not None and index == len(events) - 1:
                await self.gate.wait()
            if self.kill_after == index:
                assert request.transport is not None
                request.transport.abort()
                return response
            if self.error_after == index:
                event = {"error": self.error_text}
            await self._write(response, event, last=index == len(events) - 1)
            self.written += 1
            if self.error_after == index:
                break
        await response.write_eof()
        return response

    def _events(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        """Goes on where the prompt ends, as an engine that decodes greedily does."""
        limit = json.loads(body["sampling_parameters"])["max_tokens"]
        beginnings = ["".join(self.tokens[:n]) for n in range(len(self.tokens))]
        said = max((text for text in beginnings if body["text_input"].endswith(text)), key=len)
        left = self.tokens[beginnings.index(said) :]
        tokens = left[:limit]
        end = "length" if limit < len(left) else "stop"
        reasons = ["None"] * (len(tokens) - 1) + ["None" if self.stop_short else end]
        events = [
            {
                "finish_reason": reason,
                "model_name": "smol-up",
                "model_version": "1",
                "num_input_tokens": len(body["text_input"].split()),
                "num_output_tokens": 1,
                "text_output": token,
            }
            for token, reason in zip(tokens, reasons, strict=True)
        ]
        if body.get("return_logprobs"):
            events = [{**event, "logprobs": logprobs(str(event["text_output"]))} for event in events]
        return events

    async def _write(self, response: web.StreamResponse, event: dict[str, Any], *, last: bool) -> None:
        data = b"data: " + json.dumps(event).encode() + b"\n\n"
        if self.framing == "all at once":
            self._held += data
            data, self._held = (self._held, b"") if last else (b"", self._held)
        if self.framing == "torn":
            for byte in range(0, len(data), 7):
                await response.write(data[byte : byte + 7])
                await asyncio.sleep(0)
        elif data:
            await response.write(data)

    async def _infer(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.refusal is not None:
            return web.json_response({"error": self.refusal[1]}, status=self.refusal[0])
        return _embeddings(body["inputs"][0]["data"])


def logprobs(token: str) -> str:
    """What the fake gives for a token: it came although another was more probable."""
    chosen = {"logprob": -1.5, "rank": 2, "decoded_token": token}
    return json.dumps([{"7": chosen, "8": {"logprob": -0.25, "rank": 1, "decoded_token": "other"}}])


def vector(text: str) -> list[float]:
    """What the fake embeds `text` as. All three survive float32 exactly."""
    return [float(len(text)), 0.5, -1.25]


def _embeddings(texts: list[str]) -> web.Response:
    vectors = b"".join(struct.pack(f"<{DIMENSIONS}f", *vector(text)) for text in texts)
    counts = struct.pack(f"<{len(texts)}i", *(len(text.split()) for text in texts))
    outputs = [
        _output("embedding", "FP32", [len(texts), DIMENSIONS], vectors),
        _output("num_tokens", "INT32", [len(texts), 1], counts),
    ]
    head = json.dumps({"model_name": "minilm-up", "model_version": "1", "outputs": outputs}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    return web.Response(body=head + vectors + counts, headers=headers)


def _output(name: str, datatype: str, shape: list[int], data: bytes) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
