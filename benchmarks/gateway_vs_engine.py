"""The whole path (gateway + Triton + vLLM) against vLLM's AsyncLLM alone: what the path costs.

    make bench                     (or: .venv/bin/python benchmarks/gateway_vs_engine.py --rounds 8)

Both sides use the same engine environment, the same weights and the same engine arguments, each loaded once.
They are measured in turn, path and engine alternating within every round, so that a machine that slows down
slows both. Ratios are taken round by round; the medians are printed. Each request asks for MAX_TOKENS greedy
tokens of a prompt of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).parents[1]
SOVEREIGN = ROOT / ".venv" / "bin" / "sovereign"
MODEL = "smollm2-135m"
CONCURRENCY = (1, 8, 32)
MAX_TOKENS = 64
THINGS = """
    sea moon forest desert city river mountain winter train garden clock violin lighthouse bridge market
    library storm island kitchen castle robot whale volcano school airport farm museum theatre harbour
    comet glacier orchard
""".split()  # noqa: SIM905  a list of 32 words reads better so
QUESTIONS = [f"Write a long and detailed story about a {thing}." for thing in THINGS]


class Run(dict[str, float]):
    """One measurement: tokens, seconds, tokens_per_s, ttft_s (median over the requests)."""

    @classmethod
    def of(cls, tokens: int, seconds: float, firsts: list[float]) -> Run:
        rate = tokens / seconds
        return cls(tokens=tokens, seconds=seconds, tokens_per_s=rate, ttft_s=statistics.median(firsts))


async def through_the_path(url: str, key: str, concurrency: int) -> Run:
    connector = aiohttp.TCPConnector(limit=0)
    headers = {"Authorization": f"Bearer {key}"}
    timeout = aiohttp.ClientTimeout(total=600)
    async with aiohttp.ClientSession(connector=connector, headers=headers, timeout=timeout) as session:

        async def one(question: str) -> tuple[float, int]:
            body = {
                "model": MODEL,
                "messages": [{"role": "user", "content": question}],
                "temperature": 0,
                "max_tokens": MAX_TOKENS,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            started, first, tail = time.perf_counter(), 0.0, b""
            async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
                assert answer.status == 200, await answer.text()
                # As little work as can be: what the client burns is missing in the engine beside it.
                async for data in answer.content.iter_any():
                    first = first or time.perf_counter() - started
                    tail = tail[-1024:] + data
            used = re.search(rb'"completion_tokens":(\d+)', tail)
            assert used, tail
            return first, int(used[1])

        started = time.perf_counter()
        results = await asyncio.gather(*(one(question) for question in QUESTIONS[:concurrency]))
        seconds = time.perf_counter() - started
    return Run.of(sum(tokens for _, tokens in results), seconds, [first for first, _ in results])


class EngineAlone:
    """AsyncLLM in a process of the engine environment, with the arguments that Triton's model.json has."""

    def __init__(self, python: Path, model_json: Path, prompts: list[str]) -> None:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        cores = sorted(os.sched_getaffinity(0))
        environment["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, cores))
        environment["LD_PRELOAD"] = str(python.parents[1] / "lib" / "libiomp5.so")
        script = Path(__file__).with_name("engine_alone.py")
        self._child = subprocess.Popen(
            [str(python), str(script), str(model_json), str(MAX_TOKENS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self._say(prompts)

    def _say(self, value: Any) -> Any:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps(value) + "\n")
        self._child.stdin.flush()
        for line in self._child.stdout:
            if line.startswith("RESULT "):
                return json.loads(line.removeprefix("RESULT "))
        raise RuntimeError("the engine process ended")

    def measure(self, concurrency: int) -> Run:
        answer = self._say(concurrency)
        return Run.of(answer["tokens"], answer["seconds"], answer["firsts"])

    def close(self) -> None:
        if self._child.stdin:
            self._child.stdin.close()
        try:
            self._child.wait(20)
        except subprocess.TimeoutExpired:
            self._child.kill()


@contextmanager
def running_stack(home: Path, port: int) -> Iterator[tuple[str, str]]:
    """(base URL, key) of a stack of this home, stopped afterwards."""
    environment = {**os.environ, "SOVEREIGN_HOME": str(home)}
    up = [str(SOVEREIGN), "up", "--detach", "--port", str(port)]
    subprocess.run(up, env=environment, check=True, stdout=sys.stderr)
    try:
        create = [str(SOVEREIGN), "keys", "create", "benchmark", "--json", "--expires-days", "1"]
        made = subprocess.run(create, env=environment, check=True, capture_output=True, text=True)
        yield f"http://127.0.0.1:{port}", str(json.loads(made.stdout)["key"])
        revoke = [str(SOVEREIGN), "keys", "revoke", json.loads(made.stdout)["id"]]
        subprocess.run(revoke, env=environment, check=True, capture_output=True)
    finally:
        subprocess.run([str(SOVEREIGN), "down"], env=environment, check=True, stdout=sys.stderr)


def rendered_prompts(home: Path) -> tuple[Path, list[str]]:
    """The engine's model.json and the questions as the model's chat template renders them."""
    from sovereign_ai.gateway.templates import load_prompt_builder

    model_json = home / "run" / "repositories" / "triton-cpu" / MODEL / "1" / "model.json"
    builder = load_prompt_builder(Path(json.loads(model_json.read_text())["model"]))
    return model_json, [builder.render([{"role": "user", "content": question}]) for question in QUESTIONS]


def measure(home: Path, port: int, rounds: int) -> dict[int, dict[str, list[Run]]]:
    found: dict[int, dict[str, list[Run]]] = {c: {"path": [], "engine": []} for c in CONCURRENCY}
    with running_stack(home, port) as (url, key):
        model_json, prompts = rendered_prompts(home)
        python = next((home / "engines").glob("cpu-*/venv/bin/python"))
        engine = EngineAlone(python, model_json, prompts)
        try:
            for number in range(rounds + 1):
                for concurrency in CONCURRENCY:
                    sides: list[tuple[str, Callable[[], Run]]] = [
                        ("path", lambda c=concurrency: asyncio.run(through_the_path(url, key, c))),  # type: ignore[misc]
                        ("engine", lambda c=concurrency: engine.measure(c)),  # type: ignore[misc]
                    ]
                    # Each side goes first in every other round: the second finds a warmer machine.
                    for side, run_side in sides if number % 2 else reversed(sides):
                        run = run_side()
                        if number > 0:  # round 0 is the warm-up: first use of every shape, prefix caches
                            found[concurrency][side].append(run)
                            rate = f"{run['tokens_per_s']:7.1f} tokens/s"
                            print(f"round {number}  {concurrency:>2}  {side:<6} {rate}", file=sys.stderr)
        finally:
            engine.close()
    return found


def median(runs: list[Run], key: str) -> float:
    return statistics.median(run[key] for run in runs)


def summary(found: dict[int, dict[str, list[Run]]]) -> list[dict[str, float]]:
    rows = []
    for concurrency, sides in found.items():
        path, engine = sides["path"], sides["engine"]
        ratios = [p["tokens_per_s"] / e["tokens_per_s"] for p, e in zip(path, engine, strict=True)]
        rows.append(
            {
                "concurrency": concurrency,
                "path_tokens_per_s": median(path, "tokens_per_s"),
                "engine_tokens_per_s": median(engine, "tokens_per_s"),
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "path_ttft_s": median(path, "ttft_s"),
                "engine_ttft_s": median(engine, "ttft_s"),
            }
        )
    return rows


def machine() -> str:
    cpuinfo = Path("/proc/cpuinfo").read_text()
    name = re.search(r"model name\s*: (.+)", cpuinfo)
    return f"{name[1] if name else platform.machine()}, {len(os.sched_getaffinity(0))} cores, shared"


def show(rows: list[dict[str, float]]) -> None:
    print(
        "| concurrent | path, tokens/s | AsyncLLM, tokens/s | ratio (min–max) | TTFT path | TTFT AsyncLLM |"
    )
    print("|---:|---:|---:|---:|---:|---:|")
    for r in rows:
        print(
            f"| {r['concurrency']} | {r['path_tokens_per_s']:.1f} | {r['engine_tokens_per_s']:.1f} "
            f"| {r['ratio']:.3f} ({r['ratio_min']:.3f}–{r['ratio_max']:.3f}) "
            f"| {r['path_ttft_s']:.3f} s | {r['engine_ttft_s']:.3f} s |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--port", type=int, default=18123)
    parser.add_argument("--home", type=Path, default=None, help="a SOVEREIGN_HOME; default: a new one")
    parser.add_argument("--out", type=Path, default=None, help="write the figures here as JSON")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sovereign-bench-") as temporary:
        found = measure(options.home or Path(temporary), options.port, options.rounds)
    rows = summary(found)
    print(f"{machine()}; {MODEL} float32, {MAX_TOKENS} tokens a request, {options.rounds} rounds, medians")
    show(rows)
    if options.out:
        record = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "rounds": options.rounds}
        options.out.write_text(json.dumps({**record, "rows": rows, "runs": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
