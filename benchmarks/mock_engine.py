"""An upstream that costs little: canned answers in the shapes of Triton's generate_stream and OpenAI's chat.

    python benchmarks/mock_engine.py PORT [PACE_S]

`max_tokens` of a request is the number of its pieces; streams are paced at PACE_S a piece, whole answers
come at once. One process, uvloop, no parser but a search for the few bytes that matter.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import cast

import uvloop

PACE_S = 0.02
TEXT = " word"
_TOKENS = re.compile(rb'max_tokens\\?"\s*:\s*(\d+)')
_STREAM = re.compile(rb'"stream"\s*:\s*true')


def event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def triton(reason: str) -> bytes:
    return event(
        {
            "finish_reason": reason,
            "model_name": "m",
            "model_version": "1",
            "num_input_tokens": 8,
            "num_output_tokens": 1,
            "text_output": TEXT,
        }
    )


HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}


def openai(delta: dict[str, str], reason: str | None = None) -> bytes:
    return event(
        {**HEAD, "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]}
    )


TRITON_PIECE, TRITON_LAST = chunked(triton("None")), chunked(triton("stop"))
OPENAI_FIRST = chunked(openai({"role": "assistant", "content": ""}))
OPENAI_PIECE = chunked(openai({"content": TEXT}))
OPENAI_LAST = chunked(openai({}, "stop")) + chunked(b"data: [DONE]\n\n")
END = b"0\r\n\r\n"
SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def whole(tokens: int) -> bytes:
    usage = {"prompt_tokens": 8, "completion_tokens": tokens, "total_tokens": 8 + tokens}
    choice = {"index": 0, "message": {"role": "assistant", "content": TEXT * tokens}, "finish_reason": "stop"}
    body = {**HEAD, "object": "chat.completion", "choices": [choice], "usage": usage}
    return answer(json.dumps(body).encode())


def answer(body: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


MODELS = answer(json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}).encode())


class Engine(asyncio.Protocol):
    pace_s = PACE_S

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.buffer = cast(asyncio.Transport, transport), b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end]
            found = re.search(rb"content-length:\s*(\d+)", head, re.IGNORECASE)
            length = int(found[1]) if found else 0
            if len(self.buffer) < end + 4 + length:
                return
            body, self.buffer = self.buffer[end + 4 : end + 4 + length], self.buffer[end + 4 + length :]
            self.serve(head, body)

    def serve(self, head: bytes, body: bytes) -> None:
        if head.startswith(b"GET"):
            self.transport.write(MODELS)
            return
        found = _TOKENS.search(body)
        tokens = int(found[1]) if found else 1
        if b"generate_stream" in head:
            # The gateway asks for a stream always; a single piece is a whole answer to a short question.
            self.stream(b"", TRITON_PIECE, TRITON_LAST, tokens)
        elif _STREAM.search(body):
            self.stream(OPENAI_FIRST, OPENAI_PIECE, OPENAI_PIECE + OPENAI_LAST, tokens)
        else:
            self.transport.write(whole(tokens))

    def stream(self, first: bytes, piece: bytes, last: bytes, tokens: int) -> None:
        if tokens == 1:
            self.transport.write(SSE + first + last + END)
            return
        self.transport.write(SSE + first)
        self.later(piece, last, tokens)

    def later(self, piece: bytes, last: bytes, left: int) -> None:
        if self.transport.is_closing():
            return
        if left == 1:
            self.transport.write(last + END)
            return
        self.transport.write(piece)
        asyncio.get_running_loop().call_later(self.pace_s, self.later, piece, last, left - 1)


async def main(port: int, pace_s: float = PACE_S) -> None:
    Engine.pace_s = pace_s
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", port, backlog=2048)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), *map(float, sys.argv[2:])))
