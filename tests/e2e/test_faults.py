"""What happens when things break: real processes killed with real signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import Stack, engine_processes, wait_for

pytestmark = pytest.mark.engine

STORY = [{"role": "user", "content": "Write a very long story about the sea."}]


def body(max_tokens: int, **more: Any) -> dict[str, Any]:
    request = {"model": "smollm2-135m", "messages": STORY, "temperature": 0, "max_tokens": max_tokens}
    return {**request, "stream": True, "stream_options": {"include_usage": True}, **more}


async def read_stream(stack: Stack, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Every event of one streamed answer; the last is {"done": True} where the stream was closed in order."""
    headers = {"Authorization": f"Bearer {stack.key}"}
    timeout = aiohttp.ClientTimeout(total=300)
    events: list[dict[str, Any]] = []
    async with (
        aiohttp.ClientSession(headers=headers, timeout=timeout) as session,
        session.post(f"{stack.url}/v1/chat/completions", json=request) as answer,
    ):
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            if line.startswith(b"data: [DONE]"):
                events.append({"done": True})
            elif line.startswith(b"data: "):
                events.append(json.loads(line[6:]))
    return events


def test_64_concurrent_streams_end_with_correct_usage(stack: Stack) -> None:
    before = stack.engine_metric("vllm:generation_tokens_total")

    async def all_of_them() -> list[list[dict[str, Any]]]:
        return await asyncio.gather(*(read_stream(stack, body(20 + number % 7)) for number in range(64)))

    streams = asyncio.run(all_of_them())
    counted = 0
    for number, events in enumerate(streams):
        assert events[-1] == {"done": True}
        usage = events[-2]["usage"]
        assert usage["completion_tokens"] == 20 + number % 7
        assert usage["prompt_tokens"] == streams[0][-2]["usage"]["prompt_tokens"]
        assert events[-3]["choices"][0]["finish_reason"] == "length"
        counted += usage["completion_tokens"]
    # The engine's own counter agrees to the token.
    wait_for(
        lambda: stack.engine_metric("vllm:generation_tokens_total") - before == counted, 10, "the counter"
    )


CLIENT = """
import json, sys, urllib.request
url, key, body = sys.argv[1:]
headers = {"Authorization": "Bearer " + key, "Content-Type": "application/json"}
answer = urllib.request.urlopen(urllib.request.Request(url, body.encode(), headers))
while data := answer.read1():
    print(data.decode(), flush=True)
"""


@contextmanager
def client_process(stack: Stack, request: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    """A client in a process of its own, so that it can be killed."""
    command = [sys.executable, "-c", CLIENT, f"{stack.url}/v1/chat/completions", stack.key]
    with subprocess.Popen([*command, json.dumps(request)], stdout=subprocess.PIPE) as client:
        try:
            yield client
        finally:
            client.kill()


def test_a_client_that_leaves_frees_the_engine(stack: Stack) -> None:
    """A real client process, killed in mid-stream."""
    with client_process(stack, body(4000)) as client:
        assert client.stdout is not None
        assert client.stdout.readline()
        wait_for(lambda: stack.engine_metric("vllm:num_requests_running") == 1, 20, "the request to run")
        client.kill()
        wait_for(lambda: stack.engine_metric("vllm:num_requests_running") == 0, 10, "the slot to be freed")
    tokens = stack.engine_metric("vllm:generation_tokens_total")
    time.sleep(1)
    assert stack.engine_metric("vllm:generation_tokens_total") == tokens
    assert stack.engine_metric("vllm:kv_cache_usage_perc") == 0


def test_a_client_that_leaves_before_the_answer_frees_the_engine(stack: Stack) -> None:
    """The same without streaming, where nothing has been sent yet."""
    with client_process(stack, {**body(4000), "stream": False, "stream_options": None}) as client:
        wait_for(lambda: stack.engine_metric("vllm:num_requests_running") == 1, 20, "the request to run")
        client.kill()
        wait_for(lambda: stack.engine_metric("vllm:num_requests_running") == 0, 10, "the slot to be freed")


def test_kill_9_of_triton(stack: Stack) -> None:
    """status says so at once, requests in flight end with a clear error, the supervisor brings it back."""
    pid = stack.service("triton-cpu")["pid"]
    restarts = stack.service("triton-cpu")["restarts"]

    async def killed_in_mid_stream() -> tuple[list[dict[str, Any]], int, dict[str, Any]]:
        streaming = asyncio.create_task(read_stream(stack, body(2000)))
        whole = asyncio.create_task(ask_whole(stack))
        await asyncio.sleep(1.5)
        os.kill(pid, signal.SIGKILL)
        status, answer = await whole
        return await streaming, status, answer

    before = engine_processes()
    events, status, answer = asyncio.run(killed_in_mid_stream())
    report = stack.status()
    assert report["state"] == "degraded"
    assert "restarting" in next(s["state"] for s in report["services"] if s["name"] == "triton-cpu")
    assert events[0]["choices"], "the stream had begun"
    assert "engine" in events[-1]["error"]["message"]
    assert status in (502, 503)
    assert "engine" in answer["error"]["message"]
    # Requests wait for an engine that loads, as long as they like: this one for a second; loading takes many.
    status, answer = asyncio.run(ask_whole(stack, more={"x-request-timeout": "1"}))
    assert (status, answer["error"]["code"]) in ((503, "engine_unavailable"), (503, "engine_unreachable"))
    wait_for(lambda: not before & engine_processes(), 15, "the old workers to be gone")
    wait_for(lambda: stack.service("triton-cpu")["state"] == "ready", 180, "Triton to be back")
    stack.wait_ready()
    assert stack.service("triton-cpu")["restarts"] == restarts + 1
    assert asyncio.run(ask_whole(stack, max_tokens=5))[0] == 200


async def ask_whole(
    stack: Stack, max_tokens: int = 2000, more: Mapping[str, str] = MappingProxyType({})
) -> tuple[int, dict[str, Any]]:
    headers = {"Authorization": f"Bearer {stack.key}", **more}
    request = {**body(max_tokens), "stream": False, "stream_options": None}
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.post(f"{stack.url}/v1/chat/completions", json=request) as answer,
    ):
        return answer.status, await answer.json()


def test_kill_9_of_a_worker(stack: Stack) -> None:
    """Triton itself lives on without its engine: the supervisor notices and starts both anew."""
    old = stack.service("triton-cpu")["pid"]
    worker = next(pid for pid in engine_processes() if b"Worker" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: stack.service("triton-cpu")["pid"] not in (None, old), 30, "a new Triton")
    stack.wait_ready()
    assert asyncio.run(ask_whole(stack, max_tokens=5))[0] == 200


def test_kill_9_of_the_gateway(stack: Stack) -> None:
    old = stack.service("gateway")["pid"]
    os.kill(old, signal.SIGKILL)
    wait_for(lambda: stack.service("gateway")["pid"] not in (None, old), 30, "a new gateway")
    stack.wait_ready()
    assert asyncio.run(ask_whole(stack, max_tokens=5))[0] == 200


def test_kill_9_of_the_supervisor(stack: Stack) -> None:
    """The stack serves on without it; status says so; `up` recovers."""
    os.kill(stack.status()["supervisor_pid"], signal.SIGKILL)
    wait_for(lambda: stack.status()["state"] == "crashed", 5, "status to say so")
    assert asyncio.run(ask_whole(stack, max_tokens=5))[0] == 200
    done = stack.up()
    assert "a crashed run had left" in done.stderr
    assert stack.status()["state"] == "ready"
    assert asyncio.run(ask_whole(stack, max_tokens=5))[0] == 200
