"""The stack as a person has it: `make up` in a home of its own, on the real tritonserver and the real vLLM.

The home lies in .test-home of the checkout and outlives the run, so that the engine is installed once per
checkout. What these tests do not prove: anything on a GPU.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOVEREIGN = ROOT / ".venv" / "bin" / "sovereign"
UP_TIMEOUT_S = 1500
"""The first `up` of a checkout downloads and installs the engine."""


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return int(opened.getsockname()[1])


def wait_for(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"waited {timeout_s} s in vain for {what}")


class Stack:
    """One home folder and the commands on it."""

    def __init__(self, home: Path, port: int) -> None:
        self.home, self.port = home, port
        self.key = ""
        self.environment = {**os.environ, "SOVEREIGN_HOME": str(home), "COLUMNS": "200"}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def run(self, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(SOVEREIGN), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )

    def up(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = self.run("up", "--detach", "--port", str(self.port), *arguments, timeout_s=UP_TIMEOUT_S)
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def make_up(self) -> str:
        """`make up ARGS=--detach`, the command of the README. Returns what it printed."""
        done = subprocess.run(
            ["make", "up", f"ARGS=--detach --port {self.port}"],
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=UP_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        if shown := re.search(r"sk-[0-9a-f]{64}", done.stdout):
            self.key = shown[0]
        return done.stdout

    def ensure_key(self) -> str:
        if not self.key:
            self.key = self.new_key("tests")
        return self.key

    def new_key(self, name: str) -> str:
        return str(json.loads(self.run("keys", "create", name, "--json").stdout)["key"])

    def status(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(self.run("status", "--json").stdout)
        return report

    def service(self, name: str) -> dict[str, Any]:
        service: dict[str, Any] = next(s for s in self.status()["services"] if s["name"] == name)
        return service

    def wait_ready(self, timeout_s: float = 180) -> None:
        wait_for(lambda: self.status()["state"] == "ready", timeout_s, "the stack to be ready")

    def engine_metric(self, name: str) -> float:
        """One of the engine's own counters, from Triton's metrics port."""
        spec = json.loads((self.home / "run" / "spec.json").read_text())
        command = next(s["command"] for s in spec["services"] if s["name"] == "triton-cpu")
        port = next(a.split("=")[1] for a in command if a.startswith("--metrics-port="))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        found = re.search(rf"^{re.escape(name)}{{[^}}]*}} (\S+)$", text, re.M)
        assert found, f"{name} is not among the engine's metrics"
        return float(found[1])


def processes_of(home: Path) -> list[str]:
    """Command lines of living processes whose command line or environment names the home."""
    mark = str(home).encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            texts = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if any(mark in text for text in texts) and b"pytest" not in texts[0]:
            found.append(texts[0].replace(b"\0", b" ").decode())
    return found


def engine_processes() -> set[int]:
    """Processes of any vLLM engine: they overwrite their environment, so they are told by their title."""
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "cmdline").read_bytes().startswith(b"VLLM::"):
                found.add(int(entry.name))
        except OSError:
            continue
    return found


def shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests that stop the stack come last: every start costs half a minute."""
    items.sort(key=lambda item: "test_stopping" in item.nodeid)


@pytest.fixture(scope="session")
def test_home() -> Path:
    home = ROOT / ".test-home" / "home"
    home.mkdir(parents=True, exist_ok=True)
    return home


@pytest.fixture(scope="session")
def before_the_stack() -> tuple[set[int], set[str]]:
    """Engine processes and shared memory of others: what was there before is not ours to judge."""
    return engine_processes(), shared_memory()


@pytest.fixture(scope="session")
def first_up(test_home: Path, before_the_stack: object) -> Iterator[tuple[Stack, str]]:
    """The stack and what `make up` printed. It begins without keys and without a leftover run."""
    stack = Stack(test_home, free_port())
    stack.run("down")
    for file in test_home.glob("ledger.sqlite*"):
        file.unlink()
    printed = stack.make_up()
    yield stack, printed
    stack.run("down")


@pytest.fixture
def stack(first_up: tuple[Stack, str]) -> Stack:
    """The running stack, ready, with a key."""
    stack, _ = first_up
    if stack.status()["state"] not in ("ready", "starting", "degraded"):
        stack.up()
    stack.wait_ready()
    stack.ensure_key()
    return stack


@pytest.fixture(scope="session")
def engine_python(first_up: tuple[Stack, str]) -> Path:
    """The interpreter of the engine environment, for references computed without our code."""
    stack, _ = first_up
    return next((stack.home / "engines").glob("cpu-*/venv/bin/python"))


def model_folder(stack: Stack, name: str) -> Path:
    routes = json.loads((stack.home / "run" / "routes.json").read_text())
    return Path(next(route["folder"] for route in routes["routes"] if route["model"] == name))
