"""NVIDIA GPUs, as the driver's management library (NVML) answers. The one door to `pynvml`.

A card at fault stays in the inventory, with the driver's words in `fault`: one dead card must not hide the
others. Only a driver that cannot answer for itself is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import combinations
from typing import Any, NamedTuple, NoReturn, Protocol, cast

import msgspec
import pynvml

from sovereign_ai.errors import InventoryError
from sovereign_ai.spec import Device, Link, LinkKind, Noun, Pcie

NO_PERMISSION = 4
DRIVER_NOT_LOADED = 9
LIBRARY_NOT_FOUND = 12
GPU_IS_LOST = 15
RESET_REQUIRED = 16
LIB_RM_VERSION_MISMATCH = 18
"""nvmlReturn_t values (nvml.h) that we tell apart."""

NO_GPU = frozenset({DRIVER_NOT_LOADED, LIBRARY_NOT_FOUND})
SICK = frozenset({GPU_IS_LOST, RESET_REQUIRED})

MEMORY_V2 = 2 << 24 | 40
"""nvmlMemory_v2: the structure's version and size. It counts what the driver reserves apart from what is
used; drivers before 510 know version 1 only."""
CLOCK_MEMORY = 2
TRANSFERS_PER_CLOCK = 2
"""Of the memory clock that NVML gives, for every kind of memory: RTX 3080 (GDDR6X) 320 bit, 9501 MHz → 760
GB/s; H100 SXM (HBM3) 5120 bit, 2619 MHz → 3.35 TB/s."""
ENABLED = 1
TEMPERATURE_GPU = 0
ECC_UNCORRECTED, ECC_SINCE_LOADED = 1, 0
P2P_READ, P2P_WRITE, P2P_NVLINK, P2P_OK = 0, 1, 2, 0
"""nvmlGpuP2PCapsIndex_t and nvmlGpuP2PStatus_t. Our own numbers: pynvml's NVML_P2P_CAPS_INDEX_READ is a tuple
by mistake."""
NVLINKS_MAX = 36

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
    def nvmlDeviceGetMemoryInfo(self, card: Any, version: int | None = None, /) -> Any: ...  # noqa: N802
    def nvmlDeviceGetCudaComputeCapability(self, card: Any, /) -> tuple[int, int]: ...  # noqa: N802
    def nvmlDeviceGetPciInfo(self, card: Any, /) -> Any: ...  # noqa: N802
    def nvmlDeviceGetMemoryBusWidth(self, card: Any, /) -> int: ...  # noqa: N802
    def nvmlDeviceGetMaxClockInfo(self, card: Any, clock: int, /) -> int: ...  # noqa: N802
    def nvmlDeviceGetCurrPcieLinkGeneration(self, card: Any, /) -> int: ...  # noqa: N802
    def nvmlDeviceGetMaxPcieLinkGeneration(self, card: Any, /) -> int: ...  # noqa: N802
    def nvmlDeviceGetCurrPcieLinkWidth(self, card: Any, /) -> int: ...  # noqa: N802
    def nvmlDeviceGetMaxPcieLinkWidth(self, card: Any, /) -> int: ...  # noqa: N802
    def nvmlDeviceGetDisplayActive(self, card: Any, /) -> int: ...  # noqa: N802
    def nvmlDeviceGetDisplayMode(self, card: Any, /) -> int: ...  # noqa: N802
    def nvmlDeviceGetPowerManagementLimit(self, card: Any, /) -> int: ...  # noqa: N802
    def nvmlDeviceGetPowerManagementLimitConstraints(self, card: Any, /) -> Any: ...  # noqa: N802
    def nvmlDeviceGetMigMode(self, card: Any, /) -> Any: ...  # noqa: N802
    def nvmlDeviceGetRemappedRows(self, card: Any, /) -> tuple[int, int, int, int]: ...  # noqa: N802
    def nvmlDeviceGetRetiredPagesPendingStatus(self, card: Any, /) -> int: ...  # noqa: N802
    def nvmlDeviceGetTotalEccErrors(self, card: Any, kind: int, counter: int, /) -> int: ...  # noqa: N802
    def nvmlDeviceGetNvLinkState(self, card: Any, link: int, /) -> int: ...  # noqa: N802
    def nvmlDeviceGetNvLinkRemotePciInfo(self, card: Any, link: int, /) -> Any: ...  # noqa: N802
    def nvmlDeviceGetPersistenceMode(self, card: Any, /) -> int: ...  # noqa: N802
    def nvmlDeviceGetComputeMode(self, card: Any, /) -> int: ...  # noqa: N802
    def nvmlDeviceGetCurrentClocksThrottleReasons(self, card: Any, /) -> int: ...  # noqa: N802
    def nvmlDeviceGetTemperature(self, card: Any, sensor: int, /) -> int: ...  # noqa: N802
    def nvmlDeviceGetPcieReplayCounter(self, card: Any, /) -> int: ...  # noqa: N802
    def nvmlDeviceGetEccMode(self, card: Any, /) -> Any: ...  # noqa: N802
    def nvmlDeviceGetPowerManagementDefaultLimit(self, card: Any, /) -> int: ...  # noqa: N802
    def nvmlDeviceGetPowerUsage(self, card: Any, /) -> int: ...  # noqa: N802
    def nvmlDeviceGetUtilizationRates(self, card: Any, /) -> Any: ...  # noqa: N802
    def nvmlDeviceGetP2PStatus(self, a: Any, b: Any, what: int, /) -> int: ...  # noqa: N802


class CardState(Noun, frozen=True, kw_only=True):
    """How a card is now: nothing that plans depend on, and all of it may be None where the driver does not
    tell. `clock_reasons` are nvmlClocksEventReason bits, `replays` packets sent again over PCIe since the
    driver loaded; `compute_mode` 0 is the default; `busy` is the part of the last sample period (up to 1 s)
    in which a kernel ran, 0 to 1. `ecc` is the mode now and `ecc_pending` that of the next start: no GeForce
    card has any."""

    id: str
    persistence: bool | None = None
    compute_mode: int | None = None
    clock_reasons: int | None = None
    temperature_c: int | None = None
    replays: int | None = None
    ecc: bool | None = None
    ecc_pending: bool | None = None
    power_default_w: float | None = None
    power_w: float | None = None
    busy: float | None = None


class Gpus(NamedTuple):
    """The cards in PCI order, the driver's version (None where there is no driver) and how the cards reach
    each other."""

    devices: tuple[Device, ...]
    driver_version: str | None
    links: tuple[Link, ...] = ()


def read_gpus(nvml: Nvml | None = None) -> Gpus:
    """Every GPU of this machine. No driver or no library: no devices.

    A card that does not answer has a `fault`; where not even its UUID can be read, its id is `lost-<index>`.
    Raises InventoryError where there is a driver that cannot answer for itself.
    """
    nvml = nvml or cast("Nvml", pynvml)
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        if error.value in NO_GPU:
            return Gpus((), None)
        _refuse("the NVIDIA driver does not answer", error)
    try:
        cards = [_Card(nvml, index) for index in range(_count(nvml))]
        devices = tuple(card.read() for card in cards)
        return Gpus(devices, _driver_version(nvml), tuple(_links(nvml, cards)))
    finally:
        nvml.nvmlShutdown()


def read_states(nvml: Nvml | None = None) -> tuple[CardState, ...]:
    """The state of every card that answers. No driver: none."""
    nvml = nvml or cast("Nvml", pynvml)
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        return ()
    try:
        return tuple(found for index in range(_count(nvml)) if (found := _state(nvml, index)))
    finally:
        nvml.nvmlShutdown()


def _state(nvml: Nvml, index: int) -> CardState | None:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid = str(nvml.nvmlDeviceGetUUID(handle))
    except nvml.NVMLError:
        return None

    def ask(call: Callable[..., Any], *arguments: int) -> Any:
        try:
            return call(handle, *arguments)
        except nvml.NVMLError:
            return None

    persistence = ask(nvml.nvmlDeviceGetPersistenceMode)
    usual, milliwatts = (
        ask(call) for call in (nvml.nvmlDeviceGetPowerManagementDefaultLimit, nvml.nvmlDeviceGetPowerUsage)
    )
    rates = ask(nvml.nvmlDeviceGetUtilizationRates)
    ecc_now, ecc_pending = ask(nvml.nvmlDeviceGetEccMode) or (None, None)
    return CardState(
        id=uuid,
        persistence=_enabled(persistence),
        compute_mode=ask(nvml.nvmlDeviceGetComputeMode),
        clock_reasons=ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons),
        temperature_c=ask(nvml.nvmlDeviceGetTemperature, TEMPERATURE_GPU),
        replays=ask(nvml.nvmlDeviceGetPcieReplayCounter),
        ecc=_enabled(ecc_now),
        ecc_pending=_enabled(ecc_pending),
        power_default_w=None if usual is None else usual / 1000,
        power_w=None if milliwatts is None else milliwatts / 1000,
        busy=None if rates is None else rates.gpu / 100,
    )


def _enabled(state: int | None) -> bool | None:
    return None if state is None else state == ENABLED


def _count(nvml: Nvml) -> int:
    try:
        return nvml.nvmlDeviceGetCount()
    except nvml.NVMLError as error:
        _refuse("the NVIDIA driver cannot count its GPUs", error)


def _driver_version(nvml: Nvml) -> str:
    try:
        return str(nvml.nvmlSystemGetDriverVersion())
    except nvml.NVMLError as error:
        _refuse("the NVIDIA driver does not tell its version", error)


def _refuse(what: str, error: Any) -> NoReturn:
    hint = _HINTS.get(error.value, _ANY_HINT) + "; or go on without GPUs: sovereign up --cpu"
    raise InventoryError(f"{what}: {error} (NVML code {error.value})", hint) from error


class _Card:
    """One card while it is read: what is known of it grows from `lost-<index>` step by step."""

    def __init__(self, nvml: Nvml, index: int) -> None:
        self._nvml = nvml
        self.handle: Any = None
        self.device = Device(
            id=f"lost-{index}",
            kind="gpu",
            name=f"GPU {index}",
            index=index,
            memory_bytes=0,
            memory_free_bytes=0,
        )

    def read(self) -> Device:
        """Everything that the card tells. The first failure is its fault; the rest is asked all the same."""
        self._step("does not answer", self._open)
        if self.handle is None:
            return self.device
        self._step("does not tell its UUID", self._uuid)
        self._step("does not tell its name", self._name)
        self._step("does not tell its PCI address", self._pci_address)
        self._step("does not tell its memory", self._memory)
        self._step("does not tell its compute capability", self._capability)
        self._step("stopped answering", self._optional)
        self._step("stopped answering", self._health)
        return self.device

    def _step(self, failure: str, read: Callable[[], dict[str, Any]]) -> None:
        try:
            facts = read()
        except self._nvml.NVMLError as error:
            hint = _HINTS.get(error.value, _ANY_HINT)
            facts = {"fault": f"{failure}: {error} (NVML code {error.value}); {hint}"}
        if self.device.fault:
            facts.pop("fault", None)
        self.device = msgspec.structs.replace(self.device, **facts)

    def _ask(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """The answer, or None for what card or driver does not know. A sick card is told by raising."""
        try:
            return call(self.handle, *arguments)
        except self._nvml.NVMLError as error:
            if error.value in SICK:
                raise
            return None

    def _open(self) -> dict[str, Any]:
        self.handle = self._nvml.nvmlDeviceGetHandleByIndex(self.device.index)
        return {}

    def _uuid(self) -> dict[str, Any]:
        return {"id": str(self._nvml.nvmlDeviceGetUUID(self.handle))}

    def _name(self) -> dict[str, Any]:
        return {"name": str(self._nvml.nvmlDeviceGetName(self.handle))}

    def _pci_address(self) -> dict[str, Any]:
        return {"pci_address": str(self._nvml.nvmlDeviceGetPciInfo(self.handle).busId)}

    def _memory(self) -> dict[str, Any]:
        memory = self._ask(self._nvml.nvmlDeviceGetMemoryInfo, MEMORY_V2)
        reserved = int(memory.reserved) if memory else 0
        memory = memory or self._nvml.nvmlDeviceGetMemoryInfo(self.handle)
        return {
            "memory_bytes": int(memory.total),
            "memory_free_bytes": min(int(memory.free), int(memory.total) - reserved),
            "memory_reserved_bytes": reserved,
        }

    def _capability(self) -> dict[str, Any]:
        major, minor = self._nvml.nvmlDeviceGetCudaComputeCapability(self.handle)
        return {"compute_capability": f"{major}.{minor}"}

    def _optional(self) -> dict[str, Any]:
        watts = self._ask(self._nvml.nvmlDeviceGetPowerManagementLimit)
        constraints = self._ask(self._nvml.nvmlDeviceGetPowerManagementLimitConstraints)
        return {
            "bandwidth_bytes_per_s": self._bandwidth(),
            "pcie": self._pcie(),
            "display_attached": self._display(),
            "power_limit_w": watts / 1000 if watts else None,
            "power_limit_max_w": constraints[1] / 1000 if constraints else None,
        }

    def _bandwidth(self) -> float | None:
        bits = self._ask(self._nvml.nvmlDeviceGetMemoryBusWidth)
        megahertz = self._ask(self._nvml.nvmlDeviceGetMaxClockInfo, CLOCK_MEMORY)
        return bits / 8 * megahertz * 1e6 * TRANSFERS_PER_CLOCK if bits and megahertz else None

    def _pcie(self) -> Pcie | None:
        generation = self._ask(self._nvml.nvmlDeviceGetCurrPcieLinkGeneration)
        generation_max = self._ask(self._nvml.nvmlDeviceGetMaxPcieLinkGeneration)
        width = self._ask(self._nvml.nvmlDeviceGetCurrPcieLinkWidth)
        width_max = self._ask(self._nvml.nvmlDeviceGetMaxPcieLinkWidth)
        if not (generation and generation_max and width and width_max):
            return None
        # Virtual machines are known to give a maximum below what the link runs at.
        return Pcie(
            generation=generation,
            generation_max=max(generation, generation_max),
            width=width,
            width_max=max(width, width_max),
        )

    def _display(self) -> bool | None:
        """Whether a desktop holds memory of the card. The connector (`DisplayMode`) is asked only where the
        driver does not tell that."""
        state = self._ask(self._nvml.nvmlDeviceGetDisplayActive)
        if state is None:
            state = self._ask(self._nvml.nvmlDeviceGetDisplayMode)
        return None if state is None else state == ENABLED

    def _health(self) -> dict[str, Any]:
        return {"fault": "; ".join(self._complaints())}

    def _complaints(self) -> Iterator[str]:
        mig = self._ask(self._nvml.nvmlDeviceGetMigMode)
        if mig and mig[0] == ENABLED:
            yield "MIG mode is on, and only whole cards are planned for: nvidia-smi -mig 0"
        _, _, pending, failed = self._ask(self._nvml.nvmlDeviceGetRemappedRows) or (0, 0, 0, 0)
        if failed:
            yield "a broken row of its memory could not be remapped: the card has to be replaced"
        if pending or self._ask(self._nvml.nvmlDeviceGetRetiredPagesPendingStatus) == ENABLED:
            yield f"a broken part of its memory waits to be taken out of use; {_HINTS[RESET_REQUIRED]}"
        errors = self._ask(self._nvml.nvmlDeviceGetTotalEccErrors, ECC_UNCORRECTED, ECC_SINCE_LOADED)
        if errors:
            yield f"{errors} uncorrectable memory errors since the driver loaded; {_HINTS[RESET_REQUIRED]}"


def _links(nvml: Nvml, cards: list[_Card]) -> Iterator[Link]:
    """Pairs of cards in health that reach each other without going through host memory."""
    healthy = [card for card in cards if not card.device.fault]
    neighbours = {card.device.id: set(_neighbours(nvml, card)) for card in healthy}
    for a, b in combinations(healthy, 2):
        bridged = _address(b.device.pci_address) in neighbours[a.device.id]
        if kind := _kind(nvml, a, b, bridged):
            yield Link(a=a.device.id, b=b.device.id, kind=kind)


def _kind(nvml: Nvml, a: _Card, b: _Card, bridged: bool) -> LinkKind | None:
    def able(what: int) -> bool:
        try:
            return nvml.nvmlDeviceGetP2PStatus(a.handle, b.handle, what) == P2P_OK
        except nvml.NVMLError:
            return False

    # Behind an NVSwitch the other end of every link is the switch: only the driver knows who is behind it.
    if bridged or able(P2P_NVLINK):
        return "nvlink"
    return "p2p" if able(P2P_READ) and able(P2P_WRITE) else None


def _neighbours(nvml: Nvml, card: _Card) -> Iterator[str]:
    """PCI addresses at the other ends of the card's active NVLinks."""
    for link in range(NVLINKS_MAX):
        with suppress(nvml.NVMLError):  # no such link, or a card without any
            if nvml.nvmlDeviceGetNvLinkState(card.handle, link) == ENABLED:
                yield _address(str(nvml.nvmlDeviceGetNvLinkRemotePciInfo(card.handle, link).busId))


def _address(pci_address: str | None) -> str:
    """`00000000:0A:00.0`, whatever case and length the driver writes the domain in."""
    domain, _, rest = (pci_address or "").upper().partition(":")
    return f"{domain[-4:]}:{rest}"
