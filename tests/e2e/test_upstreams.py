"""Requests that are passed on to vLLM's own server: two real ones, one of which is killed in the middle."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec
import openai
import pytest

from sovereign_ai.config import UpstreamEntry
from sovereign_ai.render.routes import upstream_routes
from sovereign_ai.spec import Routes
from tests.e2e.conftest import Stack, engine_processes, free_port, model_folder, shared_memory, wait_for

pytestmark = pytest.mark.engine

MODEL, CONTEXT = "far", 2048
STREAMS, TOKENS = 8, 64
KEY = "sk-of-the-far-server"


class Server(NamedTuple):
    process: subprocess.Popen[bytes]
    url: str


def command(python: Path, folder: Path, port: int) -> list[str]:
    program = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
    limits = ["--dtype", "float32", "--max-model-len", str(CONTEXT), "--enforce-eager"]
    names = ["--served-model-name", MODEL, "--host", "127.0.0.1", "--port", str(port), "--api-key", KEY]
    return [*program, *limits, *names, "--disable-uvicorn-access-log"]


def is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5) as answer:  # noqa: S310  ours
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def is_settled(process: subprocess.Popen[bytes], url: str) -> bool:
    return process.poll() is not None or is_healthy(url)


@pytest.fixture(scope="module")
def servers(
    first_up: tuple[Stack, str], engine_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Server]]:
    """Two of vLLM's servers with the chat model, as others would run them."""
    stack, _ = first_up
    stack.wait_ready()
    folder, logs = model_folder(stack, "smollm2-135m"), tmp_path_factory.mktemp("servers")
    service = next(
        one
        for one in json.loads((stack.home / "run" / "spec.json").read_text())["services"]
        if one["name"] == "triton-cpu"
    )
    environment = {**service["environment"], "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment.pop("LD_LIBRARY_PATH", None)
    before, memory, found = engine_processes(), shared_memory(), []
    for number in range(2):
        port = free_port()
        with (logs / f"{number}.log").open("wb") as log:
            process = subprocess.Popen(
                command(engine_python, folder, port),
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        found.append(Server(process, f"http://127.0.0.1:{port}"))
    try:
        for number, (process, url) in enumerate(found):
            wait_for(partial(is_settled, process, url), 300, "vLLM's server")
            assert process.poll() is None, (logs / f"{number}.log").read_text()[-3000:]
        yield found
    finally:
        for process, _url in found:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for pid in engine_processes() - before:
            os.kill(pid, signal.SIGKILL)
        for name in shared_memory() - memory:
            (Path("/dev/shm") / name).unlink(missing_ok=True)


@pytest.fixture
def upstreams(stack: Stack, servers: list[Server], tmp_path: Path) -> Iterator[list[Server]]:
    """routes.json with both, taken over by the running gateway."""
    key, path = tmp_path / "key", stack.home / "run" / "routes.json"
    key.write_text(KEY)
    old = path.read_bytes()
    entries = [UpstreamEntry(model=MODEL, url=one.url, engine="vllm", key_file=key) for one in servers]
    routes = msgspec.json.decode(old, type=Routes)
    more = upstream_routes(entries, created=0, continuations=2)
    path.write_bytes(msgspec.json.encode(Routes(routes=(*routes.routes, *more))))
    wait_for(lambda: up_count(stack) == sum(is_healthy(one.url) for one in servers), 30, "the gateway")
    yield servers
    path.write_bytes(old)
    wait_for(lambda: f'endpoint_up{{endpoint="{servers[0].url[7:]}"' not in metrics(stack), 20, "old routes")


def metrics(stack: Stack) -> str:
    with urllib.request.urlopen(f"{stack.url}/metrics", timeout=10) as answer:  # noqa: S310  ours
        return str(answer.read().decode())


def up_count(stack: Stack) -> int:
    lines = metrics(stack).splitlines()
    return sum(
        "endpoint_up{" in line and f'model="{MODEL}"' in line and line.endswith(" 1.0") for line in lines
    )


def client(stack: Stack, key: str | None = None) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{stack.url}/v1", api_key=key or stack.key, max_retries=0)


QUESTION: list[Any] = [{"role": "user", "content": "What is the capital of France?"}]


def test_what_the_server_answers_the_client_gets(stack: Stack, upstreams: list[Server]) -> None:
    """Through the gateway and past it: the same words, the same usage; and the ledger has it."""
    direct = openai.OpenAI(base_url=f"{upstreams[0].url}/v1", api_key=KEY)
    options: dict[str, Any] = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 24}
    key = stack.new_key("passing")
    through = client(stack, key)
    expected = direct.chat.completions.create(**options)
    found = through.chat.completions.create(**options)
    assert "Paris" in (found.choices[0].message.content or "")
    assert found.choices == expected.choices
    assert found.usage == expected.usage
    stream = list(through.chat.completions.create(**options, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in stream) == found.choices[0].message.content
    assert all(chunk.usage is None for chunk in stream)
    usage = list(
        through.chat.completions.create(**options, stream=True, stream_options={"include_usage": True})
    )[-1].usage
    assert usage == expected.usage
    assert expected.usage is not None

    def ledger() -> list[dict[str, Any]]:
        report = json.loads(stack.run("usage", "--by", "key", "--json").stdout)
        rows: list[dict[str, Any]] = report if isinstance(report, list) else report["rows"]
        return [row for row in rows if "passing" in row.values()]

    wait_for(
        lambda: [row["completion_tokens"] for row in ledger()] == [3 * expected.usage.completion_tokens],
        10,
        "the ledger",
    )
    assert ledger()[0]["prompt_tokens"] == 3 * expected.usage.prompt_tokens


def test_what_only_the_server_knows(stack: Stack, upstreams: list[Server]) -> None:
    """Fields and paths that pass: vLLM's structured outputs, its Responses API, its tokenizer; its errors."""
    through = client(stack)
    said = through.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=8,
        extra_body={"structured_outputs": {"choice": ["Paris", "Rome"]}},
    )
    assert said.choices[0].message.content in ("Paris", "Rome")
    response = through.responses.create(model=MODEL, input="Say hello.", max_output_tokens=8)
    assert response.usage is not None
    assert response.usage.output_tokens > 0
    text = through.completions.create(model=MODEL, prompt="The capital of France is", max_tokens=3, echo=True)
    assert text.choices[0].text.startswith("The capital of France is")
    with pytest.raises(openai.BadRequestError):
        through.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=CONTEXT * 2)
    with pytest.raises(openai.BadRequestError):
        through.chat.completions.create(model=MODEL, messages=QUESTION, temperature=-1)


class Read(NamedTuple):
    """One stream as its client saw it."""

    text: str
    ids: set[str]
    reasons: list[str]
    usage: dict[str, Any] | None
    ended: bool


async def read(session: aiohttp.ClientSession, stack: Stack, number: int, seen: list[int]) -> Read:
    request = {
        "model": MODEL,
        "messages": [{"role": "user", "content": f"Tell me a story about a ship with {number + 2} sails."}],
        "temperature": 0,
        "max_tokens": TOKENS,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    text, ids, reasons, usage, ended = "", set(), [], None, False
    async with session.post(f"{stack.url}/v1/chat/completions", json=request) as answer:
        assert answer.status == 200, await answer.text()
        async for line in answer.content:
            if line.startswith(b"data: [DONE]"):
                ended = True
            elif line.startswith(b"data: "):
                event = json.loads(line[6:])
                assert "error" not in event, event
                ids.add(event["id"])
                usage = event.get("usage") or usage
                for choice in event["choices"]:
                    text += choice["delta"].get("content") or ""
                    reasons += [choice["finish_reason"]] if choice["finish_reason"] else []
                seen[0] += 1
    return Read(text, ids, reasons, usage, ended)


async def read_all(stack: Stack, victim: subprocess.Popen[bytes] | None) -> list[Read]:
    """All streams at once; SIGKILL for `victim`'s processes when a third has been read."""
    seen = [0]
    headers = {"Authorization": f"Bearer {stack.key}"}
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as session:
        streams = [asyncio.create_task(read(session, stack, n, seen)) for n in range(STREAMS)]
        while victim is not None and seen[0] < STREAMS * TOKENS // 3:
            await asyncio.sleep(0.01)
        if victim is not None:
            os.killpg(victim.pid, signal.SIGKILL)
        return list(await asyncio.gather(*streams))


def test_a_killed_server_is_noticed_by_nobody(stack: Stack, upstreams: list[Server]) -> None:
    """The last test here: one of the two is gone afterwards."""
    expected = asyncio.run(read_all(stack, None))
    before = metrics(stack)
    found = asyncio.run(read_all(stack, upstreams[0].process))
    name = f'sovereign_continuations_total{{model="{MODEL}"}}'
    assert name not in before
    assert name in metrics(stack), "the kill came too late to break anything off"
    for one, other in zip(found, expected, strict=True):
        assert one.ended
        assert len(one.ids) == 1
        assert one.text == other.text
        assert one.usage == other.usage
        assert one.reasons == other.reasons
    alone = client(stack).chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=4)
    assert alone.usage is not None, "the other one goes on serving"
