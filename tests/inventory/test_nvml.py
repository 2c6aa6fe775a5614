"""Read through a fake NVML: these tests do not prove that a real driver answers so."""

from __future__ import annotations

from typing import Any

import pytest

from sovereign_ai.errors import InventoryError
from sovereign_ai.inventory.nvml import read_gpus
from sovereign_ai.spec import Device
from tests.inventory.fakes import GIB, FakeNvml, FakeNvmlError

NAMES = ["NVIDIA GeForce RTX 3080", "NVIDIA GeForce RTX 3070"]


def test_reads_every_card() -> None:
    nvml = FakeNvml(NAMES)
    gpus = read_gpus(nvml)
    assert gpus.driver_version == "560.35.03"
    assert [device.name for device in gpus.devices] == NAMES
    assert gpus.devices[1] == Device(
        id="GPU-00000001",
        kind="gpu",
        name="NVIDIA GeForce RTX 3070",
        index=1,
        memory_bytes=10 * GIB,
        memory_free_bytes=9 * GIB,
        compute_capability="8.6",
        pci_address="00000000:02:00.0",
    )
    assert nvml.calls[-1] == "shutdown"


def test_a_driver_without_cards() -> None:
    assert read_gpus(FakeNvml([])) == ((), "560.35.03")


@pytest.mark.parametrize("code", [9, 12])
def test_no_driver_is_no_gpu(code: int) -> None:
    nvml = FakeNvml(NAMES, {"init": code})
    assert read_gpus(nvml) == ((), None)
    assert "shutdown" not in nvml.calls


@pytest.mark.parametrize(
    ("faults", "message", "hint"),
    [
        ({"init": 18}, "the NVIDIA driver does not answer", "updated while loaded: reboot"),
        ({"init": 4}, "the NVIDIA driver does not answer", "let this user open"),
        ({"count": 999}, "cannot count its GPUs: NVML says 999 (NVML code 999)", "run nvidia-smi"),
        ({"driver": 1}, "does not tell its version", "run nvidia-smi"),
        ({("card", 1): 15}, "GPU 1 does not answer", "fell off the bus"),
        ({("pci", 1): 15}, "GPU 1 (NVIDIA GeForce RTX 3070) does not answer", "fell off the bus"),
        ({("memory", 0): 16}, "GPU 0 (NVIDIA GeForce RTX 3080, 00000000:01:00.0) does", "needs a reset"),
        ({("uuid", 0): 15}, "GPU 0 (NVIDIA GeForce RTX 3080, 00000000:01:00.0) does", "fell off the bus"),
    ],
)
def test_a_broken_driver_is_told(faults: dict[Any, int], message: str, hint: str) -> None:
    nvml = FakeNvml(NAMES, faults)
    with pytest.raises(InventoryError) as caught:
        read_gpus(nvml)
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert "--cpu-only" in caught.value.hint
    assert isinstance(caught.value.__cause__, FakeNvmlError)
    assert nvml.calls.count("shutdown") == ("init" not in faults)


def test_the_library_of_this_machine_answers_or_is_absent() -> None:
    """Through the real pynvml: where there is no driver, that is not an error."""
    gpus = read_gpus()
    assert (gpus.driver_version is None) <= (gpus.devices == ())
