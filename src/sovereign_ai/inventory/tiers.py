"""Devices → tiers: matched cards stay together. Pure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from sovereign_ai.spec import Device, Inventory, Tier

GIB = 1 << 30

Group = list[Device]


def form_tiers(inventory: Inventory) -> tuple[Tier, ...]:
    """Every device in exactly one tier, best tier first; the same for any order of nodes and devices.

    GPUs are matched when name, memory (to the nearest GiB) and compute capability are the same: a group
    split over them would run at the slowest card's speed and hold what the smallest holds. Ranks:

    1. `primary`: the group with the most memory together, for the largest model;
    2. then by the memory of one card, then of all together: the first of these is `context` (a long context
       wants one large card), the others are `utility`.

    CPUs form one tier `cpu` behind all GPUs; it is `primary` where there is no GPU.
    """
    groups = _ranked(_matched(device for device in inventory.devices if device.kind == "gpu"))
    names = _names(groups)
    tiers = [_gpu_tier(names[at], at + 1, group) for at, group in enumerate(groups)]
    cpus = [device for device in inventory.devices if device.kind == "cpu"]
    return (*tiers, *([_cpu_tier(len(tiers) + 1, cpus)] if cpus else []))


def _matched(gpus: Iterable[Device]) -> list[Group]:
    groups: dict[tuple[str, int, str | None], Group] = defaultdict(list)
    for device in gpus:
        groups[device.name, _gib(device), device.compute_capability].append(device)
    return [sorted(group, key=_order) for group in groups.values()]


def _gib(device: Device) -> int:
    return round(device.memory_bytes / GIB)


def _order(device: Device) -> tuple[int, str]:
    return device.index, device.id


def _together(group: Group) -> int:
    return sum(device.memory_bytes for device in group)


def _ranked(groups: list[Group]) -> list[Group]:
    """Ties fall to the higher compute capability and then to the name, so that the order is total."""

    def identity(group: Group) -> tuple[list[int], str, str]:
        newest_first = [-int(part) for part in re.findall(r"\d+", group[0].compute_capability or "")]
        return newest_first, group[0].name, group[0].id

    if not groups:
        return []
    primary = min(groups, key=lambda group: (-_together(group), identity(group)))
    rest = [group for group in groups if group is not primary]
    return [
        primary,
        *sorted(rest, key=lambda group: (-group[0].memory_bytes, -_together(group), identity(group))),
    ]


def _names(groups: Sequence[Group]) -> list[str]:
    """`rtx-3080-10g`; a second group of that name gets `-2`. Fit for Kubernetes labels."""
    names: list[str] = []
    for group in groups:
        words = re.sub(r"\b(nvidia|geforce|tesla)\b", "", group[0].name.lower())
        slug = re.sub(r"[^a-z0-9]+", "-", words).strip("-")[:40].strip("-") or "gpu"
        base = f"{slug}-{_gib(group[0])}g"
        names.append(_unused(base, names))
    return names


def _unused(base: str, names: Sequence[str]) -> str:
    name, number = base, 1
    while name in names:
        number += 1
        name = f"{base}-{number}"
    return name


def _gpu_tier(name: str, rank: int, group: Group) -> Tier:
    roles = {1: ("primary", "most memory together"), 2: ("context", "largest single card of the rest")}
    role, why = roles.get(rank, ("utility", "smaller cards"))
    card = group[0]
    matched = (
        f"{len(group)}× {card.name}, {_gib(card)} GiB each, compute capability {card.compute_capability}"
    )
    rule = f"{matched}: {why} ({_together(group) / GIB:.1f} GiB)"
    return Tier(name=name, rank=rank, role=role, rule=rule, devices=tuple(device.id for device in group))


def _cpu_tier(rank: int, cpus: Group) -> Tier:
    cpus = sorted(cpus, key=_order)
    widest = next(iter(cpus[0].instruction_sets), "no vector instructions")
    amount = f"{sum(device.cores for device in cpus)} cores, {widest}"
    rule = f"no GPU: the CPU serves ({amount})" if rank == 1 else f"behind the GPUs ({amount})"
    role = "primary" if rank == 1 else "utility"
    return Tier(name="cpu", rank=rank, role=role, rule=rule, devices=tuple(device.id for device in cpus))
