from __future__ import annotations

import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sovereign_ai.config import Paths
from sovereign_ai.console import Console
from sovereign_ai.deploy import processes
from sovereign_ai.deploy.sharedmemory import SHM


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """Whatever a test starts is gone when it ends."""
    before = {entry.pid for entry in processes.descendants(os.getpid())}
    yield
    named = {entry.pid for entry in processes.all_entries() if str(tmp_path) in _command(entry.pid)}
    left = ({entry.pid for entry in processes.descendants(os.getpid())} | named) - before - {os.getpid()}
    lines = [f"{pid}: {_command(pid)[:200]}" for pid in left]
    processes.send(left, signal.SIGKILL)
    processes.wait_gone(left, 5)
    assert not lines


def _command(pid: int) -> str:
    entry = processes.read_entry(pid)
    if entry is None or not entry.alive:
        return ""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        return ""


@pytest.fixture
def paths(tmp_path: Path) -> Paths:
    found = Paths(home=tmp_path / "home", storage=tmp_path / "storage")
    for folder in (found.run, found.logs):
        folder.mkdir(parents=True)
    return found


@pytest.fixture
def console() -> Console:
    return Console(json=True)


@pytest.fixture
def prefix() -> Iterator[str]:
    """A name for shared memory that nobody else has."""
    name = f"sovereign-test{secrets.token_hex(4)}-"
    yield name
    left = [path for path in SHM.iterdir() if path.name.startswith(name)]
    for path in left:
        path.unlink()
    assert not left
