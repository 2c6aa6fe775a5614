"""What a gateway costs: this one beside vllm-router, LiteLLM's proxy, a bare byte pump, and nothing at all.

    .venv/bin/python benchmarks/gateway.py --router /path/to/vllm-router --litellm /path/to/litellm

All stand before one mock upstream (mock_engine.py) and are measured in turn, every one in every round, so
that a machine that slows down slows all of them. The load comes from this process; CPU is the gateway's own,
from /proc. The two peers need virtual environments of their own (pip install vllm-router==0.1.17; pip
install "litellm[proxy]==1.105.0"); one that is not given is left out and said so.

Requests: short whole answers, CLIENTS at a time. Chunks: STREAMS streams, a piece every 20 ms each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import uvloop
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import BPE
from yarl import URL

from sovereign_ai.gateway.client import Client
from sovereign_ai.gateway.ledger import Ledger
from sovereign_ai.spec import Endpoint, Route, Routes

HERE = Path(__file__).parent
CLIENTS, STREAMS = (1, 32), (64, 256)
REQUESTS = {1: 400, 32: 1600}
PIECES = 100
TICKS = os.sysconf("SC_CLK_TCK")


class Target(NamedTuple):
    """A gateway under test. `pid` None: nothing in between."""

    name: str
    url: str
    pid: int | None
    headers: bytes = b""


class Costs(NamedTuple):
    cpu_s: float
    total: int
    latencies_s: list[float]

    def each(self, unit: float) -> float:
        return self.cpu_s / self.total * unit


def cpu_seconds(pid: int | None) -> float:
    """User and system time of a process and its children, seconds."""
    if pid is None:
        return 0.0
    total = 0.0
    for each in [pid, *children(pid)]:
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += (int(fields[11]) + int(fields[12])) / TICKS
    return total


def children(pid: int) -> list[int]:
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        for text in path.read_text().split():
            found += [int(text), *children(int(text))]
    return found


def rss_mib(pid: int | None) -> float:
    if pid is None:
        return 0.0
    pages = sum(int(Path(f"/proc/{each}/statm").read_text().split()[1]) for each in [pid, *children(pid)])
    return pages * resource.getpagesize() / (1 << 20)


def body(tokens: int, *, stream: bool) -> bytes:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    request = {"model": "m", "messages": messages, "max_tokens": tokens, "temperature": 0}
    return json.dumps({**request, "stream": stream}).encode()


async def requests(target: Target, clients: int) -> Costs:
    client, left, latencies = Client(URL(target.url)), REQUESTS[clients], []
    headers = b"Content-Type: application/json\r\n" + target.headers
    data = body(1, stream=False)

    async def one_after_the_other() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            started = time.perf_counter()
            response = await client.post("/v1/chat/completions", data, headers)
            text = await response.read()
            latencies.append(time.perf_counter() - started)
            assert response.status == 200, text
            assert b"word" in text

    before = cpu_seconds(target.pid)
    await asyncio.gather(*(one_after_the_other() for _ in range(clients)))
    spent = cpu_seconds(target.pid) - before
    await client.close()
    return Costs(spent, len(latencies), latencies)


async def chunks(target: Target, streams: int) -> Costs:
    """`total`: pieces of all streams; latencies: seconds to the first piece."""
    client, firsts, pieces = Client(URL(target.url)), [], 0
    headers = b"Content-Type: application/json\r\n" + target.headers
    data = body(PIECES, stream=True)

    async def one(delay: float) -> None:
        nonlocal pieces
        await asyncio.sleep(delay)
        started, first, seen = time.perf_counter(), 0.0, 0
        response = await client.post("/v1/chat/completions", data, headers)
        while part := await response.readany():
            found = part.count(b"word")
            first = first or (time.perf_counter() - started if found else 0.0)
            seen += found
        assert seen == PIECES, seen
        firsts.append(first)
        pieces += seen

    before = cpu_seconds(target.pid)
    # Spread over one pace: all streams in step would come as one burst.
    await asyncio.gather(*(one(0.02 * number / streams) for number in range(streams)))
    spent = cpu_seconds(target.pid) - before
    await client.close()
    return Costs(spent, pieces, firsts)


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


class Started:
    """Processes that end with the benchmark."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack, self._folder = stack, folder

    def run(self, name: str, command: list[str], **variables: str) -> int:
        log = self._stack.enter_context((self._folder / f"{name}.log").open("wb"))
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **variables}, start_new_session=True
        )

        def end() -> None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

        self._stack.callback(end)
        return process.pid

    async def wait(self, name: str, url: str, headers: bytes = b"") -> None:
        client = Client(URL(url))
        for _ in range(1200):
            try:
                data = body(1, stream=False)
                response = await client.post(
                    "/v1/chat/completions", data, b"Content-Type: application/json\r\n" + headers
                )
                if response.status == 200 and b"word" in await response.read():
                    return
                response.close()
            except OSError:
                pass
            await asyncio.sleep(0.1)
        log = (self._folder / f"{name}.log").read_text()
        raise AssertionError(f"{name} does not answer:\n{log[-3000:]}")


def tokenizer(folder: Path) -> None:
    alphabet = {token: number for number, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(BPE(alphabet, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel()
    made.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
    )


PATHS: dict[Literal["triton", "openai"], str] = {
    "triton": "this gateway, Triton path",
    "openai": "this gateway, passing on",
}


async def ours(
    started: Started, base: Path, upstream: str, engine: Literal["triton", "openai"], places: int = 0
) -> Target:
    """This gateway, keys, metrics and ledger as they are. `places`: requests that the endpoint takes at once,
    0: what the gateway takes for usual."""
    folder = base / engine
    folder.mkdir()
    tokenizer(folder)
    endpoint = Endpoint(name="mock", url=upstream, engine=engine, model="m", max_num_seqs=places)
    route = Route(model="m", task="chat", context=8192, folder=str(folder), endpoints=(endpoint,))
    routes = folder / "routes.json"
    routes.write_bytes(msgspec.json.encode(Routes(routes=(route,))))
    with Ledger(folder / "ledger.sqlite") as ledger:
        _, secret = ledger.create_key("benchmark")
    port = free_port()
    command = [sys.executable, "-m", "sovereign_ai", "gateway", "--routes", str(routes)]
    settings = json.dumps({"host": "127.0.0.1", "port": port})
    command += ["--ledger", str(folder / "ledger.sqlite"), "--settings", settings]
    pid = started.run(engine, command)
    headers = f"Authorization: Bearer {secret}\r\n".encode()
    target = Target(PATHS[engine], f"http://127.0.0.1:{port}", pid, headers)
    await started.wait(engine, target.url, headers)
    return target


async def router(started: Started, program: str, upstream: str) -> Target:
    port, metrics = free_port(), free_port()
    command = [program, "--host", "127.0.0.1", "--port", str(port), "--worker-urls", upstream]
    command += ["--policy", "round_robin", "--prometheus-port", str(metrics), "--log-level", "error"]
    pid = started.run("router", command)
    await started.wait("router", f"http://127.0.0.1:{port}")
    return Target("vllm-router", f"http://127.0.0.1:{port}", pid)


async def litellm(started: Started, program: str, folder: Path, upstream: str) -> Target:
    port, config = free_port(), folder / "litellm.yaml"
    params = {"model": "openai/m", "api_base": f"{upstream}/v1", "api_key": "none"}
    # It does not start without a key.
    key = f"sk-{secrets.token_hex(32)}"
    models = [{"model_name": "m", "litellm_params": params}]
    config.write_text(json.dumps({"model_list": models, "general_settings": {"master_key": key}}))
    command = [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--telemetry", "False"]
    pid = started.run("litellm", command, LITELLM_LOG="ERROR", LITELLM_LOCAL_MODEL_COST_MAP="True")
    headers = f"Authorization: Bearer {key}\r\n".encode()
    await started.wait("litellm", f"http://127.0.0.1:{port}", headers)
    return Target("LiteLLM proxy", f"http://127.0.0.1:{port}", pid, headers)


async def targets(started: Started, folder: Path, options: argparse.Namespace) -> list[Target]:
    upstream_port, pump_port = free_port(), free_port()
    upstream = f"http://127.0.0.1:{upstream_port}"
    started.run("upstream", [sys.executable, str(HERE / "mock_engine.py"), str(upstream_port)])
    await started.wait("upstream", upstream)
    found = [Target("direct", upstream, None)]
    for engine in PATHS:
        found.append(await ours(started, folder, upstream, engine))
    pump = started.run("pump", [sys.executable, str(HERE / "byte_pump.py"), str(pump_port), upstream])
    await started.wait("pump", f"http://127.0.0.1:{pump_port}")
    found.append(Target("uvicorn + aiohttp, bytes only", f"http://127.0.0.1:{pump_port}", pump))
    if options.router:
        found.append(await router(started, options.router, upstream))
    if options.litellm:
        found.append(await litellm(started, options.litellm, folder, upstream))
    return found


Results = dict[str, dict[str, list[Costs]]]


async def measure(found: list[Target], rounds: int) -> Results:
    results: Results = {target.name: {} for target in found}
    for number in range(rounds):
        for target in found if number % 2 == 0 else found[::-1]:
            for clients in CLIENTS:
                results[target.name].setdefault(f"requests {clients}", []).append(
                    await requests(target, clients)
                )
            for streams in STREAMS:
                # LiteLLM cannot keep up with 256 streams of 50 pieces a second on one core.
                if target.name != "LiteLLM proxy" or streams == STREAMS[0]:
                    results[target.name].setdefault(f"chunks {streams}", []).append(
                        await chunks(target, streams)
                    )
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return results


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


def summary(found: list[Target], results: Results) -> list[dict[str, Any]]:
    rows = []
    for target in found:
        row: dict[str, Any] = {"name": target.name, "rss_mib": round(rss_mib(target.pid), 1)}
        for key, costs in results[target.name].items():
            kind, _, count = key.partition(" ")
            unit, word = (1e3, "cpu_ms_per_request") if kind == "requests" else (1e6, "cpu_us_per_chunk")
            row[f"{word}_{count}"] = round(statistics.median(one.each(unit) for one in costs), 4)
            for part in (0.5, 0.99):
                value = statistics.median(percentile(one.latencies_s, part) for one in costs)
                row[f"{kind}_p{round(100 * part)}_ms_{count}"] = round(1e3 * value, 3)
        rows.append(row)
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    columns = [f"cpu_ms_per_request_{n}" for n in CLIENTS] + [f"cpu_us_per_chunk_{n}" for n in STREAMS]
    latencies = [f"requests_p{p}_ms_{n}" for n in CLIENTS for p in (50, 99)]
    latencies += [f"chunks_p{p}_ms_{n}" for n in STREAMS for p in (50, 99)]
    for names in (columns, latencies):
        print("| gateway | " + " | ".join(name.replace("_", " ") for name in names) + " | RSS MiB |")
        print("|---|" + "---:|" * (len(names) + 1))
        for row in rows:
            cells = [str(row.get(name, "–")) for name in names]
            print(f"| {row['name']} | {' | '.join(cells)} | {row['rss_mib']} |")
        print()
    for own in (row for row in rows if row["name"] in PATHS.values()):
        for row in rows:
            if row["name"] in PATHS.values() or row["name"] == "direct":
                continue
            ratios = [f"{name}: {own[name] / row[name]:.2f}" for name in columns if row.get(name)]
            print(f"{own['name']} / {row['name']}: " + ", ".join(ratios))


async def run(options: argparse.Namespace) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        found = await targets(Started(stack, folder), folder, options)
        results = await measure(found, options.rounds)
        rows = summary(found, results)
    for name in ("router", "litellm"):
        if not getattr(options, name):
            print(f"{name} was not given and is left out")
    show(rows)
    if options.out:
        machine = f"{platform.machine()}, {os.cpu_count()} cores, shared"
        date = time.strftime("%Y-%m-%d")
        document = {"machine": machine, "date": date, "rounds": options.rounds, "rows": rows}
        options.out.write_text(json.dumps(document, indent=1) + "\n")


def main() -> None:
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("--router", help="the program vllm-router")
    parser.add_argument("--litellm", help="the program litellm")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--out", type=Path)
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
