"""The other side of gateway_vs_engine.py: AsyncLLM by itself. Run by the engine environment's Python.

Reads lines of JSON: first the prompts, then a concurrency at a time; answers each with `RESULT {…}`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any


async def main() -> None:
    from vllm import AsyncEngineArgs, SamplingParams
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
    prompts = json.loads(sys.stdin.readline())
    answer({"ready": True})
    count = 0

    async def one(prompt: str) -> tuple[float, int]:
        nonlocal count
        count += 1
        started, first, tokens = time.perf_counter(), 0.0, 0
        parameters = SamplingParams(
            temperature=0, max_tokens=int(sys.argv[2]), output_kind=RequestOutputKind.DELTA
        )
        async for output in engine.generate(prompt, parameters, f"bench-{count}"):
            first = first or time.perf_counter() - started
            tokens += len(output.outputs[0].token_ids)
        return first, tokens

    while line := await asyncio.to_thread(sys.stdin.readline):
        started = time.perf_counter()
        results = await asyncio.gather(*(one(prompt) for prompt in prompts[: int(line)]))
        seconds = time.perf_counter() - started
        firsts = [first for first, _ in results]
        answer({"tokens": sum(tokens for _, tokens in results), "seconds": seconds, "firsts": firsts})
    engine.shutdown()


def answer(value: dict[str, Any]) -> None:
    print("RESULT " + json.dumps(value), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
