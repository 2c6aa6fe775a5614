"""NVIDIA GPUs, as the driver's management library (NVML) answers. The one door to `pynvml`."""

from __future__ import annotations

from typing import Any, NamedTuple, NoReturn, Protocol, cast

import pynvml

from sovereign_ai.errors import InventoryError
from sovereign_ai.spec import Device

NO_PERMISSION = 4
DRIVER_NOT_LOADED = 9
LIBRARY_NOT_FOUND = 12
GPU_IS_LOST = 15
RESET_REQUIRED = 16
LIB_RM_VERSION_MISMATCH = 18
"""nvmlReturn_t values (nvml.h) that we tell apart."""

NO_GPU = frozenset({DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND})

_HINTS = {
    NO_PERMISSION: "let this user open /dev/nvidiactl and /dev/nvidia*",
    GPU_IS_LOST: "the card fell off the bus: check power and seating, then reboot",
    RESET_REQUIRED: "the card needs a reset: nvidia-smi --gpu-reset, or reboot",
    LIB_RM_VERSION_MISMATCH: "the driver was updated while loaded: reboot",
}
_ANY_HINT = "run nvidia-smi: it should name the same fault"


class Nvml(Protocol):
    """The part of pynvml that we use. Every call may raise `NVMLError`, whose `value` is an nvmlReturn_t."""

    @property
    def NVMLError(self) -> Any: ...  # noqa: N802  # pynvml's own name
    def nvmlInit(self) -> None: ...  # noqa: N802
    def nvmlShutdown(self) -> None: ...  # noqa: N802
    def nvmlSystemGetDriverVersion(self) -> str: ...  # noqa: N802
    def nvmlDeviceGetCount(self) -> int: ...  # noqa: N802
    def nvmlDeviceGetHandleByIndex(self, index: int, /) -> Any: ...  # noqa: N802
    def nvmlDeviceGetName(self, card: Any, /) -> str: ...  # noqa: N802
    def nvmlDeviceGetUUID(self, card: Any, /) -> str: ...  # noqa: N802
    def nvmlDeviceGetMemoryInfo(self, card: Any, /) -> Any: ...  # noqa: N802
    def nvmlDeviceGetCudaComputeCapability(self, card: Any, /) -> tuple[int, int]: ...  # noqa: N802
    def nvmlDeviceGetPciInfo(self, card: Any, /) -> Any: ...  # noqa: N802


class Gpus(NamedTuple):
    """The cards in PCI order, and the driver's version; `driver_version` None where there is no driver."""

    devices: tuple[Device, ...]
    driver_version: str | None


def read_gpus(nvml: Nvml | None = None) -> Gpus:
    """Every GPU of this machine. No driver or no library: no devices.

    Raises InventoryError where there is a driver that cannot answer, naming the card where one is at fault.
    """
    nvml = nvml or cast("Nvml", pynvml)
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        if error.value in NO_GPU:
            return Gpus((), None)
        _refuse("the NVIDIA driver does not answer", error)
    try:
        return Gpus(_devices(nvml), _driver_version(nvml))
    finally:
        nvml.nvmlShutdown()


def _devices(nvml: Nvml) -> tuple[Device, ...]:
    try:
        count = nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        _refuse("the NVIDIA driver cannot count its GPUs", error)
    return tuple(_device(nvml, index) for index in range(count))


def _driver_version(nvml: Nvml) -> str:
    try:
        return str(nvml.nvmlSystemGetDriverVersion())
    except nvml.NVMLError as error:
        _refuse("the NVIDIA driver does not tell its version", error)


def _device(nvml: Nvml, index: int) -> Device:
    """One card. `label` grows with what is known, so that the error names the card as well as it can."""
    label = f"GPU {index}"
    try:
        card = nvml.nvmlDeviceGetHandleByIndex(index)
        name = str(nvml.nvmlDeviceGetName(card))
        label = f"GPU {index} ({name})"
        pci_address = str(nvml.nvmlDeviceGetPciInfo(card).busId)
        label = f"GPU {index} ({name}, {pci_address})"
        memory = nvml.nvmlDeviceGetMemoryInfo(card)
        major, minor = nvml.nvmlDeviceGetCudaComputeCapability(card)
        return Device(
            id=str(nvml.nvmlDeviceGetUUID(card)),
            kind="gpu",
            name=name,
            index=index,
            memory_bytes=int(memory.total),
            memory_free_bytes=int(memory.free),
            compute_capability=f"{major}.{minor}",
            pci_address=pci_address,
        )
    except nvml.NVMLError as error:
        _refuse(f"{label} does not answer", error)


def _refuse(what: str, error: Any) -> NoReturn:
    hint = _HINTS.get(error.value, _ANY_HINT) + "; or go on without GPUs with --cpu-only"
    raise InventoryError(f"{what}: {error} (NVML code {error.value})", hint) from error
