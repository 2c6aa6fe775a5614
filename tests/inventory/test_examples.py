"""Every example is an inventory, a factory.yaml, and tiers as they were agreed on.

The agreed ones are tests/inventory/golden/tiers-<example>.txt. Remake them with

    SOVEREIGN_UPDATE_GOLDEN=1 .venv/bin/pytest tests/inventory/test_examples.py

and read the difference before it is committed. No machine was measured for the examples.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sovereign_ai.catalog.gpus import find_gpu
from sovereign_ai.config import TierRule, load_factory
from sovereign_ai.inventory import form_tiers, load_inventory, save_inventory
from sovereign_ai.spec import Inventory

EXAMPLES = Path(__file__).parents[2] / "examples"
GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(file.parent.name for file in EXAMPLES.glob("*/inventory.json"))


def lines(inventory: Inventory, rules: tuple[TierRule, ...]) -> Iterator[str]:
    where = {device.id: node.name for node in inventory.nodes for device in node.devices}
    for tier in form_tiers(inventory, rules):
        yield f"{tier.rank} {tier.name} (role {tier.role}): {tier.rule}"
        for device in tier.devices:
            yield f"    {where[device]} {device}"
            yield f"        {tier.reasons[device]}"


def test_there_are_enough_of_them() -> None:
    assert len(NAMES) >= 8


@pytest.mark.parametrize("name", NAMES)
def test_tiers_of_an_example(name: str) -> None:
    inventory = load_inventory(EXAMPLES / name / "inventory.json")
    rules = load_factory(EXAMPLES / name / "factory.yaml").tiers
    text = "\n".join(["# automatic", *lines(inventory, ())]) + "\n"
    if rules:
        text += "\n".join(["", "# with the rules of factory.yaml", *lines(inventory, rules)]) + "\n"
    text = text.replace(f"{EXAMPLES.parent}/", "")
    golden = GOLDEN / f"tiers-{name}.txt"
    if os.environ.get("SOVEREIGN_UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


def test_no_agreement_is_left_over() -> None:
    assert sorted(file.stem.removeprefix("tiers-") for file in GOLDEN.glob("tiers-*.txt")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_as_it_would_be_saved(name: str, tmp_path: Path) -> None:
    file = EXAMPLES / name / "inventory.json"
    save_inventory(tmp_path / "again.json", load_inventory(file))
    assert (tmp_path / "again.json").read_text() == file.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_wish_names_a_tier_that_forms(name: str) -> None:
    factory = load_factory(EXAMPLES / name / "factory.yaml")
    tiers = form_tiers(load_inventory(EXAMPLES / name / "inventory.json"), factory.tiers)
    words = {word for tier in tiers for word in (tier.name, tier.role)}
    assert {model.tier for model in factory.models if model.tier} <= words


@pytest.mark.parametrize("name", NAMES)
def test_the_numbers_are_the_catalogs(name: str) -> None:
    for device in load_inventory(EXAMPLES / name / "inventory.json").devices:
        if device.kind == "gpu":
            facts = find_gpu(device.name, device.memory_bytes)
            assert facts is not None
            assert device.memory_bytes == facts.memory_bytes
            assert device.compute_capability == facts.compute_capability
            assert device.bandwidth_bytes_per_s == pytest.approx(facts.bandwidth_bytes_per_s, rel=0.001)


def test_the_reference_rig() -> None:
    """Agreed on in words, beside the golden file."""
    inventory = load_inventory(EXAMPLES / "reference-rig" / "inventory.json")
    index = {device.id: device.index for device in inventory.devices}
    tiers = form_tiers(inventory)
    assert [(tier.rank, tier.name, tier.role, [index[d] for d in tier.devices]) for tier in tiers] == [
        (1, "primary", "primary", [0, 5]),
        (2, "context", "context", [2]),
        (3, "utility", "utility", [1, 3, 4]),
    ]
