"""`make up` and the commands around it, as a person uses them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

import pytest

from tests.e2e.conftest import SOVEREIGN, Stack

pytestmark = pytest.mark.engine


def test_make_up_ends_with_an_answer(first_up: tuple[Stack, str]) -> None:
    stack, printed = first_up
    for title in ("Inventory", "Tiers", "Plan", "Where the seconds went"):
        assert title in printed
    assert "Paris" in printed
    assert "tokens/s" in printed
    assert f"base URL  {stack.url}/v1" in printed
    assert f"curl {stack.url}/v1/chat/completions" in printed
    assert "openai.OpenAI(" in printed
    assert stack.key, "the first key is shown"


def test_the_lines_to_paste_work(first_up: tuple[Stack, str], stack: Stack) -> None:
    """As printed, by a shell; `python` and its `openai` are those of this virtual environment."""
    _, printed = first_up
    environment = {**os.environ, "PATH": f"{SOVEREIGN.parent}:{os.environ['PATH']}"}
    lines = [line for line in printed.splitlines() if line.startswith(("curl ", "python -c"))]
    assert len(lines) == 2
    for line in lines:
        if line.startswith("curl") and not shutil.which("curl"):
            continue
        done = subprocess.run(
            ["sh", "-c", line], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
        assert '"error"' not in done.stdout


def test_the_key_is_stored_as_a_digest_only(stack: Stack) -> None:
    secret = stack.key.encode()
    for file in stack.home.glob("ledger.sqlite*"):
        assert secret not in file.read_bytes()
    for log in (stack.home / "logs").glob("*.log"):
        assert secret not in log.read_bytes()


def test_a_second_up_changes_nothing(stack: Stack) -> None:
    before = stack.status()
    done = stack.run("up", "--detach", "--port", str(stack.port))
    assert done.returncode == 0
    assert "already running" in done.stdout
    assert stack.url in done.stdout
    assert stack.status() == before


def test_status(stack: Stack) -> None:
    done = stack.run("status")
    assert done.returncode == 0
    assert "gateway" in done.stdout
    assert "triton-cpu" in done.stdout
    report = json.loads(stack.run("status", "--json").stdout)
    assert report["state"] == "ready"
    assert {service["state"] for service in report["services"]} == {"ready"}


def test_chat_streams_to_the_terminal(stack: Stack) -> None:
    done = stack.run("chat", "What is the capital of France?", "--temperature", "0", "--max-tokens", "20")
    assert done.returncode == 0
    assert done.stdout.strip() == "The capital of France is Paris."
    assert done.stderr == ""


def test_chat_leaves_no_key_behind(stack: Stack) -> None:
    before = json.loads(stack.run("keys", "list", "--json").stdout)
    stack.run("chat", "Hi", "--max-tokens", "1")
    assert json.loads(stack.run("keys", "list", "--json").stdout) == before


def test_chat_with_an_unknown_model(stack: Stack) -> None:
    done = stack.run("chat", "Hi", "--model", "nobody")
    assert done.returncode == 70
    assert "nobody" in done.stderr
    assert "404" in done.stderr


def test_logs(stack: Stack) -> None:
    assert "Started HTTPService" in stack.run("logs", "triton-cpu", "-n", "2000").stdout
    everything = stack.run("logs").stdout
    assert "gateway" in everything
    assert "supervisor" in everything


def test_the_engine_is_listed_as_current(stack: Stack) -> None:
    engines = json.loads(stack.run("engine", "list", "--json").stdout)
    (serving,) = [engine for engine in engines if engine["name"].startswith("cpu-")]
    assert (serving["state"], serving["vllm"]) == ("current", "0.32.0")


def test_a_running_engine_is_not_removed(stack: Stack) -> None:
    name = json.loads(stack.run("engine", "list", "--json").stdout)[0]["name"]
    done = stack.run("engine", "remove", name)
    assert done.returncode == 64
    assert "sovereign down" in done.stderr


def test_the_repository_is_rendered_from_the_plan(stack: Stack) -> None:
    plan = json.loads((stack.home / "run" / "plan.json").read_text())
    chat = next(d for d in plan["deployments"] if d["model"] == "smollm2-135m")
    repository = stack.home / "run" / "repositories" / "triton-cpu" / "smollm2-135m"
    arguments = json.loads((repository / "1" / "model.json").read_text())
    assert arguments["max_model_len"] == chat["context"]
    assert 'backend: "vllm"' in (repository / "config.pbtxt").read_text()
