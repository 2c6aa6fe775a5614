"""The whole inventory, with a fake driver where there are GPUs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from sovereign_ai import inventory
from sovereign_ai.inventory import take_inventory
from sovereign_ai.inventory.nvml import Gpus, read_gpus
from tests.inventory.fakes import FakeNvml


def plug(monkeypatch: pytest.MonkeyPatch, read: Callable[[], Gpus]) -> None:
    monkeypatch.setattr(inventory, "read_gpus", read)


def test_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, lambda: read_gpus(FakeNvml(["NVIDIA L4", "NVIDIA L4"])))
    (node,) = take_inventory().nodes
    assert [device.kind for device in node.devices] == ["gpu", "gpu"]
    assert node.driver_version == "560.35.03"
    assert node.memory_bytes > 0


def test_a_driver_without_cards_leaves_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    plug(monkeypatch, lambda: Gpus((), "560.35.03"))
    (device,) = take_inventory().devices
    assert (device.id, device.kind) == ("cpu", "cpu")
    assert 0 < device.memory_free_bytes <= device.memory_bytes
    assert device.cores >= 1


def test_cpu_only_does_not_ask_the_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Gpus:
        raise AssertionError("the driver was asked")

    plug(monkeypatch, refuse)
    assert [device.id for device in take_inventory(cpu_only=True).devices] == ["cpu"]
