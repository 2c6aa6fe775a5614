"""Tiers of one's own: which cards a rule of factory.yaml takes, and why a rule cannot be followed. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sovereign_ai.config import Match, TierRule
from sovereign_ai.errors import ConfigError
from sovereign_ai.inventory.cards import GIB, Group, described
from sovereign_ai.spec import Device, Inventory, Tier

TOLERANCE_GIB = 0.6
"""A rule's GiB are those on the box; NVML counts up to 3.7 % less of them (T4: 15.0 of 16 GB; L4: 22.5 of
24 GB is beyond it and must be written as 22)."""

CAPABILITY_STEP = 1e-6
"""Far below the 0.1 between two compute capabilities: floats are compared."""


class Ruled(NamedTuple):
    """The tiers that rules made, and the cards that are left for the automatic ones."""

    tiers: tuple[Tier, ...]
    rest: Group


def apply_rules(inventory: Inventory, found: Group, rules: Sequence[TierRule]) -> Ruled:
    """Each rule in order takes the cards that it matches. Ranks count from 1 in the order of the rules.

    Raises ConfigError at the rule's place where it names a UUID that is not there or not unique, or matches
    no card. A rule whose cards are all at fault makes no tier: a dead card must not stop the others.
    """
    tiers: list[Tier] = []
    taken: dict[str, str] = {}
    gpus = [device for device in inventory.devices if device.kind == "gpu"]
    for rule in rules:
        matching = _matching(rule, gpus)
        chosen = [card for card in found if card.device.id in matching and card.device.id not in taken]
        if chosen:
            tiers.append(_tier(len(tiers) + 1, rule, sorted(chosen, key=lambda card: card.order), matching))
            taken |= dict.fromkeys((card.device.id for card in chosen), rule.name)
        elif lost := [device for device in matching if device in taken]:
            others = ", ".join(f"`{name}`" for name in dict.fromkeys(taken[device] for device in lost))
            raise _refusal(rule, f"earlier rules take all of its cards ({others})", "put it before them")
    return Ruled(tuple(tiers), [card for card in found if card.device.id not in taken])


def _refusal(rule: TierRule, problem: str, hint: str) -> ConfigError:
    return ConfigError(f"{rule.where or 'tiers'}: tier `{rule.name}`: {problem}", hint)


def _tier(rank: int, rule: TierRule, chosen: Group, matching: Mapping[str, str]) -> Tier:
    place = f" ({rule.where})" if rule.where else ""
    by = f"rule `{rule.name}`{place} takes it for"
    return Tier(
        name=rule.name,
        rank=rank,
        role=rule.role,
        rule=f"{described(chosen)}: by rule{place}",
        devices=tuple(card.device.id for card in chosen),
        reasons={card.device.id: f"{described([card])}: {by} {matching[card.device.id]}" for card in chosen},
    )


def _matching(rule: TierRule, gpus: Sequence[Device]) -> dict[str, str]:
    """Id of every GPU that the rule matches, cards at fault included → why, with numbers."""
    named = _named(rule, gpus)
    why = {device.id: _why(rule.match, device, named) for device in gpus}
    matching = {device: reason for device, reason in why.items() if reason is not None}
    if not matching:
        there = ", ".join(sorted({f"{device.name} ({_gib(device):.1f} GiB)" for device in gpus})) or "no GPU"
        raise _refusal(rule, "no card matches", f"there is: {there}")
    return matching


def _named(rule: TierRule, gpus: Sequence[Device]) -> dict[str, str]:
    """Id → the rule's spelling of it. Each spelling must mean one card."""
    named: dict[str, str] = {}
    for word in rule.match.uuids:
        fitting = [device.id for device in gpus if device.id.lower().startswith(word.lower())]
        if exact := [device for device in fitting if device.lower() == word.lower()]:
            fitting = exact
        if not fitting or not word:
            silent = [device.id for device in gpus if device.fault]
            hint = f"; cards at fault: {', '.join(silent)}" if silent else ""
            raise _refusal(
                rule, f"no card has a UUID that begins with `{word}`", f"see `sovereign inventory`{hint}"
            )
        if len(fitting) > 1:
            raise _refusal(
                rule, f"`{word}` begins {len(fitting)} UUIDs", f"write more of it: {', '.join(fitting)}"
            )
        named[fitting[0]] = word
    return named


def _why(match: Match, device: Device, named: Mapping[str, str]) -> str | None:
    """What of the rule the card meets; None where it misses anything that is given."""
    gib, capability = _gib(device), float(device.compute_capability or 0)
    least, most, newest = match.min_memory_gib, match.max_memory_gib, match.min_capability
    met: list[tuple[str, bool]] = []
    if match.name is not None:
        met.append((f"the name `{match.name}`", match.name.lower() in device.name.lower()))
    if match.uuids:
        met.append((f"the UUID `{named.get(device.id)}`", device.id in named))
    if least is not None:
        met.append((f"{gib:.1f} GiB (at least {least:g})", gib >= least - TOLERANCE_GIB))
    if most is not None:
        met.append((f"{gib:.1f} GiB (at most {most:g})", gib <= most + TOLERANCE_GIB))
    if newest is not None:
        text = f"compute capability {device.compute_capability} (at least {newest:g})"
        met.append((text, capability >= newest - CAPABILITY_STEP))
    return ", ".join(text for text, _ in met) if all(fits for _, fits in met) else None


def _gib(device: Device) -> float:
    return device.memory_bytes / GIB
