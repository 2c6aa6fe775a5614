"""The state of every card: its link, power, modes and company. One line where all are well, and one for each
card that is not. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from sovereign_ai.inventory.case import Case, title
from sovereign_ai.inventory.findings import GIB, Check, Seen, fault, gib, ok, skipped, warning
from sovereign_ai.inventory.nvml import CardState
from sovereign_ai.spec import Device

OTHERS_BYTES = 256 << 20
"""Memory on a card that is not worth a word below."""
HOT_C = 88
"""Degrees Celsius from which GeForce cards begin to slow down."""
POWER_BRAKE, HW_SLOWDOWN, HW_THERMAL = 0x80, 0x08, 0x40
"""nvmlClocksEventReason bits (nvml.h) that mean that hardware protects itself."""
POWER_SLACK = 0.99
"""Limits are set in whole watts: what differs by less is the default."""

Judge = Callable[[Device, CardState], tuple[str, str] | None]
"""What is wrong with a card and what to do; None where nothing is, or where the driver does not tell."""


def _health(case: Case) -> Iterator[Seen]:
    for device in case.gpus:
        if device.fault:
            yield fault(device.fault, "see its own words", title(device))
        else:
            yield ok(f"in health, {device.memory_free_bytes / GIB:.1f} GiB free", title(device))
    if not case.gpus:
        yield skipped("no NVIDIA card here")


def _each(judge: Judge, well: str, case: Case) -> Iterator[Seen]:
    states = {state.id: state for state in case.condition.states}
    found = [
        warning(*wrong, title(device))
        for device in case.gpus
        if (wrong := judge(device, states.get(device.id, CardState(id=device.id))))
    ]
    yield from found
    if not case.gpus:
        yield skipped("no NVIDIA card here")
    elif not found:
        yield ok(well)


def _width(device: Device, _: CardState) -> tuple[str, str] | None:
    """The width does not change at rest; the generation does, and tells nothing then."""
    if device.pcie is None or device.pcie.width >= device.pcie.width_max:
        return None
    fix = "reseat it, or its riser; a slot that is wired narrower can stay so"
    return f"runs at x{device.pcie.width} of x{device.pcie.width_max}", fix


def _replays(_: Device, state: CardState) -> tuple[str, str] | None:
    if not state.replays:
        return None
    what = f"{state.replays} packets were sent again over its PCIe link"
    return what, "a bad riser or slot; watch whether it grows"


def _company(device: Device, _: CardState) -> tuple[str, str] | None:
    if device.memory_others_bytes <= OTHERS_BYTES:
        return None
    who = "a desktop is on it: put the display on another card" if device.display_attached else ""
    return f"others hold {gib(device.memory_others_bytes)} of its memory", who or "see who: nvidia-smi"


def _compute_mode(_: Device, state: CardState) -> tuple[str, str] | None:
    return None if state.compute_mode in (None, 0) else ("is not in the default compute mode",
                                                         "nvidia-smi -c DEFAULT")  # fmt: skip


def _persistence(_: Device, state: CardState) -> tuple[str, str] | None:
    if state.persistence is not False:
        return None
    fix = "enable nvidia-persistenced: the first start after idling is faster then"
    return "persistence mode is off", fix


def _power(device: Device, state: CardState) -> tuple[str, str] | None:
    limit, usual = device.power_limit_w, state.power_default_w
    if limit is None or usual is None or limit >= usual * POWER_SLACK:
        return None
    fix = f"nvidia-smi -i {device.index} -pl {usual:.0f}, unless the power supply asks for it; then calibrate"
    return f"its power limit is {limit:.0f} W, {usual:.0f} W by default: predictions are too high", fix


def _slowdown(_: Device, state: CardState) -> tuple[str, str] | None:
    if not (state.clock_reasons or 0) & (HW_SLOWDOWN | HW_THERMAL | POWER_BRAKE):
        return None
    return "its hardware slows it down now", "look at its cooling and its power supply"


def _heat(_: Device, state: CardState) -> tuple[str, str] | None:
    if state.temperature_c is None or state.temperature_c < HOT_C:
        return None
    return f"is {state.temperature_c} °C hot", "look at its cooling"


def _ecc(device: Device, state: CardState) -> tuple[str, str] | None:
    """No GeForce card has any: that is not a fault."""
    if state.ecc is None or state.ecc == state.ecc_pending:
        return None
    now, then = _on(state.ecc), _on(state.ecc_pending)
    what = f"error correction is {now} until the next start, {then} then: its memory changes"
    return what, f"reboot and take the inventory again, or nvidia-smi -i {device.index} -e {int(state.ecc)}"


def _on(state: bool | None) -> str:
    return "on" if state else "off"


def _peers(case: Case) -> Iterator[Seen]:
    """An IOMMU that translates, or access control services that send packets up to it, slow peer-to-peer
    transfers down or break them."""
    links = [link for link in case.condition.inventory.nodes[0].links if link.kind == "p2p"]
    groups = case.condition.system.iommu_groups
    if len(case.gpus) < 2:
        yield skipped("fewer than two cards")
    elif not links:
        yield ok("the cards reach each other through the host's memory, or by NVLink")
    elif not groups or case.condition.iommu in ("pt", "off"):
        yield ok(f"{len(links)} pairs reach each other over PCIe, and no IOMMU is between them")
    else:
        what = f"{len(links)} pairs reach each other over PCIe, and an IOMMU translates between them"
        fix = "boot with iommu=pt (or switch the IOMMU off) and look for ACSCtl: SrcValid+ in `lspci -vvv`"
        yield warning(what, fix)


def _numa(case: Case) -> Iterator[Seen]:
    nodes, cards = case.condition.system.numa_nodes, case.condition.system.card_nodes
    unknown = [address for address, node in cards.items() if node < 0]
    if nodes is None:
        yield skipped("it cannot be read")
    elif not case.gpus:
        yield skipped("no NVIDIA card here")
    elif nodes == 1:
        yield ok("one node")
    elif unknown:
        what = f"{nodes} nodes, and the firmware does not say which of them card {', '.join(unknown)} is at"
        yield warning(what, "look for NUMA or SRAT in the firmware's setup, or update it")
    else:
        places = ", ".join(f"{address} at {node}" for address, node in cards.items())
        yield ok(f"{nodes} nodes: {places}")


CARD_CHECKS = (
    Check("card", _health),
    Check("PCIe width", partial(_each, _width, "every card that tells has all its lanes")),
    Check("PCIe replays", partial(_each, _replays, "none that the driver tells of")),
    Check("memory of others", partial(_each, _company, "nobody else is on the cards")),
    Check("compute mode", partial(_each, _compute_mode, "the default")),
    Check("persistence mode", partial(_each, _persistence, "not off")),
    Check("power limit", partial(_each, _power, "no card is below its default")),
    Check("slowdown", partial(_each, _slowdown, "no card is slowed down by its hardware")),
    Check("temperature", partial(_each, _heat, f"no card reaches {HOT_C} °C")),
    Check("ECC", partial(_each, _ecc, "no change is pending; GeForce cards have none")),
    Check("peer to peer", _peers),
    Check("NUMA", _numa),
)
