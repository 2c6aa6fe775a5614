"""Two replicas of the chat model, one of them killed: what its clients notice.

The second replica is a real tritonserver beside the supervised one, as the plan would start it on other
devices; both share this machine's cores, so the stall that is printed is longer than on cards of their own.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from tests.e2e.conftest import Stack, engine_processes, free_port, shared_memory, wait_for

pytestmark = pytest.mark.engine

MODEL = "smollm2-135m"
STREAMS, TOKENS = 32, 48
PACE_S = 0.02
"""How long a reader takes over a chunk."""


class Replica(NamedTuple):
    process: subprocess.Popen[bytes]
    url: str


def second_command(service: dict[str, Any], port: int, metrics_port: int) -> list[str]:
    """The supervised Triton's own command, at other ports and in other shared memory."""
    command: list[str] = []
    for argument in service["command"]:
        argument = re.sub(r"^(--http-port=)\d+$", rf"\g<1>{port}", argument)
        argument = re.sub(r"^(--metrics-port=)\d+$", rf"\g<1>{metrics_port}", argument)
        command.append(argument.replace("triton-cpu-", "triton-two-"))
    return command


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/v2/models/{MODEL}/ready", timeout=5) as answer:  # noqa: S310  ours
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture
def replica(stack: Stack, tmp_path: Path) -> Iterator[Replica]:
    spec = json.loads((stack.home / "run" / "spec.json").read_text())
    service = next(one for one in spec["services"] if one["name"] == "triton-cpu")
    port = free_port()
    before, memory = engine_processes(), shared_memory()
    with (tmp_path / "second.log").open("wb") as log:
        process = subprocess.Popen(
            second_command(service, port, free_port()),
            env=service["environment"],
            cwd=service["folder"],
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(lambda: process.poll() is not None or answers(url), 180, "the second replica")
        assert process.poll() is None, (tmp_path / "second.log").read_text()[-3000:]
        yield Replica(process, url)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pid in engine_processes() - before:
            os.kill(pid, signal.SIGKILL)
        # Nobody cleans up behind a tritonserver that has no supervisor.
        for name in shared_memory() - memory:
            (Path("/dev/shm") / name).unlink(missing_ok=True)


@pytest.fixture
def both(stack: Stack, replica: Replica) -> Iterator[Replica]:
    """routes.json with both replicas, taken over by the running gateway."""
    path = stack.home / "run" / "routes.json"
    old = path.read_bytes()
    routes = json.loads(old)
    for route in routes["routes"]:
        first = route["endpoints"][0]
        route["endpoints"].append({**first, "name": "triton-two", "url": replica.url})
    path.write_text(json.dumps(routes))
    wait_for(lambda: 'endpoint="triton-two"' in metrics(stack), 20, "the gateway to see it")
    yield replica
    path.write_bytes(old)
    wait_for(lambda: 'endpoint_up{endpoint="triton-two"' not in metrics(stack), 20, "the old routes")


def metrics(stack: Stack) -> str:
    with urllib.request.urlopen(f"{stack.url}/metrics", timeout=10) as answer:  # noqa: S310  ours
        return str(answer.read().decode())


def counted(stack: Stack, name: str) -> float:
    found = re.search(rf'^{name}{{model="{MODEL}"}} (\S+)$', metrics(stack), re.M)
    return float(found[1]) if found else 0.0


class Read(NamedTuple):
    """One stream as its client saw it. `gaps_s`: between one chunk and the next."""

    text: str
    finish_reason: str | None
    usage: dict[str, int] | None
    ended: bool
    gaps_s: list[float]


async def read(session: aiohttp.ClientSession, stack: Stack, number: int, seen: list[int]) -> Read:
    question = f"Tell me a story about a ship with {number + 2} sails, and name every sail."
    request = {
        "model": MODEL,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0,
        "max_tokens": TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    text, reason, usage, ended, gaps = "", None, None, False, []
    last = time.monotonic()
    async with session.post(f"{stack.url}/v1/chat/completions", json=request) as answer:
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            if not line.startswith(b"data: "):
                continue
            gaps.append(time.monotonic() - last)
            last = time.monotonic()
            if line.startswith(b"data: [DONE]"):
                ended = True
                continue
            event = json.loads(line[6:])
            assert "error" not in event, event
            usage = event.get("usage") or usage
            for choice in event["choices"]:
                text += choice["delta"].get("content") or ""
                reason = choice["finish_reason"] or reason
            seen[0] += 1
            await asyncio.sleep(PACE_S)
    return Read(text, reason, usage, ended, gaps)


async def read_all(stack: Stack, kill_at: int | None, process: subprocess.Popen[bytes]) -> list[Read]:
    """All streams at once; SIGKILL for `process` once so many chunks have been read together."""
    seen = [0]
    headers = {"Authorization": f"Bearer {stack.key}"}
    timeout, connector = aiohttp.ClientTimeout(total=300), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout, connector=connector) as session:
        streams = [asyncio.create_task(read(session, stack, n, seen)) for n in range(STREAMS)]
        while kill_at is not None and seen[0] < kill_at:
            await asyncio.sleep(0.01)
        if kill_at is not None:
            os.kill(process.pid, signal.SIGKILL)
        return list(await asyncio.gather(*streams))


def test_a_killed_replica_is_noticed_by_nobody(
    stack: Stack, both: Replica, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every stream ends whole, with the same words, the same usage and the same finish reason."""
    expected = asyncio.run(read_all(stack, None, both.process))
    before = counted(stack, "sovereign_continuations_total")
    found = asyncio.run(read_all(stack, STREAMS * TOKENS // 3, both.process))
    continued = counted(stack, "sovereign_continuations_total") - before
    assert continued >= 1, "the kill came too late to break anything off"
    for one, other in zip(found, expected, strict=True):
        assert one.ended
        assert one.text == other.text
        assert one.usage == other.usage
        assert one.finish_reason == other.finish_reason
    usual, stalled = (max(max(one.gaps_s[1:]) for one in reads) for reads in (expected, found))
    with capsys.disabled():
        print(  # noqa: T201  the figure is what a person reads the run for
            f"\nkilled one of two replicas under {STREAMS} streams: {continued:.0f} continued; "
            f"longest gap between two chunks {stalled:.2f} s, without the kill {usual:.2f} s"
        )
