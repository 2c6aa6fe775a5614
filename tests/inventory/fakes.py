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


NOT_SUPPORTED, FUNCTION_NOT_FOUND = 3, 13

GEFORCE: dict[str, Any] = {
    "memory": SimpleNamespace(total=10 * GIB, free=9 * GIB, used=GIB),
    "memory v2": SimpleNamespace(total=10 * GIB, free=9 * GIB, used=GIB - 242 * MIB, reserved=242 * MIB),
    "capability": (8, 6),
    "bus width": 320,
    "clock": 9501,
    "generation": 1,
    "generation max": 4,
    "width": 8,
    "width max": 16,
    "display active": 0,
    "display mode": 1,
    "power limit": 320_000,
    "power limits": [100_000, 352_000],
    "p2p": 5,
}
"""What a GeForce card answers; calls that are not here are not supported by it."""

H100: dict[str, Any] = {
    "memory": SimpleNamespace(total=85520809984, free=85017493504, used=503316480),
    "memory v2": SimpleNamespace(total=85520809984, free=85017493504, used=0, reserved=503316480),
    "capability": (9, 0),
    "bus width": 5120,
    "clock": 2619,
    "generation": 5,
    "generation max": 5,
    "width": 16,
    "width max": 16,
    "display active": 0,
    "display mode": 1,
    "power limit": 700_000,
    "power limits": [200_000, 700_000],
    "mig": [0, 0],
    "remapped rows": (0, 0, 0, 0),
    "ecc": 0,
    "link state": 1,
    "link remote": "FFFFFFFF:FF:FF.0",
    "p2p": 0,
}
"""What two H100 SXM behind an NVSwitch, without any display, answered under driver 580.159.04."""


class FakeNvml:
    """Answers as pynvml does. `faults` maps a call, or (call, index), to the code that it fails with;
    `answers` maps them to what is answered instead of the card's own facts."""

    NVMLError = FakeNvmlError

    def __init__(
        self,
        names: list[str],
        faults: dict[Any, int] | None = None,
        answers: dict[Any, Any] | None = None,
        card: dict[str, Any] | None = None,
    ) -> None:
        self.names, self.faults, self.calls = names, faults or {}, list[str]()
        self.answers, self.card = answers or {}, GEFORCE if card is None else card

    def _answer(self, call: str, index: int | None = None, default: Any = None) -> Any:
        self.calls.append(call)
        code = self.faults.get(call, self.faults.get((call, index)))
        if code is not None:
            raise FakeNvmlError(code)
        answer = self.answers.get((call, index), self.answers.get(call, self.card.get(call, default)))
        if answer is None and index is not None:
            raise FakeNvmlError(NOT_SUPPORTED)
        return answer

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
        self._answer("card", index, index)
        return index

    def nvmlDeviceGetName(self, card: int) -> str:  # noqa: N802
        return str(self._answer("name", card, self.names[card]))

    def nvmlDeviceGetUUID(self, card: int) -> str:  # noqa: N802
        return str(self._answer("uuid", card, f"GPU-{card:08x}"))

    def nvmlDeviceGetMemoryInfo(self, card: int, version: int | None = None) -> Any:  # noqa: N802
        assert version in (None, 0x2000028)
        return self._answer("memory v2" if version else "memory", card)

    def nvmlDeviceGetCudaComputeCapability(self, card: int) -> tuple[int, int]:  # noqa: N802
        major, minor = self._answer("capability", card)
        return major, minor

    def nvmlDeviceGetPciInfo(self, card: int) -> Any:  # noqa: N802
        return SimpleNamespace(busId=self._answer("pci", card, f"00000000:{card + 10:02X}:00.0"))

    def nvmlDeviceGetPersistenceMode(self, card: int) -> Any:  # noqa: N802
        return self._answer("persistence", card)

    def nvmlDeviceGetComputeMode(self, card: int) -> Any:  # noqa: N802
        return self._answer("compute mode", card)

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, card: int) -> Any:  # noqa: N802
        return self._answer("clock reasons", card)

    def nvmlDeviceGetTemperature(self, card: int, sensor: int) -> Any:  # noqa: N802
        assert sensor == 0
        return self._answer("temperature", card)

    def nvmlDeviceGetPcieReplayCounter(self, card: int) -> Any:  # noqa: N802
        return self._answer("replays", card)

    def nvmlDeviceGetEccMode(self, card: int) -> Any:  # noqa: N802
        return self._answer("ecc mode", card)

    def nvmlDeviceGetPowerManagementDefaultLimit(self, card: int) -> Any:  # noqa: N802
        return self._answer("power default", card)

    def nvmlDeviceGetPowerUsage(self, card: int) -> Any:  # noqa: N802
        return self._answer("power", card)

    def nvmlDeviceGetUtilizationRates(self, card: int) -> Any:  # noqa: N802
        return self._answer("utilization", card)

    def nvmlDeviceGetMemoryBusWidth(self, card: int) -> Any:  # noqa: N802
        return self._answer("bus width", card)

    def nvmlDeviceGetMaxClockInfo(self, card: int, clock: int) -> Any:  # noqa: N802
        assert clock == 2
        return self._answer("clock", card)

    def nvmlDeviceGetCurrPcieLinkGeneration(self, card: int) -> Any:  # noqa: N802
        return self._answer("generation", card)

    def nvmlDeviceGetMaxPcieLinkGeneration(self, card: int) -> Any:  # noqa: N802
        return self._answer("generation max", card)

    def nvmlDeviceGetCurrPcieLinkWidth(self, card: int) -> Any:  # noqa: N802
        return self._answer("width", card)

    def nvmlDeviceGetMaxPcieLinkWidth(self, card: int) -> Any:  # noqa: N802
        return self._answer("width max", card)

    def nvmlDeviceGetDisplayActive(self, card: int) -> Any:  # noqa: N802
        return self._answer("display active", card)

    def nvmlDeviceGetDisplayMode(self, card: int) -> Any:  # noqa: N802
        return self._answer("display mode", card)

    def nvmlDeviceGetPowerManagementLimit(self, card: int) -> Any:  # noqa: N802
        return self._answer("power limit", card)

    def nvmlDeviceGetPowerManagementLimitConstraints(self, card: int) -> Any:  # noqa: N802
        return self._answer("power limits", card)

    def nvmlDeviceGetMigMode(self, card: int) -> Any:  # noqa: N802
        return self._answer("mig", card)

    def nvmlDeviceGetRemappedRows(self, card: int) -> Any:  # noqa: N802
        return self._answer("remapped rows", card)

    def nvmlDeviceGetRetiredPagesPendingStatus(self, card: int) -> Any:  # noqa: N802
        return self._answer("retired pages", card)

    def nvmlDeviceGetTotalEccErrors(self, card: int, kind: int, counter: int) -> Any:  # noqa: N802
        assert (kind, counter) == (1, 0)
        return self._answer("ecc", card)

    def nvmlDeviceGetNvLinkState(self, card: int, link: int) -> Any:  # noqa: N802
        if link >= 18:
            raise FakeNvmlError(2)
        return self._answer("link state", card)

    def nvmlDeviceGetNvLinkRemotePciInfo(self, card: int, link: int) -> Any:  # noqa: N802
        return SimpleNamespace(busId=self._answer("link remote", card))

    def nvmlDeviceGetP2PStatus(self, a: int, b: int, what: int) -> Any:  # noqa: N802
        return self.answers.get(("p2p", a, b, what), self._answer("p2p", a))


RIG = (
    ("NVIDIA GeForce RTX 3080", 10240, 760.3),
    ("NVIDIA GeForce RTX 3060", 12288, 360.0),
    ("NVIDIA GeForce RTX 3060 Ti", 8192, 448.0),
    ("NVIDIA GeForce RTX 3080", 10240, 760.3),
    ("NVIDIA GeForce RTX 3070", 8192, 448.0),
    ("NVIDIA GeForce RTX 3060 Ti", 8192, 448.0),
)
"""The reference rig, in slot order: name, MiB as NVML counts them, GB/s."""


def gpu(
    index: int,
    name: str,
    mib: int,
    *,
    capability: str = "8.6",
    used_mib: int = 300,
    gb_s: float | None = None,
    fault: str = "",
) -> Device:
    return Device(
        id=f"GPU-{index:08x}",
        kind="gpu",
        name=name,
        index=index,
        memory_bytes=mib * MIB,
        memory_free_bytes=(mib - used_mib) * MIB,
        compute_capability=capability,
        pci_address=f"00000000:{index + 1:02X}:00.0",
        bandwidth_bytes_per_s=None if gb_s is None else gb_s * 1e9,
        fault=fault,
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
    return inventory(*(gpu(index, name, mib, gb_s=gb_s) for index, (name, mib, gb_s) in enumerate(RIG)))
