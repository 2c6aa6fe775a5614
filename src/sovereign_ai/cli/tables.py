"""The tables of `up`: inventory, tiers, plan and where the seconds went."""

from __future__ import annotations

from collections.abc import Sequence

from sovereign_ai.console import Console, human_bytes
from sovereign_ai.spec import Device, Inventory, Node, Pcie, Tier

GIB = 1 << 30

UUID_SHOWN = 12
"""Characters of a UUID that a table shows (`GPU-1f2a7333`), more where two begin alike: factory.yaml takes
such a beginning for the whole."""

PAIRS_SHOWN = 4


def show_inventory(console: Console, inventory: Inventory) -> None:
    """Nodes and what each device can do. Tables stay readable at 80 columns: details are in show_slots."""
    nodes = [
        [
            node.name,
            node.cpu or "–",
            str(node.cores),
            human_bytes(node.memory_bytes),
            human_bytes(node.memory_free_bytes),
            node.driver_version or "–",
            _links(node),
        ]
        for node in inventory.nodes
    ]
    console.table("Nodes", ["node", "CPU", "cores", "memory", "free", "driver", "links"], nodes)
    columns = ["node", "#", "name", "GiB", "usable", "in use", "compute", "GB/s", "health"]
    console.table("Inventory", columns, [_ability(node, device) for node, device in _pairs(inventory)])
    for node, device in _pairs(inventory):
        if device.fault:
            console.say(f"{node.name} #{device.index} ({device.name}): {device.fault}", style="red")


def show_slots(console: Console, inventory: Inventory) -> None:
    """How each card is plugged in, and the UUID it goes by."""
    gpus = [(node, device) for node, device in _pairs(inventory) if device.kind == "gpu"]
    if not gpus:
        return
    slots = [_slot(node, device) for node, device in gpus]
    console.table("Slots", ["node", "#", "PCI address", "PCIe", "display", "power"], slots)
    ids = [[node.name, str(device.index), device.id] for node, device in gpus]
    console.table("UUIDs", ["node", "#", "UUID"], ids)


def _pairs(inventory: Inventory) -> list[tuple[Node, Device]]:
    return [(node, device) for node in inventory.nodes for device in node.devices]


def _ability(node: Node, device: Device) -> list[str]:
    speed = device.bandwidth_bytes_per_s
    gpu = device.kind == "gpu"
    memory = (device.memory_bytes, device.memory_free_bytes, device.memory_others_bytes)
    return [
        node.name,
        str(device.index) if gpu else "cpu",
        device.name.removeprefix("NVIDIA ").removeprefix("GeForce "),
        *(f"{amount / GIB:.1f}" for amount in memory),
        device.compute_capability or ("–" if gpu else _cpu_words(device)),
        f"{speed / 1e9:.0f}" if speed else "–",
        "at fault" if device.fault else "ok",
    ]


def _cpu_words(device: Device) -> str:
    return f"{device.cores} cores, {' '.join(device.instruction_sets) or 'no vector instructions'}"


def _slot(node: Node, device: Device) -> list[str]:
    display = {True: "yes", False: "no", None: "–"}[device.display_attached]
    address = device.pci_address or "–"
    pcie = _pcie(device.pcie) if device.pcie else "–"
    return [node.name, str(device.index), address, pcie, display, _power(device)]


def _pcie(pcie: Pcie) -> str:
    """`1.0 ×4 of 4.0 ×16`: now, and at most."""
    now, most = f"{pcie.generation}.0 ×{pcie.width}", f"{pcie.generation_max}.0 ×{pcie.width_max}"
    return now if now == most else f"{now} of {most}"


def _power(device: Device) -> str:
    """`320 of 350 W`: the limit that is set, and the highest that can be."""
    now, most = device.power_limit_w, device.power_limit_max_w
    if now is None:
        return "–"
    return f"{now:.0f} W" if most is None or most == now else f"{now:.0f} of {most:.0f} W"


def _links(node: Node) -> str:
    """Pairs of indices where they are few (`nvlink 0–1`), else their number."""
    index = {device.id: device.index for device in node.devices}
    parts = []
    for kind in ("nvlink", "p2p"):
        pairs = [f"{index[link.a]}–{index[link.b]}" for link in node.links if link.kind == kind]
        if pairs:
            parts.append(f"{kind} {', '.join(pairs) if len(pairs) <= PAIRS_SHOWN else f'{len(pairs)} pairs'}")
    return "; ".join(parts) or "–"


def show_tiers(console: Console, tiers: Sequence[Tier]) -> None:
    short = short_ids([device for tier in tiers for device in tier.devices])
    rows = [
        [str(tier.rank), tier.name, tier.role, " ".join(short[device] for device in tier.devices), tier.rule]
        for tier in tiers
    ]
    console.table("Tiers", ["rank", "tier", "role", "devices", "because"], rows)


def show_reasons(console: Console, tiers: Sequence[Tier]) -> None:
    """Why each device is where it is."""
    short = short_ids([device for tier in tiers for device in tier.devices])
    rows = [
        [short[device], tier.name, tier.reasons.get(device, "")] for tier in tiers for device in tier.devices
    ]
    console.table("Devices", ["device", "tier", "because"], rows)


def short_ids(ids: Sequence[str]) -> dict[str, str]:
    """Id → the shortest beginning of it, of UUID_SHOWN characters or more, that no other of `ids` has."""
    return {each: _short(each, [other for other in ids if other != each]) for each in ids}


def _short(whole: str, others: Sequence[str]) -> str:
    lengths = range(UUID_SHOWN, len(whole))
    unique = (whole[:n] for n in lengths if not any(other.startswith(whole[:n]) for other in others))
    return next(unique, whole)


def show_seconds(console: Console, stages: Sequence[tuple[str, float]]) -> None:
    """Where the seconds went; stages of the same name are added up."""
    merged: dict[str, float] = {}
    for name, seconds in stages:
        merged[name] = merged.get(name, 0.0) + seconds
    total = sum(merged.values()) or 1.0
    rows = [[name, f"{seconds:.1f}", f"{100 * seconds / total:.0f} %"] for name, seconds in merged.items()]
    rows.append(["together", f"{total:.1f}", ""])
    console.table("Where the seconds went", ["stage", "seconds", "share"], rows)
