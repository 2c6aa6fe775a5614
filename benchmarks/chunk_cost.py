"""What a chunk costs the gateway's own code, late in an answer and early in one.

    .venv/bin/python benchmarks/chunk_cost.py

An answer of 30,000 tokens beside one of 30, over and over in turn: reading Triton's events and writing
OpenAI's (what is said is kept for a continuation), passing a stream on, and both with a second engine that
continues in the middle. Processor time; no sockets. Aim: the same per chunk, whatever the length.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

from sovereign_ai.errors import UpstreamFailed, UpstreamUnavailable
from sovereign_ai.gateway.continuation import Answer, Order
from sovereign_ai.gateway.wire import formats, passing, triton
from sovereign_ai.gateway.wire.choices import Choice

SHORT, LONG = 30, 30_000
ROUNDS = 7
CHUNKS = 60_000
"""In each measurement, so that short answers are as many chunks as long ones."""

EVENT = triton.Event(text_output=" word", num_output_tokens=1, num_input_tokens=9)
PASSED = b'data: {"id":"a","created":1,"model":"m","choices":[{"index":0,"delta":{"content":" word"}}]}\n\n'


class Engine:
    """Says `left` words, then breaks off."""

    def __init__(self, left: int) -> None:
        self._left = left

    async def read(self) -> list[triton.Event]:
        if self._left == 0:
            raise UpstreamFailed("broken off")
        self._left -= 1
        return [EVENT]

    async def drain(self) -> None: ...
    def close(self) -> None: ...


async def answers(tokens: int, first: int) -> None:
    """`first`: words that the first engine says of them."""
    lefts = iter((first, tokens - first))

    async def open_(order: Order) -> Engine:
        return Engine(next(lefts))

    def again(error: UpstreamFailed | UpstreamUnavailable) -> None: ...

    head = formats.Head("chatcmpl-1", 1, "m")
    choice = Choice(formats.ChatFormat(head, include_usage=True, choices=1, top=None, short_ids=False), 0)
    order = Order("prompt", {"max_tokens": tokens + 1})
    async with Answer(order, open_, continuations=1, again=again) as answer:
        for _ in range(tokens):
            for event in await answer.read():
                choice.piece(event)


async def read(tokens: int) -> None:
    await answers(tokens, tokens)


async def continued(tokens: int) -> None:
    await answers(tokens, tokens // 2)


async def passed_on(tokens: int) -> None:
    passage = passing.Passage(hides_usage=True, keeps=True)
    for _ in range(tokens):
        passage.feed(PASSED)


async def passed_on_continued(tokens: int) -> None:
    """The first half is read and asked for the rest, the second half rewritten."""
    passage = passing.Passage(hides_usage=True, keeps=True)
    for _ in range(tokens // 2):
        passage.feed(PASSED)
    rest = passing.Rest(passing.said(passage.kept), tokens // 2)
    after = passing.Passage(hides_usage=True, keeps=False)
    for _ in range(tokens - tokens // 2):
        rest.rewritten(after.feed(PASSED))


async def cost_us(run: Callable[[int], Awaitable[None]], tokens: int) -> float:
    times = CHUNKS // tokens
    began = time.process_time()
    for _ in range(times):
        await run(tokens)
    return (time.process_time() - began) / (times * tokens) * 1e6


async def main() -> None:
    print("| | µs/chunk of 30 | µs/chunk of 30,000 | ratio (min-max) |")
    print("|---|---:|---:|---:|")
    for run in (read, continued, passed_on, passed_on_continued):
        short, long = [], []
        for _ in range(ROUNDS):
            short.append(await cost_us(run, SHORT))
            long.append(await cost_us(run, LONG))
        ratios = [b / a for a, b in zip(short, long, strict=True)]
        figures = f"{statistics.median(short):.2f} | {statistics.median(long):.2f}"
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
        print(f"| {run.__name__.replace('_', ' ')} | {figures} | {spread} |")


if __name__ == "__main__":
    asyncio.run(main())
