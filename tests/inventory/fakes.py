"""Stand-ins for a driver and for the cards of a rig.

They prove what our code makes of the driver's answers, not what a driver answers.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from sovereign_ai.spec import Device, Inventory, Node

MIB = 1 << 20
GIB = 1 << 30


class FakeNvmlError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"NVML says {value}")
        self.value = value


class FakeNvml:
    """Answers as pynvml does. `faults` maps a call, or (call, index), to the code that it fails with."""

    NVMLError = FakeNvmlError

    def __init__(self, names: list[str], faults: dict[Any, int] | None = None) -> None:
        self.names, self.faults, self.calls = names, faults or {}, list[str]()

    def _answer(self, call: str, index: int | None = None) -> None:
        self.calls.append(call)
        code = self.faults.get(call, self.faults.get((call, index)))
        if code is not None:
            raise FakeNvmlError(code)

    def nvmlInit(self) -> None:  # noqa: N802
        self._answer("init")

    def nvmlShutdown(self) -> None:  # noqa: N802
        self._answer("shutdown")

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        self._answer("driver")
        return "560.35.03"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._answer("count")
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        self._answer("card", index)
        return index

    def nvmlDeviceGetName(self, card: int) -> str:  # noqa: N802
        self._answer("name", card)
        return self.names[card]

    def nvmlDeviceGetUUID(self, card: int) -> str:  # noqa: N802
        self._answer("uuid", card)
        return f"GPU-{card:08x}"

    def nvmlDeviceGetMemoryInfo(self, card: int) -> Any:  # noqa: N802
        self._answer("memory", card)
        return SimpleNamespace(total=10 * GIB, free=9 * GIB, used=GIB)

    def nvmlDeviceGetCudaComputeCapability(self, card: int) -> tuple[int, int]:  # noqa: N802
        self._answer("capability", card)
        return 8, 6

    def nvmlDeviceGetPciInfo(self, card: int) -> Any:  # noqa: N802
        self._answer("pci", card)
        return SimpleNamespace(busId=f"00000000:{card + 1:02X}:00.0")


RIG = (
    ("NVIDIA GeForce RTX 3080", 10240),
    ("NVIDIA GeForce RTX 3060", 12288),
    ("NVIDIA GeForce RTX 3060 Ti", 8192),
    ("NVIDIA GeForce RTX 3080", 10240),
    ("NVIDIA GeForce RTX 3070", 8192),
    ("NVIDIA GeForce RTX 3060 Ti", 8192),
)
"""The reference rig, in slot order: name, MiB as NVML counts them."""


def gpu(index: int, name: str, mib: int, *, capability: str = "8.6", used_mib: int = 300) -> Device:
    return Device(
        id=f"GPU-{index:08x}",
        kind="gpu",
        name=name,
        index=index,
        memory_bytes=mib * MIB,
        memory_free_bytes=(mib - used_mib) * MIB,
        compute_capability=capability,
        pci_address=f"00000000:{index + 1:02X}:00.0",
    )


def cpu(*, free_bytes: int = 14 * GIB, sets: tuple[str, ...] = ("avx2", "fma")) -> Device:
    return Device(
        id="cpu",
        kind="cpu",
        name="AMD EPYC",
        memory_bytes=16 * GIB,
        memory_free_bytes=free_bytes,
        cores=2,
        instruction_sets=sets,
    )


def node(*devices: Device, name: str = "box") -> Node:
    return Node(name=name, devices=devices, cores=2, memory_bytes=16 * GIB, memory_free_bytes=14 * GIB)


def inventory(*devices: Device) -> Inventory:
    return Inventory(nodes=(node(*devices),))


def six_card_rig() -> Inventory:
    return inventory(*(gpu(index, name, mib) for index, (name, mib) in enumerate(RIG)))
