from __future__ import annotations

import json
import resource
import socket
from pathlib import Path
from typing import Any

import pytest

from sovereign_ai.gateway.journal import Journal
from sovereign_ai.gateway.open_files import LEAST_FILES, raise_limit, warn_if_few
from tests.gateway.fake_triton import FakeTriton
from tests.gateway.running import in_loop
from tests.gateway.test_many_connections import files_of, is_served, until
from tests.gateway.test_server import SCRIPT, events, process


@pytest.mark.parametrize(("limit", "told"), [(None, 0), (LEAST_FILES, 0), (LEAST_FILES - 1, 1)])
def test_few_files_are_told(limit: int | None, told: int) -> None:
    lines: list[bytes] = []
    warn_if_few(limit, Journal(lines.append, lambda: 0.0))
    assert [json.loads(line)["event"] for line in lines] == ["few_open_files"] * told


def test_a_limit_that_is_not_granted_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    assert raise_limit() == 256


def test_no_limit_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert raise_limit() is None


@in_loop
async def test_the_soft_limit_of_files_is_raised(tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    script = f"import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (256, {hard})){SCRIPT}"
    fake = FakeTriton()
    async with fake.listening(), process(tmp_path, fake, script=script) as (gateway, url, secret):
        assert resource.prlimit(gateway.pid, resource.RLIMIT_NOFILE) == (hard, hard)
        await is_served(url, secret)


@in_loop
async def test_too_few_files_are_told_and_survived(tmp_path: Path) -> None:
    """More clients than files: those that come too late are turned away, and nobody else suffers."""
    limit = 200
    script = f"import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit})){SCRIPT}"
    fake = FakeTriton()
    async with fake.listening(), process(tmp_path, fake, script=script) as (gateway, url, secret):
        told = (await events(gateway, until="few_open_files"))[-1]
        assert (told["limit"], "LimitNOFILE" in told["fix"]) == (limit, True)
        await is_served(url, secret)
        port = int(url.rpartition(":")[2])
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(limit + 100)]
        await until(lambda: files_of(gateway) >= limit - 1)
        for client in clients:
            client.close()
        await until(lambda: files_of(gateway) < limit // 2)
        await is_served(url, secret)
