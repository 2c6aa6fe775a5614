"""Devices as the planner sees them: what each can hold, how fast it is, and which of them are alike. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import msgspec

from sovereign_ai.catalog.gpus import GpuFacts, gpu_facts
from sovereign_ai.catalog.speed import Constants
from sovereign_ai.planner.performance import CLOCK_HZ, HOST_SHARE, PCIE_LANE_BYTES_PER_S, Card, gpu_card
from sovereign_ai.spec import Device, Inventory, Link, LinkKind, Node, Noun, Plan, Tier

GRAIN_BYTES = 64 << 20
"""Cards whose free memory differs by less are alike; all of them are planned with the least."""

CPU_BYTES_PER_S_A_CORE = 8e9
"""What one of 2 shared cores of an AMD EPYC reads under vLLM 0.32: 538 MB of weights 25 times a second, the
rest of a step taken off. Other machines: measure (`sovereign calibrate`)."""

CPU_FLOPS_A_CORE = 96e9
"""Float32 with AVX2: two fused multiply-adds of 8 numbers a cycle at 3 GHz."""

CPU_CORES_PER_MEMORY = 8
"""Cores beyond this add little bandwidth: a memory channel or two serve that many."""

NOTHING_MEASURED: Mapping[str, Constants] = MappingProxyType({})
NO_PINS: Mapping[str, frozenset[tuple[str, str]]] = MappingProxyType({})

_CLOSEST: dict[LinkKind, int] = {"nvlink": 2, "p2p": 1, "host": 0}


class Room(Noun, frozen=True, kw_only=True):
    """One device. `cuda_bytes` is what the engine calls its total, `usable_bytes` what of that is free;
    both are the memory of the machine for a CPU."""

    node: str
    tier: Tier
    device: Device
    card: Card
    cuda_bytes: int
    usable_bytes: int
    facts: GpuFacts | None = None

    @property
    def id(self) -> str:
        return self.device.id

    @property
    def key(self) -> tuple[str, str]:
        """Unique over all nodes: every CPU is called `cpu`."""
        return self.node, self.device.id


class Pool(Noun, frozen=True, kw_only=True):
    """Devices of one node that cannot be told apart, lowest index first. `usable_bytes` is the least of
    them."""

    node: str
    rooms: tuple[Room, ...]
    usable_bytes: int

    @property
    def first(self) -> Room:
        return self.rooms[0]


class Site(Noun, frozen=True, kw_only=True):
    """A node's pools, best tier first, and how its devices reach each other."""

    node: str
    pools: tuple[Pool, ...]
    links: tuple[Link, ...] = ()

    def link(self, ids: Iterable[str]) -> LinkKind:
        """The weakest link among the devices."""
        known = {frozenset((link.a, link.b)): link.kind for link in self.links}
        wanted = sorted(set(ids))
        pairs = [frozenset((a, b)) for at, a in enumerate(wanted) for b in wanted[at + 1 :]]
        kinds: list[LinkKind] = [known.get(pair, "host") for pair in pairs]
        return min(kinds, key=_CLOSEST.__getitem__, default="host")


def sites(
    inventory: Inventory,
    tiers: Sequence[Tier],
    *,
    pins: Mapping[str, frozenset[tuple[str, str]]] = NO_PINS,
    current: Plan | None = None,
    measured: Mapping[str, Constants] = NOTHING_MEASURED,
) -> tuple[tuple[Site, ...], tuple[str, ...]]:
    """Every node with devices in a tier, by name; and warnings about devices that are not well known.

    Devices that a wish insists on (`pins`: model → devices) or that a running deployment holds are pools of
    their own, so that these can be told from others like them. `measured`: card's name → what its engine was
    measured to cost on it.
    """
    tier_of = {device: tier for tier in tiers for device in tier.devices}
    holders = _holders(pins, current)
    warnings: dict[str, None] = {}
    found = []
    for node in sorted(inventory.nodes, key=lambda node: node.name):
        rooms = [
            _room(node, device, tier_of[device.id], warnings, _held_bytes(current, node.name, device.id))
            for device in node.devices
            if device.id in tier_of
        ]
        if rooms:
            rooms = [_with_measured(room, measured) for room in rooms]
            pools = _pools(node, rooms, holders)
            found.append(Site(node=node.name, pools=pools, links=node.links))
    return tuple(found), tuple(warnings)


def _holders(
    pins: Mapping[str, frozenset[tuple[str, str]]], current: Plan | None
) -> Mapping[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = defaultdict(str)
    for model, devices in sorted(pins.items()):
        for device in devices:
            found[device] += f"{model} "
    for deployment in current.deployments if current else ():
        for name in deployment.devices:
            found[deployment.node, name] += f"{deployment.model}/{deployment.replica} "
    return found


def _held_bytes(current: Plan | None, node: str, device: str) -> int:
    """What the running plan itself has on a device."""
    return sum(
        memory.total_bytes
        for one in (current.deployments if current else ())
        if one.node == node
        for name, memory in zip(one.devices, one.memories, strict=True)
        if name == device
    )


def _room(node: Node, device: Device, tier: Tier, warnings: dict[str, None], held_bytes: int) -> Room:
    if device.kind == "cpu":
        return Room(
            node=node.name,
            tier=tier,
            device=device,
            card=cpu_card(device),
            cuda_bytes=device.memory_bytes,
            usable_bytes=device.memory_free_bytes,
        )
    facts, warning = gpu_facts(device)
    if warning:
        warnings[warning] = None
    total = cuda_total_bytes(facts, device)
    # An old driver counts what it keeps for itself as used.
    kept = max(device.memory_reserved_bytes, device.memory_bytes - total)
    others = max(0, device.memory_bytes - device.memory_free_bytes - kept)
    if others >= held_bytes // 2:
        # The inventory was taken while the plan ran: its own memory is not in use by others.
        others = max(0, others - held_bytes)
    return Room(
        node=node.name,
        tier=tier,
        device=device,
        card=msgspec.structs.replace(gpu_card(facts), host_bytes_per_s=slot_bytes_per_s(device)),
        cuda_bytes=total,
        usable_bytes=max(0, total - others),
        facts=facts,
    )


def slot_bytes_per_s(device: Device) -> float | None:
    """What an all-reduce through host memory gets of the card's slot: the lanes that are there, at the
    generation that it reaches under load. A riser of one lane is what makes a rig of many cards slow."""
    if device.pcie is None:
        return None
    lane = PCIE_LANE_BYTES_PER_S.get(device.pcie.generation_max, PCIE_LANE_BYTES_PER_S[6])
    return HOST_SHARE * lane * device.pcie.width


def _with_measured(room: Room, measured: Mapping[str, Constants]) -> Room:
    constants = measured.get(room.card.name)
    if constants is None:
        return room
    return msgspec.structs.replace(room, card=msgspec.structs.replace(room.card, constants=constants))


def cuda_total_bytes(facts: GpuFacts, device: Device) -> int:
    """What CUDA calls the total: the catalog's figure, scaled to the memory that this card's driver
    reports."""
    hidden = facts.memory_bytes - facts.cuda_memory_bytes
    return max(1, device.memory_bytes - hidden)


def cpu_card(device: Device) -> Card:
    cores = max(1, device.cores)
    return Card(
        name=device.name,
        kind="cpu",
        bandwidth=CPU_BYTES_PER_S_A_CORE * min(cores, CPU_CORES_PER_MEMORY),
        clock_hz=CLOCK_HZ,
        flops=CPU_FLOPS_A_CORE * cores,
    )


def _pools(node: Node, rooms: Sequence[Room], holders: Mapping[tuple[str, str], str]) -> tuple[Pool, ...]:
    groups: dict[tuple[object, ...], list[Room]] = defaultdict(list)
    islands = _islands(node)
    for room in sorted(rooms, key=lambda room: (room.device.index, room.id)):
        alike = (
            room.tier.rank,
            room.device.name,
            room.cuda_bytes,
            room.usable_bytes // GRAIN_BYTES,
            room.card.key,
            room.card.host_bytes_per_s,
            islands.get(room.id, ""),
            holders.get(room.key, ""),
        )
        groups[alike].append(room)
    ordered = sorted(
        groups.values(), key=lambda group: (group[0].tier.rank, group[0].device.index, group[0].id)
    )
    return tuple(
        Pool(node=node.name, rooms=tuple(group), usable_bytes=min(room.usable_bytes for room in group))
        for group in ordered
    )


def _islands(node: Node) -> dict[str, str]:
    """Device → the first device that it reaches over direct links: bridged pairs are pools of their own."""
    found: dict[str, str] = {}
    for link in sorted(node.links, key=lambda link: (link.a, link.b)):
        if link.kind != "host":
            ends = {found.get(link.a, link.a), found.get(link.b, link.b)}
            first = min(ends)
            found |= {link.a: first, link.b: first}
            found |= {device: first for device, island in found.items() if island in ends}
    return found


def every_room(all_sites: Sequence[Site]) -> tuple[Room, ...]:
    """Best tier first on every node."""
    return tuple(room for site in all_sites for pool in site.pools for room in pool.rooms)
