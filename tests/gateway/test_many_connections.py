"""Ten thousand clients that say nothing, before a gateway that is a process of its own."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.gateway.fake_triton import FakeTriton
from tests.gateway.running import chat_body, in_loop
from tests.gateway.test_server import process

CONNECTIONS = 10_000
FILES = CONNECTIONS + 1000
"""What each of both processes needs: either has one end of every connection."""
SOURCES = 5
"""Addresses that the clients come from: one has 28,000 ports, of which other programs use some."""
AT_A_TIME = 500
"""Below the backlog."""
WAIT_S = 60
OTHERS = 10
"""Files that come and go without these clients: connections to the engine, which are kept."""
MIB = 1 << 20
ASK = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def files_of(process: Process) -> int:
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def rss_bytes(process: Process) -> int:
    return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * resource.getpagesize()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.05)


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("open files are counted in /proc, which is not here")
    if hard != resource.RLIM_INFINITY and hard < FILES:
        pytest.skip(f"{FILES:,} open files are needed, the hard limit is {hard:,} (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, FILES), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def connect(number: int, port: int) -> socket.socket:
    """A client that has had one answer, as those that keep their connection have."""
    client, loop = socket.socket(), asyncio.get_running_loop()
    client.setblocking(False)
    client.bind((f"127.0.0.{2 + number % SOURCES}", 0))
    await loop.sock_connect(client, ("127.0.0.1", port))
    await loop.sock_sendall(client, ASK)
    assert (await loop.sock_recv(client, 4096)).startswith(b"HTTP/1.1 200")
    return client


@asynccontextmanager
async def idle_clients(port: int) -> AsyncIterator[None]:
    clients: list[socket.socket] = []
    try:
        for start in range(0, CONNECTIONS, AT_A_TIME):
            clients += await asyncio.gather(*(connect(start + n, port) for n in range(AT_A_TIME)))
        yield
    finally:
        for client in clients:
            client.close()


async def is_served(url: str, secret: str) -> None:
    headers = {"Authorization": f"Bearer {secret}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        async with session.post(f"{url}/v1/chat/completions", json=chat_body()) as response:
            assert response.status == 200, await response.text()
        async with session.post(f"{url}/v1/chat/completions", json=chat_body(stream=True)) as response:
            assert (await response.text()).rstrip().endswith("data: [DONE]")


@in_loop
async def test_ten_thousand_idle_clients(tmp_path: Path, many_files: None) -> None:
    """Their files are given back at once. Their memory stays with the process, for those that come next."""
    fake = FakeTriton()
    async with fake.listening(), process(tmp_path, fake) as (gateway, url, secret):
        port = int(url.rpartition(":")[2])
        await is_served(url, secret)
        files, memory = files_of(gateway), []
        for _ in range(3):
            async with idle_clients(port):
                assert files_of(gateway) >= CONNECTIONS
                await is_served(url, secret)
                memory.append(rss_bytes(gateway))
            await until(lambda: files_of(gateway) <= files + OTHERS)
        assert memory[-1] < memory[0] + 8 * MIB
        await is_served(url, secret)
