"""Devices → tiers: matched cards stay together. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sovereign_ai.config import TierRule
from sovereign_ai.inventory.cards import (
    NEAR,
    TENSOR_CORES,
    Card,
    Group,
    cards,
    described,
    matched,
    slowest,
)
from sovereign_ai.inventory.rules import apply_rules
from sovereign_ai.spec import Device, Inventory, Tier

ROLES = ("primary", "context", "utility")
"""What the automatic rule gives, in this order; all tiers behind the second are `utility`."""


class Standing(NamedTuple):
    """A group in its place among the others, and the numbers that put it there."""

    group: Group
    why: str


def form_tiers(
    inventory: Inventory,
    rules: Sequence[TierRule] = (),
    bandwidths: Mapping[str, float] | None = None,
) -> tuple[Tier, ...]:
    """Every healthy device in exactly one tier, best tier first; the same for any order of nodes and devices.

    `rules` (factory.yaml's `tiers`) take their cards first and have the first ranks. The rest forms groups of
    matched cards (`cards.matched`), ranked so:

    1. `primary`: the group that holds most at most speed: GiB together in one node × GB/s of its slowest
       card, since a deployment spans one node and reads all its weights once for every token;
    2. then by the memory of one card, and then its bandwidth: the first is `context` (a long context wants
       one large card), the others are `utility`, `utility-2`, …

    Cards without tensor cores come behind all others. A role that a rule has given is not given again,
    `utility` excepted. CPUs form one tier `cpu` behind all GPUs; it is `primary` where there is no GPU.
    `bandwidths` (device id → bytes/s) fills what the driver does not tell; a card whose bandwidth nobody
    knows counts as the slowest that is known, so that without any, memory decides.

    Raises ConfigError for a rule that cannot be followed.
    """
    ruled = apply_rules(inventory, cards(inventory, bandwidths or {}), rules)
    given = {tier.role for tier in ruled.tiers}
    roles = [role for role in ROLES if role == "utility" or role not in given]
    tiers = list(ruled.tiers)
    for standing in _ranked(matched(ruled.rest), primary="primary" in roles):
        role = roles.pop(0) if len(roles) > 1 else roles[0]
        tiers.append(_gpu_tier(_unused(role, tiers), len(tiers) + 1, role, standing))
    cpus = [device for device in inventory.devices if device.kind == "cpu" and not device.fault]
    if cpus:
        tiers.append(_cpu_tier(_unused("cpu", tiers), len(tiers) + 1, cpus))
    return tuple(tiers)


def _ranked(groups: Sequence[Group], *, primary: bool) -> list[Standing]:
    """The group for `primary` first, where that is wanted, and the others by their single cards."""
    known = [speed for group in groups if (speed := slowest(group)) is not None]
    floor = min(known, default=0.0)
    by_card = sorted(groups, key=lambda group: (_old(group), *_card_order(group, floor), _identity(group)))
    if not primary or not groups:
        return _by_card(by_card)
    together = sorted(groups, key=lambda group: (_old(group), -_worth(group, floor), _identity(group)))
    rest = [group for group in by_card if group is not together[0]]
    return [Standing(together[0], _why_primary(together, floor)), *_by_card(rest)]


def _old(group: Group) -> bool:
    return group[0].capability < TENSOR_CORES


def _card_order(group: Group, floor: float) -> tuple[float, float]:
    return -group[0].gib, -(slowest(group) or floor)


def _identity(group: Group) -> tuple[tuple[int, ...], str, str]:
    """Ties fall to the newer architecture and then to the name, so that the order is total."""
    newest_first = tuple(-part for part in group[0].capability)
    return newest_first, group[0].device.name, group[0].device.id


def _together(group: Group) -> int:
    """GiB in the node that has most of the group: no deployment spans two nodes."""
    nodes: dict[str, int] = defaultdict(int)
    for card in group:
        nodes[card.node] += card.gib
    return max(nodes.values())


def _worth(group: Group, floor: float) -> float:
    """GiB × GB/s; without any known bandwidth, GiB."""
    speed = slowest(group) or floor
    return _together(group) * (speed / 1e9 if speed else 1.0)


def _why_primary(together: Sequence[Group], floor: float) -> str:
    first, *others = [_product(group, floor) for group in together]
    if not others:
        return f"the only kind of card ({first})"
    what = "memory × bandwidth" if floor else "memory"
    why = f"most {what} in one node ({first}; next {others[0]})"
    if _old(together[1]) and not _old(together[0]):
        return f"{why}, and tensor cores, which the next lacks"
    return why


def _product(group: Group, floor: float) -> str:
    if not floor:
        return f"{_together(group)} GiB together, bandwidth unknown"
    known = slowest(group)
    speed = f"{(known or floor) / 1e9:.0f} GB/s" + ("" if known else " assumed")
    return f"{_together(group)} GiB × {speed} = {_worth(group, floor):,.0f}"


def _by_card(groups: Sequence[Group]) -> list[Standing]:
    """The largest card first; each is told the one behind it."""
    standings = []
    for at, group in enumerate(groups):
        behind = f"; next {_one(groups[at + 1])}" if at + 1 < len(groups) else ""
        what = "largest single card of the rest" if at == 0 else "a smaller or slower card"
        old = ", no tensor cores" if _old(group) else ""
        standings.append(Standing(group, f"{what} ({_one(group)}{old}{behind})"))
    return standings


def _one(group: Group) -> str:
    speed = slowest(group)
    return f"{group[0].gib} GiB" + (f" at {speed / 1e9:.0f} GB/s" if speed else "")


def _unused(name: str, tiers: Sequence[Tier]) -> str:
    taken = {tier.name for tier in tiers}
    free, number = name, 1
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free


def _gpu_tier(name: str, rank: int, role: str, standing: Standing) -> Tier:
    group, why = standing
    return Tier(
        name=name,
        rank=rank,
        role=role,
        rule=f"{described(group)}: {why}",
        devices=tuple(card.device.id for card in group),
        reasons={card.device.id: _reason(card, role, standing) for card in group},
    )


def _reason(card: Card, role: str, standing: Standing) -> str:
    others = len(standing.group) - 1
    plural = "s" if others > 1 else ""
    within = f"bandwidth within {1 - NEAR:.0%}" if card.speed else "name"
    match = f"matched with {others} other card{plural} by memory, compute capability and {within}; "
    return f"{described([card])}: {match if others else ''}{role}: {standing.why}"


def _cpu_tier(name: str, rank: int, cpus: Sequence[Device]) -> Tier:
    widest = next(iter(cpus[0].instruction_sets), "no vector instructions")
    amount = f"{sum(device.cores for device in cpus)} cores, {widest}"
    rule = f"no GPU: the CPU serves ({amount})" if rank == 1 else f"behind the GPUs ({amount})"
    ids = tuple(device.id for device in sorted(cpus, key=lambda device: (device.index, device.id)))
    role = "primary" if rank == 1 else "utility"
    return Tier(name=name, rank=rank, role=role, rule=rule, devices=ids, reasons=dict.fromkeys(ids, rule))
