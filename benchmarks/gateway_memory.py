"""What memory one gateway process takes: at rest, with many open streams, and over many short requests.

    .venv/bin/python -m benchmarks.gateway_memory --out benchmarks/results/gateway_memory.json

One gateway before the mock endpoint of mock_engine.py, which both paths of it are asked through in turn: the
one to Triton, and the one that passes OpenAI's protocol on. RSS is the process's own, from /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import resource
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import uvloop
from yarl import URL

from benchmarks.gateway import HERE, PATHS, Started, Target, body, free_port, ours, rss_mib
from sovereign_ai.gateway.client import Client, Response

JSON = b"Content-Type: application/json\r\n"
STREAMS = 1000
STREAM_PIECES, PACE_S = 40, 1.0
"""Slow enough that no processor is the limit, and long enough that all are open at once."""
REQUESTS, STEP = 100_000, 10_000
CLIENTS = 16
REST_S = 3.0
"""After the last of the streams, before memory is looked at again."""


async def streams(target: Target, count: int) -> dict[str, float]:
    """RSS in MiB while so many streams are open and have begun, and after all have ended."""
    client, data = Client(URL(target.url)), body(STREAM_PIECES, stream=True)
    begun: list[Response] = []
    started = time.monotonic()

    async def begin() -> None:
        response = await client.post("/v1/chat/completions", data, JSON + target.headers)
        assert response.status == 200
        # some say first whose turn it is
        while b"word" not in await response.readany():
            pass
        begun.append(response)

    await asyncio.gather(*(begin() for _ in range(count)))
    during = rss_mib(target.pid)
    assert time.monotonic() - started < STREAM_PIECES * PACE_S, "the first had ended before the last began"
    texts = await asyncio.gather(*(response.read() for response in begun))
    assert all(b"[DONE]" in text for text in texts)
    await client.close()
    await asyncio.sleep(REST_S)
    return {"open": during, "after": rss_mib(target.pid)}


async def requests(target: Target, count: int) -> None:
    client, left, data = Client(URL(target.url)), count, body(1, stream=False)

    async def one_after_the_other() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            response = await client.post("/v1/chat/completions", data, JSON + target.headers)
            assert b"word" in await response.read()

    await asyncio.gather(*(one_after_the_other() for _ in range(CLIENTS)))
    await client.close()


async def measure(target: Target, options: argparse.Namespace) -> dict[str, Any]:
    start = rss_mib(target.pid)
    opened = await streams(target, options.streams)
    after: dict[int, float] = {}
    for done in range(STEP, options.requests + 1, STEP):
        await requests(target, STEP)
        after[done] = round(rss_mib(target.pid), 1)
        print(f"{target.name}: {done:,} requests, {after[done]} MiB", file=sys.stderr)
    return {
        "name": target.name,
        "start_mib": round(start, 1),
        "streams": options.streams,
        "streams_open_mib": round(opened["open"], 1),
        "streams_after_mib": round(opened["after"], 1),
        "requests_mib": after,
    }


async def run(options: argparse.Namespace) -> None:
    rows = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        started, port = Started(stack, folder), free_port()
        upstream = f"http://127.0.0.1:{port}"
        started.run("upstream", [sys.executable, str(HERE / "mock_engine.py"), str(port), str(PACE_S)])
        await started.wait("upstream", upstream)
        for engine in PATHS:
            target = await ours(started, folder, upstream, engine, places=options.streams)
            rows.append(await measure(target, options))
    show(rows)
    if options.out:
        machine = f"{platform.machine()}, {os.cpu_count()} cores, shared"
        document = {"machine": machine, "date": time.strftime("%Y-%m-%d"), "rows": rows}
        options.out.write_text(json.dumps(document, indent=1) + "\n")


def show(rows: list[dict[str, Any]]) -> None:
    print("| RSS, MiB | " + " | ".join(row["name"] for row in rows) + " |")
    print("|---|" + "---:|" * len(rows))
    lines = {
        "at the start": [row["start_mib"] for row in rows],
        f"{rows[0]['streams']:,} open streams": [row["streams_open_mib"] for row in rows],
        "these ended": [row["streams_after_mib"] for row in rows],
    }
    for count in rows[0]["requests_mib"]:
        lines[f"after {count:,} requests"] = [row["requests_mib"][count] for row in rows]
    for name, values in lines.items():
        print(f"| {name} | " + " | ".join(str(value) for value in values) + " |")


def main() -> None:
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=shape)
    parser.add_argument("--streams", type=int, default=STREAMS)
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--out", type=Path)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # the endpoint takes over this limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
