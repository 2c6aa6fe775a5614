"""Pins to cards and splits over them: what carries over, and what the tiers make of the rest. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

from sovereign_ai.errors import ConfigError
from sovereign_ai.migrate.book import Page
from sovereign_ai.migrate.draft import Fact
from sovereign_ai.migrate.reading import Reading
from sovereign_ai.migrate.service import GpuRequest, Service, Word
from sovereign_ai.migrate.tree import Place
from sovereign_ai.spec import Device, Inventory, Tier

NO_INDEX = "an index is not carried over: it changes with slots, drivers and dead cards"
EVERYTHING = ("all", "")
NOTHING = ("none", "void", "-1", "nodevfiles")


class View(NamedTuple):
    """The machine that the stack ran on."""

    inventory: Inventory
    tiers: tuple[Tier, ...]

    @property
    def gpus(self) -> list[Device]:
        return [device for device in self.inventory.devices if device.kind == "gpu"]

    def tier_of(self, device: str) -> str:
        return next((tier.name for tier in self.tiers if device in tier.devices), "none")


def devices_of(page: Page, service: Service, reading: Reading, view: View | None) -> Fact | None:
    """The key `devices`: only for cards that are named by UUID. All else about cards is told in the book."""
    ids = _ids(service)
    _tell_request(page, service, ids)
    _tell_split(page, reading, view)
    named = [word for word in ids if word.text.startswith("GPU-")]
    _tell_indexes(page, service, [word for word in ids if word not in named], view)
    several = _several(service, ids, reading, view)
    if several is not None:
        _tell_tiers(page, several, ids, view)
    if not named or len(named) < len(ids):
        return None
    return _pinned(page, named, view)


def _ids(service: Service) -> list[Word]:
    """The cards that the service names: CUDA's choice wins, since it is made last."""
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        word = service.environment.get(name)
        if word is not None and word.text.strip().lower() not in (*EVERYTHING, *NOTHING):
            return [Word(part, word.place) for part in re.split(r"[,\s]+", word.text.strip()) if part]
    if service.gpus is None:
        return []
    parts = [(part, word.place) for word in service.gpus.ids for part in word.text.split(",")]
    return [
        Word(part.strip().removeprefix("nvidia.com/gpu="), place) for part, place in parts if part.strip()
    ]


def _tell_request(page: Page, service: Service, ids: Sequence[Word]) -> None:
    request = service.gpus
    visible = service.environment.get("NVIDIA_VISIBLE_DEVICES")
    off = visible is not None and visible.text.strip().lower() in NOTHING
    if request is not None and not request.ids and not ids:
        page.changed(request.place, f"{_amount(request)}: the plan uses every healthy card of the inventory")
    elif (request is None and visible is None and not ids) or off:
        page.assumed(service.place, "it asks for no GPU: the plan places it where it runs best")


def _amount(request: GpuRequest) -> str:
    if request.number is None:
        return "all GPUs are asked for"
    return f"{request.number} GPU{'s are' if request.number != 1 else ' is'} asked for"


# Splits


def _shares(split: Word) -> list[float]:
    """`10,8,12` in proportion. Raises ConfigError for what is no number."""
    shares = []
    for part in re.split(r"[,/\s]+", split.text.strip(" ,/")):
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{0,9})?|\.[0-9]{1,9}", part):
            raise ConfigError(
                f"{split.place}: `{part}` is no share of a tensor split", "write numbers: 10,8,12"
            )
        shares.append(float(part))
    if not math.fsum(shares):
        raise ConfigError(f"{split.place}: a tensor split that gives nothing to any card")
    return shares


def _tell_split(page: Page, reading: Reading, view: View | None) -> None:
    if reading.cards is not None:
        what = f"{reading.cards.text} cards at once: the plan chooses over how many a model is split"
        page.changed(reading.cards.place, what, "see `sovereign plan` for its choice and the reason")
    if reading.split is None:
        return
    shares = _shares(reading.split)
    what = (
        f"tensor split {reading.split.text} is not needed: cards of a tier are alike and take equal shares, "
        "and the plan counts the memory of each"
    )
    page.changed(reading.split.place, what)
    gpus = _by_index(view)
    if gpus and len(shares) == len(gpus):
        told = [f"{share:g} on {_named(gpu, view)}" for share, gpu in zip(shares, gpus, strict=True)]
        page.assumed(reading.split.place, f"in the driver's order the split was {', '.join(told)}")
    elif view is not None:
        what = (
            f"the split has {len(shares)} shares, the inventory {len(view.gpus)} GPUs: whose is whose is open"
        )
        page.assumed(reading.split.place, what)


def _by_index(view: View | None) -> list[Device]:
    """The GPUs in the driver's order; none where more than one node has some."""
    if view is None:
        return []
    nodes = [[device for device in node.devices if device.kind == "gpu"] for node in view.inventory.nodes]
    found = [gpus for gpus in nodes if gpus]
    return sorted(found[0], key=lambda device: device.index) if len(found) == 1 else []


def _named(device: Device, view: View | None) -> str:
    tier = f", tier {view.tier_of(device.id)}" if view else ""
    return f"{device.name.removeprefix('NVIDIA GeForce ')} ({device.id[:12]}{tier})"


# Pins


def _tell_indexes(page: Page, service: Service, words: Sequence[Word], view: View | None) -> None:
    if not words:
        return
    mig = [word for word in words if word.text.startswith("MIG")]
    if mig:
        page.left(
            mig[0].place, "a part of a card (MIG) cannot be planned for", "give the whole card back first"
        )
    indexes = [word for word in words if word.text.isdecimal() and len(word.text) < 5]
    other = [word for word in words if word not in (*mig, *indexes)]
    if other:
        page.left(other[0].place, f"`{other[0].text}` names no card: an index or a UUID would")
    if indexes:
        said = ", ".join(word.text for word in indexes)
        known = _cards_of(indexes, view)
        todo = (
            f"`devices: [{', '.join(one.id for one in known)}]` pins it"
            if known
            else "pin by UUID: `devices:`"
        )
        if known:
            told = ", ".join(
                f"{word.text} is {_named(one, view)}" for word, one in zip(indexes, known, strict=True)
            )
            page.left(
                indexes[0].place,
                f"pinned to GPU {said} ({told}): {NO_INDEX}",
                f"leave it to the plan; {todo}",
            )
            _tell_order(page, service, indexes[0].place, view)
        else:
            page.left(
                indexes[0].place, f"pinned to GPU {said}: {NO_INDEX}", f"leave it to the plan, or {todo}"
            )


def _cards_of(indexes: Sequence[Word], view: View | None) -> list[Device]:
    """Empty where any of them is not in the inventory."""
    gpus = {device.index: device for device in _by_index(view)}
    found = [gpus.get(int(word.text)) for word in indexes]
    return [device for device in found if device is not None] if None not in found else []


def _tell_order(page: Page, service: Service, place: Place, view: View | None) -> None:
    """CUDA counts the fastest first unless told otherwise, the driver by slot."""
    order = service.environment.get("CUDA_DEVICE_ORDER")
    by_slot = order is not None and order.text == "PCI_BUS_ID"
    alike = view is None or len({device.name for device in view.gpus}) < 2
    if "CUDA_VISIBLE_DEVICES" in service.environment and not by_slot and not alike:
        what = "indexes are told in the driver's order: CUDA counts the fastest card first where cards differ"
        page.assumed(place, what, "compare the cards before you pin any")


def _pinned(page: Page, named: Sequence[Word], view: View | None) -> Fact | None:
    unique = list(dict.fromkeys(word.text for word in named))
    place = named[0].place
    if view is not None:
        known = [device.id for device in view.gpus]
        lost = [one for one in unique if sum(device.startswith(one) for device in known) != 1]
        if lost:
            what = f"pinned to {', '.join(lost)}, which the inventory does not have: not carried over"
            page.left(place, what, "leave it to the plan, or name a card of `sovereign inventory`")
            return None
        full = [next(device for device in known if device.startswith(one)) for one in unique]
        tiers = dict.fromkeys(view.tier_of(device) for device in full)
        if len(tiers) > 1:
            what = f"pinned to {len(full)} cards of the tiers {', '.join(tiers)}: not carried over"
            page.left(place, what, "leave it to the plan, or pin cards of one tier")
            return None
    page.carried(place, f"devices {', '.join(unique)}, by UUID")
    if view is None and len(unique) > 1:
        what = f"the {len(unique)} cards that it is pinned to are alike"
        page.assumed(place, what, "take `devices` out where they are not; `-i inventory.json` checks it")
    return Fact(unique, place)


# Tiers


def _several(
    service: Service, ids: Sequence[Word], reading: Reading, view: View | None
) -> tuple[int, Place] | None:
    """How many cards the service used as one, and where that is said; None for one card or none."""
    if ids and reading.cards is None:
        number, place = len(ids), ids[0].place
    elif reading.split is not None:
        number, place = sum(share > 0 for share in _shares(reading.split)), reading.split.place
    elif service.gpus is not None and reading.cards is None:
        asked = service.gpus.number
        number = asked if asked is not None else len(view.gpus) if view else 1
        place = service.gpus.place
    else:
        return None
    return (number, place) if number > 1 else None


def _tell_tiers(page: Page, several: tuple[int, Place], ids: Sequence[Word], view: View | None) -> None:
    number, place = several
    if view is None:
        what = f"{number} cards as one GPU: a model now runs on cards that match"
        page.changed(place, what, "`-i inventory.json` tells the tiers that they make")
        return
    if ids or number != len(view.gpus):
        return
    tiers = [tier for tier in view.tiers if tier.name in {view.tier_of(device.id) for device in view.gpus}]
    told = "; ".join(f"{tier.name}: {tier.rule.partition(': ')[0]}" for tier in tiers)
    if len(tiers) > 1:
        what = (
            f"{number} cards as one GPU become {len(tiers)} tiers ({told}): as one, the slowest card set the "
            "pace and the smallest the memory; now each model runs within a tier"
        )
        page.changed(place, what, "`sovereign tiers` tells why; `tier:` at a model binds it to one")
    elif tiers:
        page.changed(place, f"{number} cards as one GPU are one tier ({told})")
