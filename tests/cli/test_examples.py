"""`sovereign plan` on every example, as it was read and agreed on.

The agreed ones are tests/cli/golden/plan-<example>.txt (what a person sees through a pipe, notes last) and
plan-<example>.json (the bytes of --json). Remake them with

    SOVEREIGN_UPDATE_GOLDEN=1 .venv/bin/pytest tests/cli/test_examples.py

and read the difference before it is committed. No machine was measured for the examples: speeds and memory
are predictions.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from sovereign_ai.spec import Inventory, Plan
from tests.cli.conftest import Done, Here, Sovereign

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(file.parent.name for file in (ROOT / "examples").glob("*/inventory.json"))
EXPLAINED = {"reference-rig": "mistral-nemo"}
"""One model whose lost options are agreed on too."""


def arguments(name: str) -> tuple[str, ...]:
    """As a person types them in the checkout: the tiers name the rule's file as it was given."""
    folder = f"examples/{name}"
    return ("plan", "-f", f"{folder}/factory.yaml", "-i", f"{folder}/inventory.json")


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def agreed(file: Path, text: str) -> str:
    if os.environ.get("SOVEREIGN_UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(text)
    return file.read_text()


def script(command: tuple[str, ...], done: Done) -> str:
    return f"$ sovereign {' '.join(command)}\n{done.out}\n(notes, on standard error)\n{done.err}"


@pytest.mark.parametrize("name", NAMES)
def test_what_a_person_sees(here: Here, name: str) -> None:
    explain = ("--explain", EXPLAINED[name]) if name in EXPLAINED else ()
    command = (*arguments(name), *explain)
    done = here(*command)
    assert done.code == 0
    text = script(command, done)
    assert text == agreed(GOLDEN / f"plan-{name}.txt", text)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_program_reads(here: Here, name: str) -> None:
    done = here(*arguments(name), "--json")
    assert (done.code, done.err) == (0, "")
    assert done.out == agreed(GOLDEN / f"plan-{name}.json", done.out)


@pytest.mark.parametrize("name", NAMES)
def test_another_process_makes_the_same_bytes(sovereign: Sovereign, name: str) -> None:
    """Also: whatever native code writes past Python would show here."""
    sovereign.environment |= {"PYTHONHASHSEED": "12345", "COLUMNS": "40", "LC_ALL": "C.UTF-8"}
    done = sovereign(*arguments(name), "--json")
    assert (done.code, done.err) == (0, "")
    assert done.out == (GOLDEN / f"plan-{name}.json").read_text()


def test_no_agreement_is_left_over() -> None:
    expected = [f"plan-{name}.{kind}" for name in NAMES for kind in ("json", "txt")]
    assert sorted(file.name for file in GOLDEN.iterdir()) == sorted(expected)


@pytest.mark.parametrize("name", NAMES)
def test_no_card_holds_more_than_it_has(name: str) -> None:
    """Beside what others hold and what the driver keeps, copies that share a card taken together."""
    plan = msgspec.json.decode((GOLDEN / f"plan-{name}.json").read_bytes(), type=Plan)
    inventory = msgspec.json.decode((ROOT / f"examples/{name}/inventory.json").read_bytes(), type=Inventory)
    free = {(node.name, one.id): one.memory_free_bytes for node in inventory.nodes for one in node.devices}
    for deployment in plan.deployments:
        assert deployment.kv_tokens >= deployment.context or deployment.task == "embed"
        for device, memory in zip(deployment.devices, deployment.memories, strict=True):
            free[deployment.node, device] -= memory.total_bytes
    assert min(free.values()) >= 0
