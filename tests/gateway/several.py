"""The gateway as several real processes, for tests: its log, and clients that know their worker."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from sovereign_ai.config import GatewaySettings, encode_gateway
from sovereign_ai.gateway.admission import Limits
from sovereign_ai.gateway.ledger import Grants, Ledger
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.running import chat_body
from tests.gateway.test_server import SCRIPT, write_routes

WORKERS = 4
PATIENCE_S = 60
"""No test waits for so long unless it fails: four workers start within seconds, also on a busy machine."""


class Several:
    """A coordinator and its workers."""

    def __init__(self, process: Process, folder: Path, secret: str) -> None:
        self.process, self.folder, self.secret = process, folder, secret
        self.log: list[dict[str, Any]] = []
        self.url = ""
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        """Every line has to be whole."""
        assert self.process.stderr is not None
        while line := await self.process.stderr.readline():
            self.log.append(json.loads(line))

    def events(self, name: str) -> list[dict[str, Any]]:
        return [line for line in self.log if line["event"] == name]

    @property
    def pids(self) -> dict[int, int]:
        """Worker → its process, the latest one."""
        return {line["worker"]: line["pid"] for line in self.events("worker_ready")}

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                assert not self._reading.done() or self._reading.exception() is None, "a torn line"
                await asyncio.sleep(0.02)

    async def ended(self) -> int:
        """The exit code, once the log has been read to its end."""
        async with asyncio.timeout(PATIENCE_S):
            await self._reading
            return await self.process.wait()

    def client(self) -> aiohttp.ClientSession:
        """One connection, and thereby one worker."""
        return aiohttp.ClientSession(
            self.url,
            headers={"Authorization": f"Bearer {self.secret}"},
            connector=aiohttp.TCPConnector(limit=1),
        )

    async def worker_of(self, client: aiohttp.ClientSession) -> int:
        """Which worker has the client's connection. One question at a time."""
        before = len(self.events("request"))
        async with client.get("/v1/models") as response:
            await response.read()
        await self.until(lambda: len(self.events("request")) > before)
        worker: int = self.events("request")[before]["worker"]
        return worker

    async def clients_of_all(self, stack: Any, least: int) -> list[tuple[aiohttp.ClientSession, int]]:
        """Clients and their workers: at least `least` of them, and at least one of each worker."""
        found: list[tuple[aiohttp.ClientSession, int]] = []
        while len(found) < least or len({worker for _, worker in found}) < WORKERS:
            client = await stack.enter_async_context(self.client())
            found.append((client, await self.worker_of(client)))
        return found

    async def metrics(self) -> dict[str, float]:
        """Sample as written → value."""
        async with self.client() as client, client.get("/metrics") as response:
            lines = (await response.text()).splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}


@asynccontextmanager
async def several(
    folder: Path, fake: FakeTriton, *, allowed: Limits | None = None, workers: int = WORKERS, **settings: Any
) -> AsyncIterator[Several]:
    """The gateway in `workers` processes, and a key that is `allowed` so much."""
    with Ledger(folder / "ledger.sqlite") as keys:
        _, secret = keys.create_key("test", grants=Grants(limits=allowed or Limits()))
    chosen = GatewaySettings(**{"port": 0, "max_body_bytes": 65536, "workers": workers, **settings})
    command = [sys.executable, "-c", SCRIPT, str(write_routes(folder, fake))]
    command += [str(folder / "ledger.sqlite"), encode_gateway(chosen)]
    process = await asyncio.create_subprocess_exec(*command, stderr=PIPE, limit=2**24)
    running = Several(process, folder, secret)
    try:
        await running.until(lambda: running.events("listening"))
        scheme = "https" if chosen.tls else "http"
        running.url = f"{scheme}://127.0.0.1:{running.events('listening')[0]['port']}"
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await running.ended()


def is_alive(pid: int) -> bool:
    """Whether it still runs: one that has ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


async def chat(client: aiohttp.ClientSession, **fields: Any) -> tuple[int, Any, Any]:
    """Status, headers and body of one chat."""
    async with client.post("/v1/chat/completions", json=chat_body(**fields)) as response:
        return response.status, response.headers, await response.json()


async def stream(client: aiohttp.ClientSession, **fields: Any) -> tuple[int, int, bool]:
    """Prompt and answer tokens as the client counts them, and whether the stream came to its end."""
    body = chat_body(stream=True, **fields)
    tokens, done = 0, False
    async with client.post("/v1/chat/completions", json=body) as response:
        assert response.status == 200, await response.text()
        async for line in response.content:
            done |= line == b"data: [DONE]\n"
            if line.startswith(b"data: {"):
                choices = json.loads(line[6:])["choices"]
                tokens += sum(bool(choice["delta"].get("content")) for choice in choices)
    return 1, tokens, done
