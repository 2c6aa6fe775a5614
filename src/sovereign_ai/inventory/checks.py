"""What an inventory cannot be, however well-formed it is: a slip of the finger, or two files in one. Pure.

Bounds are far beyond any card there is; they catch a wrong unit (MiB for bytes, GB/s for bytes/s) and a
misplaced digit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sovereign_ai.inventory.places import Steps, spell
from sovereign_ai.spec import Device, Inventory, Link, Node, Pcie

GIB = 1 << 30
CARD_MIN_BYTES = GIB // 4
"""Below it no card computes; 10240 where bytes are meant lands here."""
CARD_MAX_BYTES = 1024 * GIB
HOST_MAX_BYTES = 1024 * CARD_MAX_BYTES
BANDWIDTH_MIN_BYTES_PER_S = 1e9
"""1 GB/s. 760 where bytes/s are meant lands here."""
BANDWIDTH_MAX_BYTES_PER_S = 100e12
PCIE_GENERATIONS = range(1, 9)
PCIE_WIDTHS = (1, 2, 4, 8, 12, 16, 32)
POWER_MAX_W = 10_000
INDEX_MAX = 1024
CORES_MAX = 65_536

CAPABILITY = re.compile(r"[1-9]\d?\.\d")
LOST = re.compile(r"lost-\d+")
"""Id of a card that does not even tell its UUID; the number is its index, so it repeats across nodes."""


class Problem(NamedTuple):
    """What is wrong at `steps`; `other` is the second place of a clash."""

    steps: Steps
    what: str
    hint: str
    other: Steps | None = None


def problems(inventory: Inventory) -> Iterator[Problem]:
    """All that is wrong, in the order of the file."""
    if not inventory.nodes:
        yield Problem(("nodes",), "there is no node", "list at least one machine")
    names: dict[str, Steps] = {}
    ids: dict[str, Steps] = {}
    for at, node in enumerate(inventory.nodes):
        here: Steps = ("nodes", at)
        yield from _clash(names, node.name, (*here, "name"), f"node `{node.name}`")
        yield from _node(here, node)
        for index, device in enumerate(node.devices):
            if not _repeats(device):
                yield from _clash(ids, device.id, (*here, "devices", index, "id"), f"device {device.id}")


def _repeats(device: Device) -> bool:
    """Ids that are no UUIDs are unique inside their node only."""
    return device.kind == "cpu" or LOST.fullmatch(device.id) is not None


def _clash(seen: dict[str, Steps], word: str, steps: Steps, what: str) -> Iterator[Problem]:
    if word in seen:
        yield Problem(steps, f"{what} is there twice", "remove or rename one of the two", seen[word])
    seen.setdefault(word, steps)


def _node(here: Steps, node: Node) -> Iterator[Problem]:
    if not node.name.strip():
        yield Problem((*here, "name"), "a node needs a name", "use the machine's host name")
    if not node.devices:
        hint = "a machine without a GPU has the device `cpu`"
        yield Problem((*here, "devices"), f"node `{node.name}` has no devices", hint)
    yield from _number((*here, "cores"), node.cores, 1, CORES_MAX, "cores")
    yield from _memory(here, node, 1, HOST_MAX_BYTES)
    own: dict[str, Steps] = {}
    indices: dict[str, Steps] = {}
    for at, device in enumerate(node.devices):
        steps = (*here, "devices", at)
        if _repeats(device):
            yield from _clash(own, device.id, (*steps, "id"), f"device `{device.id}` of node `{node.name}`")
        else:
            what = f"GPU index {device.index} of node `{node.name}`"
            yield from _clash(indices, str(device.index), (*steps, "index"), what)
        yield from _device(steps, device)
    yield from _links(here, node)


def _device(here: Steps, device: Device) -> Iterator[Problem]:
    if not re.fullmatch(r"\S+", device.id):
        yield Problem((*here, "id"), f"`{device.id}` is no device id", "use the UUID of nvidia-smi -L")
    if (device.kind == "cpu") != (device.id == "cpu"):
        hint = "a GPU goes by its UUID, the CPU by `cpu`"
        yield Problem((*here, "id"), f"a {device.kind} cannot have the id `{device.id}`", hint)
    yield from _number((*here, "index"), device.index, 0, INDEX_MAX, "index")
    yield from _number((*here, "cores"), device.cores, 0, CORES_MAX, "cores")
    least = 0 if device.fault else CARD_MIN_BYTES
    yield from _memory(here, device, least, CARD_MAX_BYTES if device.kind == "gpu" else HOST_MAX_BYTES)
    yield from _reserved(here, device)
    if device.compute_capability is not None and not CAPABILITY.fullmatch(device.compute_capability):
        what = f"compute capability `{device.compute_capability}` is not of the form N.N"
        yield Problem((*here, "compute_capability"), what, 'write it as "8.6"')
    if (speed := device.bandwidth_bytes_per_s) is not None:
        yield from _bandwidth((*here, "bandwidth_bytes_per_s"), speed)
    for key in ("power_limit_w", "power_limit_max_w"):
        if (watts := getattr(device, key)) is not None:
            yield from _number((*here, key), watts, 0, POWER_MAX_W, "W")
    if device.pcie is not None:
        yield from _pcie((*here, "pcie"), device.pcie)


def _memory(here: Steps, thing: Device | Node, least: int, most: int) -> Iterator[Problem]:
    total, free = thing.memory_bytes, thing.memory_free_bytes
    yield from _number((*here, "memory_bytes"), total, least, most, "bytes of memory")
    yield from _number((*here, "memory_free_bytes"), free, 0, most, "bytes of free memory")
    if free > total:
        what = f"{free} bytes are free of {total} in total"
        yield Problem((*here, "memory_free_bytes"), what, "free memory is a part of the total")


def _reserved(here: Steps, device: Device) -> Iterator[Problem]:
    reserved = device.memory_reserved_bytes
    if reserved < 0 or reserved + device.memory_free_bytes > device.memory_bytes:
        what = (
            f"{reserved} bytes reserved and {device.memory_free_bytes} free do not fit {device.memory_bytes}"
        )
        hint = "what the driver reserves is not free: total = reserved + free + in use"
        yield Problem((*here, "memory_reserved_bytes"), what, hint)


def _bandwidth(steps: Steps, speed: float) -> Iterator[Problem]:
    if not BANDWIDTH_MIN_BYTES_PER_S <= speed <= BANDWIDTH_MAX_BYTES_PER_S:
        what = f"a bandwidth of {speed:g} bytes/s is not between 1 GB/s and 100 TB/s"
        yield Problem(steps, what, "write bytes a second: 760e9 for 760 GB/s")


def _pcie(here: Steps, pcie: Pcie) -> Iterator[Problem]:
    known = {"generation": PCIE_GENERATIONS, "width": PCIE_WIDTHS}
    for what, allowed in known.items():
        now, most = getattr(pcie, what), getattr(pcie, f"{what}_max")
        for key, value in ((what, now), (f"{what}_max", most)):
            if value not in allowed:
                yield Problem((*here, key), f"PCIe {what} {value} does not exist", f"one of {_list(allowed)}")
        if now > most:
            problem = f"PCIe {what} {now} is above its maximum {most}"
            yield Problem((*here, what), problem, f"raise {what}_max or lower {what}")


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def _links(here: Steps, node: Node) -> Iterator[Problem]:
    there = {device.id for device in node.devices}
    pairs: dict[str, Steps] = {}
    for at, link in enumerate(node.links):
        steps = (*here, "links", at)
        yield from _link(steps, link, there)
        yield from _clash(pairs, " – ".join(sorted((link.a, link.b))), steps, f"link {link.a} – {link.b}")


def _link(here: Steps, link: Link, there: set[str]) -> Iterator[Problem]:
    for end in ("a", "b"):
        if (device := getattr(link, end)) not in there:
            hint = f"a link joins two devices of its own node; see {spell(here[:2])}.devices"
            yield Problem((*here, end), f"the link names `{device}`, which its node does not have", hint)
    if link.a == link.b:
        yield Problem(here, f"the link joins {link.a} with itself", "remove it")


def _number(steps: Steps, value: float, least: float, most: float, unit: str) -> Iterator[Problem]:
    if not least <= value <= most:
        what = f"{value:g} {unit}" if isinstance(value, float) else f"{value} {unit}"
        yield Problem(steps, f"{what}: not between {least} and {most}", "correct the number or its unit")
