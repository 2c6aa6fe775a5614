"""Nothing is left behind: `down`, and Ctrl-C at every stage. Runs last of the tests on the shared home."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import (
    SOVEREIGN,
    Stack,
    engine_processes,
    free_port,
    model_folder,
    processes_of,
    shared_memory,
    wait_for,
)

pytestmark = pytest.mark.engine

STOP_BUDGET_S = 10
"""What the product promises, not a timing of ours: after this a person takes it for hung."""


@contextmanager
def on_a_terminal(stack: Stack, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`sovereign …` on a pseudo-terminal, as a person runs it; what it shows is read all the time."""
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [str(SOVEREIGN), *arguments],
        env=stack.environment,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    reader = threading.Thread(target=read_all, args=(master,))
    reader.start()
    try:
        yield child
    finally:
        if child.poll() is None:
            child.kill()
        child.wait()
        reader.join()
        os.close(master)


def read_all(master: int) -> None:
    try:
        while os.read(master, 65536):
            pass
    except OSError:
        return  # the other side is closed: the program has ended


def interrupt(child: subprocess.Popen[bytes]) -> int:
    child.send_signal(signal.SIGINT)
    return child.wait(STOP_BUDGET_S)


def wait_for_file_text(file: Path, pattern: str, timeout_s: float) -> None:
    wait_for(
        lambda: file.exists() and re.search(pattern, file.read_text(errors="replace")), timeout_s, pattern
    )


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Stack]:
    """An empty home."""
    stack = Stack(tmp_path / "home", free_port())
    yield stack
    stack.run("down")


@pytest.fixture
def prepared(first_up: tuple[Stack, str], fresh: Stack) -> Stack:
    """A home of its own that shares the installed engine, nothing running in it."""
    first, _ = first_up
    first.run("down")
    fresh.home.mkdir()
    (fresh.home / "engines").symlink_to(first.home / "engines")
    (fresh.home / "storage").symlink_to(first.home / "storage")
    return fresh


def test_down_leaves_nothing(
    first_up: tuple[Stack, str], before_the_stack: tuple[set[int], set[str]]
) -> None:
    stack, _ = first_up
    if stack.status()["state"] != "ready":
        stack.up()
    assert stack.run("down").returncode == 0
    nothing_is_left(stack, before_the_stack)
    assert stack.status()["state"] == "stopped"


def nothing_is_left(stack: Stack, before: tuple[set[int], set[str]]) -> None:
    assert processes_of(stack.home) == []
    assert engine_processes() <= before[0]
    assert shared_memory() <= before[1]


def test_foreground_with_a_factory_file(
    prepared: Stack, before_the_stack: tuple[set[int], set[str]], tmp_path: Path, first_up: tuple[Stack, str]
) -> None:
    """factory.yaml names a model by path, a context and a storage folder; Ctrl-C ends it in time."""
    folder = model_folder(first_up[0], "smollm2-135m")
    (tmp_path / "factory.yaml").write_text(
        f"storage: store\ngateway:\n  port: {prepared.port}\n"
        f"models:\n  - name: little\n    source: file:{folder}\n    context: 300\n"
    )
    with on_a_terminal(prepared, "up", "-f", str(tmp_path / "factory.yaml")) as child:
        wait_for(lambda: child.poll() is not None or prepared.status()["state"] == "ready", 180, "readiness")
        assert child.poll() is None
        assert list((tmp_path / "store" / "models" / "little").glob("*/manifest.json"))
        done = prepared.run("chat", "What is the capital of France?", "--temperature", "0")
        assert done.stdout.strip() == "The capital of France is Paris."
        too_long = prepared.run("chat", "word " * 400)
        assert too_long.returncode == 70
        assert "300" in too_long.stderr
        assert interrupt(child) in (0, 130)
    nothing_is_left(prepared, before_the_stack)


def test_ctrl_c_while_triton_loads(prepared: Stack, before_the_stack: tuple[set[int], set[str]]) -> None:
    with on_a_terminal(prepared, "up", "--port", str(prepared.port)) as child:
        log = prepared.home / "logs" / "triton-cpu.log"
        wait_for_file_text(log, "loading: smollm2-135m", 60)
        wait_for(lambda: engine_processes() - before_the_stack[0], 60, "vLLM's processes")
        assert interrupt(child) == 130
    nothing_is_left(prepared, before_the_stack)


def test_down_while_another_up_prepares(fresh: Stack) -> None:
    with on_a_terminal(fresh, "up", "--port", str(fresh.port)) as child:
        wait_for(lambda: list(fresh.home.glob("cache/wheels/*/*")), 60, "the download to begin")
        second = fresh.run("up", "--detach", "--port", str(fresh.port))
        assert second.returncode == 75
        assert str(child.pid) in second.stderr
        assert fresh.run("down").returncode == 0
        assert child.wait(STOP_BUDGET_S) == 130
    assert processes_of(fresh.home) == []


def test_ctrl_c_while_the_engine_is_installed(fresh: Stack) -> None:
    """It never looks finished, and the next try does not download again what is there."""
    with on_a_terminal(fresh, "engine", "install") as child:
        wait_for(lambda: list(fresh.home.glob("cache/wheels/*/*.whl")), 120, "the first wheels")
        assert interrupt(child) == 130
    assert processes_of(fresh.home) == []
    engines = json.loads(fresh.run("engine", "list", "--json").stdout)
    assert [engine["state"] for engine in engines] in ([], ["interrupted"])
    kept = {path.name for path in fresh.home.glob("cache/wheels/*/*.whl")}
    assert kept
    with on_a_terminal(fresh, "engine", "install") as child:
        wait_for(
            lambda: {path.name for path in fresh.home.glob("cache/wheels/*/*.whl")} > kept, 120, "more wheels"
        )
        assert interrupt(child) == 130


def test_a_changed_weight_is_found(prepared: Stack, first_up: tuple[Stack, str]) -> None:
    """One byte of the stored weights differs from the manifest: named, and nothing is started."""
    (prepared.home / "storage").unlink()
    shutil.copytree(first_up[0].home / "storage", prepared.home / "storage", symlinks=True)
    weights = next((prepared.home / "storage").glob("models/minilm-l6-v2/*/model.safetensors"))
    weights.chmod(0o644)
    with weights.open("r+b") as opened:
        opened.seek(-1, os.SEEK_END)
        byte = opened.read(1)
        opened.seek(-1, os.SEEK_END)
        opened.write(bytes([byte[0] ^ 1]))
    done = prepared.run("up", "--detach", "--port", str(prepared.port))
    assert done.returncode == 65
    assert "model.safetensors" in done.stderr
    assert prepared.status()["state"] == "stopped"


def test_a_truncated_gguf_is_refused(prepared: Stack, tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + bytes(100))
    (tmp_path / "factory.yaml").write_text("models:\n  - name: broken\n    source: file:broken.gguf\n")
    done = prepared.run("up", "--detach", "--port", str(prepared.port), "-f", str(tmp_path / "factory.yaml"))
    assert done.returncode == 65
    assert "broken.gguf" in done.stderr
    assert not list((prepared.home / "storage").glob("models/broken*"))


def test_a_model_that_triton_cannot_load(
    prepared: Stack, tmp_path: Path, first_up: tuple[Stack, str]
) -> None:
    """A config that vLLM refuses and nothing before it: the line of the log that says why, the log's path,
    and all is stopped."""
    folder = tmp_path / "odd"
    shutil.copytree(model_folder(first_up[0], "smollm2-135m"), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").chmod(0o644)
    (folder / "config.json").write_text(json.dumps({**config, "hidden_act": "tanh"}))
    (tmp_path / "factory.yaml").write_text(
        "storage: store\nmodels:\n  - name: odd\n    source: file:odd\n    context: 256\n"
    )
    started = time.monotonic()
    done = prepared.run(
        "up", "--detach", "--port", str(prepared.port), "-f", str(tmp_path / "factory.yaml"), timeout_s=300
    )
    assert done.returncode == 70, f"{time.monotonic() - started:.0f} s: {done.stderr}"
    assert re.search(r"(Error|error)", done.stderr)
    assert str(prepared.home / "logs" / "triton-cpu.log") in done.stderr
    assert prepared.status()["state"] == "stopped"
