"""What a real driver answered (580.159.04, one H100; made by benchmarks/real_gpu.py, the UUID masked)."""

from __future__ import annotations

from pathlib import Path

import pytest

from sovereign_ai.catalog.gpus import gpu_facts
from sovereign_ai.inventory import catalog_bandwidths, form_tiers, load_inventory
from sovereign_ai.spec import Inventory

FILES = sorted((Path(__file__).parent / "real").glob("*.json"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def inventory(request: pytest.FixtureRequest) -> Inventory:
    return load_inventory(request.param)


def test_every_field_is_filled(inventory: Inventory) -> None:
    for device in inventory.devices:
        assert device.pcie is not None
        assert device.memory_reserved_bytes > 0
        assert device.display_attached is False
        assert device.power_limit_w
        assert device.compute_capability
        assert not device.fault
    assert all(node.driver_version for node in inventory.nodes)


def test_the_catalog_says_the_same(inventory: Inventory) -> None:
    for device in inventory.devices:
        facts, warning = gpu_facts(device)
        assert warning == ""
        assert facts.compute_capability == device.compute_capability
        assert facts.memory_bytes == pytest.approx(device.memory_bytes, rel=0.001)
        assert device.bandwidth_bytes_per_s == pytest.approx(facts.bandwidth_bytes_per_s, rel=0.01)
        assert device.pcie is not None
        assert (device.pcie.generation_max, device.pcie.width_max) == (
            facts.pcie_generation,
            facts.pcie_width,
        )


def test_its_tiers(inventory: Inventory) -> None:
    (tier,) = form_tiers(inventory, (), catalog_bandwidths(inventory))
    assert (tier.role, tier.devices) == ("primary", tuple(device.id for device in inventory.devices))
