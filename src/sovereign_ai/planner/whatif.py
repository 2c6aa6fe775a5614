"""Inventories that are not there yet, or no longer: a card more, a card less. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence

import msgspec

from sovereign_ai.catalog.gpus import GpuFacts, find_gpu, known_gpus
from sovereign_ai.errors import UsageError
from sovereign_ai.spec import Device, Inventory, Node, Pcie

ADD = re.compile(r"add\s+(?:(?P<count>\d+)\s*[x×]\s*)?(?P<card>.+?)(?:\s+to\s+(?P<node>\S+))?", re.IGNORECASE)
REMOVE = re.compile(r"remove\s+(?P<device>\S+)", re.IGNORECASE)

MOST_ADDED = 64
GRAMMAR = 'write "add 1x RTX 3060 12GB to NODE" or "remove GPU-…"'

NODE_CORES = 8
NODE_MEMORY_BYTES = 32 << 30
"""What a node gets that does not exist yet: no plan for GPUs depends on it."""


def changed(inventory: Inventory, what_if: Sequence[str] = (), without: Sequence[str] = ()) -> Inventory:
    """The inventory after the changes, in order. Raises UsageError for what cannot be understood or done."""
    for name in without:
        inventory = _remove(inventory, name)
    for text in what_if:
        for part in text.split(","):
            inventory = _apply(inventory, part.strip())
    return inventory


def _apply(inventory: Inventory, text: str) -> Inventory:
    if found := REMOVE.fullmatch(text):
        return _remove(inventory, found["device"])
    found = ADD.fullmatch(text)
    if found is None:
        raise UsageError(f"`{text}` is not a change of an inventory", GRAMMAR)
    count = int(found["count"] or 1)
    if not 1 <= count <= MOST_ADDED:
        raise UsageError(f"`{text}`: between 1 and {MOST_ADDED} cards can be added")
    return _add(inventory, _card(found["card"]), count, _node_name(inventory, found["node"], text))


def _card(name: str) -> GpuFacts:
    facts = find_gpu(name)
    if facts is None:
        names = [known.name for known in known_gpus()]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else GRAMMAR
        raise UsageError(f"no card `{name}` in the catalog", hint)
    return facts


def _node_name(inventory: Inventory, name: str | None, text: str) -> str:
    if name is not None:
        return name
    if len(inventory.nodes) == 1:
        return inventory.nodes[0].name
    names = ", ".join(node.name for node in inventory.nodes)
    raise UsageError(f"`{text}` does not say to which node", f"add `to NODE`, one of: {names}")


def _add(inventory: Inventory, facts: GpuFacts, count: int, name: str) -> Inventory:
    """A name that no node has makes a new node. A machine that gets its first GPU serves with it, not its
    CPU."""
    nodes = {node.name: node for node in inventory.nodes}
    node = nodes.get(name) or Node(
        name=name,
        devices=(),
        cores=NODE_CORES,
        memory_bytes=NODE_MEMORY_BYTES,
        memory_free_bytes=NODE_MEMORY_BYTES,
    )
    gpus = [device for device in node.devices if device.kind == "gpu"]
    first = max((device.index for device in gpus), default=-1) + 1
    taken = {device.id for device in inventory.devices}
    ids = (f"GPU-new-{number}" for number in range(1, len(taken) + count + 1))
    new = [one for one in ids if one not in taken][:count]
    added = [_device(facts, one, first + at) for at, one in enumerate(new)]
    nodes[name] = msgspec.structs.replace(node, devices=(*gpus, *added))
    return msgspec.structs.replace(inventory, nodes=tuple(nodes.values()))


def _device(facts: GpuFacts, name: str, index: int) -> Device:
    hidden = facts.memory_bytes - facts.cuda_memory_bytes
    generation, width = facts.pcie_generation or 4, facts.pcie_width or 16
    return Device(
        id=name,
        kind="gpu",
        name=f"NVIDIA {facts.name}",
        index=index,
        memory_bytes=facts.memory_bytes,
        memory_free_bytes=facts.memory_bytes - hidden,
        memory_reserved_bytes=hidden,
        compute_capability=facts.compute_capability,
        bandwidth_bytes_per_s=facts.bandwidth_bytes_per_s,
        pcie=Pcie(generation=generation, generation_max=generation, width=width, width_max=width),
        power_limit_w=facts.power_w,
        power_limit_max_w=facts.power_w,
    )


def _remove(inventory: Inventory, name: str) -> Inventory:
    found = [(node, device) for node in inventory.nodes for device in node.devices if device.id == name]
    found = found or [
        (node, device) for node in inventory.nodes for device in node.devices if device.id.startswith(name)
    ]
    if len(found) != 1:
        number = f"{len(found)} devices begin with" if found else "there is no device"
        raise UsageError(f"{number} `{name}`", "sovereign inventory lists the devices")
    node, device = found[0]
    left = msgspec.structs.replace(
        node,
        devices=tuple(one for one in node.devices if one is not device),
        links=tuple(link for link in node.links if device.id not in (link.a, link.b)),
    )
    nodes = tuple(left if one is node else one for one in inventory.nodes)
    return msgspec.structs.replace(inventory, nodes=tuple(one for one in nodes if one.devices))
