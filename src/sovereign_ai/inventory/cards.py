"""A GPU as the tiers see it, and which of them are matched. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sovereign_ai.catalog.gpus import find_gpu
from sovereign_ai.spec import Device, Inventory

GIB = 1 << 30

NEAR = 0.9
"""Cards of one architecture and memory are matched down to this part of the fastest one's bandwidth. A group
runs at its slowest card's speed: this is the most that matching may cost. RTX 3060 Ti and RTX 3070 have the
same 448 GB/s; RTX 3080 and RTX 3070 (59 %) stay apart."""

TENSOR_CORES = (7, 0)
"""Compute capability (Volta) from which cards have tensor cores. Without them a prompt takes several times as
long: GTX 1080 Ti 11 TFLOPS in single precision, RTX 2080 Ti 54 in half precision."""

DIGITS = re.compile(r"\d+")


class Card(NamedTuple):
    """A healthy GPU. `speed` is its memory bandwidth in bytes/s; None where nobody knows it."""

    device: Device
    node: str
    speed: float | None

    @property
    def gib(self) -> int:
        """Memory to the nearest GiB: drivers differ in the last MiB."""
        return round(self.device.memory_bytes / GIB)

    @property
    def capability(self) -> tuple[int, ...]:
        """(8, 6); (0,) where the driver does not tell."""
        return tuple(map(int, DIGITS.findall(self.device.compute_capability or ""))) or (0,)

    @property
    def order(self) -> tuple[str, int, str]:
        return self.node, self.device.index, self.device.id


Group = list[Card]


def catalog_bandwidths(inventory: Inventory) -> dict[str, float]:
    """Device id → bytes/s by the catalog, of the GPUs whose driver does not tell and that it knows."""
    silent = [d for d in inventory.devices if d.kind == "gpu" and d.bandwidth_bytes_per_s is None]
    known = {device.id: find_gpu(device.name, device.memory_bytes) for device in silent}
    return {device: facts.bandwidth_bytes_per_s for device, facts in known.items() if facts}


def cards(inventory: Inventory, bandwidths: Mapping[str, float]) -> Group:
    """All healthy GPUs; `bandwidths` (device id → bytes/s) fills what the driver does not tell, and so does
    a card of the same kind."""
    found = [
        Card(device, node.name, device.bandwidth_bytes_per_s or bandwidths.get(device.id))
        for node in inventory.nodes
        for device in node.devices
        if device.kind == "gpu" and not device.fault
    ]
    twins: dict[tuple[object, ...], float] = {}
    for card in found:
        twins[_kind(card)] = max(twins.get(_kind(card), 0.0), card.speed or 0.0)
    return [card._replace(speed=card.speed or twins[_kind(card)] or None) for card in found]


def _kind(card: Card) -> tuple[object, ...]:
    return card.device.name, card.gib, card.capability


def matched(found: Sequence[Card]) -> list[Group]:
    """Groups of cards with the same compute capability and memory (to the nearest GiB), and bandwidths that
    are near. Without bandwidths, cards of one name."""
    alike: dict[tuple[object, ...], Group] = defaultdict(list)
    for card in found:
        alike[card.gib, card.capability, card.device.name if card.speed is None else ""].append(card)
    return [sorted(part, key=lambda card: card.order) for group in alike.values() for part in _near(group)]


def _near(group: Group) -> list[Group]:
    """Cut where a card falls too far behind the fastest of its part."""
    parts: list[Group] = []
    for card in sorted(group, key=lambda card: -(card.speed or 0.0)):
        if not parts or (card.speed or 0.0) < NEAR * (parts[-1][0].speed or 0.0):
            parts.append([])
        parts[-1].append(card)
    return parts


def slowest(group: Group) -> float | None:
    """The bandwidth that the group runs at, bytes/s."""
    return min((card.speed for card in group if card.speed is not None), default=None)


def described(group: Group) -> str:
    """`2× NVIDIA GeForce RTX 3080, 10 GiB and 760 GB/s each, compute capability 8.6`; a range where the cards
    differ."""
    names: dict[str, int] = defaultdict(int)
    for card in group:
        names[card.device.name] += 1
    counted = " + ".join(f"{count}× {name}" for name, count in names.items())
    return f"{counted if len(group) > 1 else group[0].device.name}, {_facts(group)}"


def _facts(group: Group) -> str:
    gib = _range([card.gib for card in group])
    speeds = [round(card.speed / 1e9) for card in group if card.speed is not None]
    speed = f"{_range(speeds)} GB/s" if speeds else "unknown bandwidth"
    each = " each" if len(group) > 1 else ""
    capabilities = sorted({(card.capability, card.device.compute_capability or "unknown") for card in group})
    return f"{gib} GiB and {speed}{each}, compute capability {' to '.join(_ends(capabilities))}"


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"


def _ends(capabilities: Sequence[tuple[tuple[int, ...], str]]) -> list[str]:
    return list(dict.fromkeys([capabilities[0][1], capabilities[-1][1]]))
