"""Node objects and ResourceSlices of a cluster → its inventory, with what is to be said of it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from sovereign_ai.errors import InventoryError
from sovereign_ai.inventory.checks import problems
from sovereign_ai.inventory.places import spell
from sovereign_ai.inventory.published import (
    GPU_DOMAIN,
    INVENTORY,
    MEASURED,
    conflicts,
    decode_node,
    decode_time,
    quantity,
)
from sovereign_ai.inventory.slices import Sliced, read_slices
from sovereign_ai.spec import Device, Inventory, Node

Capped = TypeVar("Capped", Node, Device)

STALE_S = 300
"""Age of a measurement from which it is told: an agent writes at least every two minutes."""
SILENT_S = 900
"""Age from which the agent counts as gone, and what it measured as no longer known."""

CARD_SIGNS = (
    "nvidia.com/",
    "amd.com/gpu",
    "gpu.intel.com/",
    "feature.node.kubernetes.io/pci-10de",
    f"{GPU_DOMAIN}/",
)
"""How the names of resources and labels begin that device plugins, feature discovery and our agents give."""
PASSING_TAINTS = "node.kubernetes.io/"
"""Kubernetes' own, of nodes that are not ready or cordoned: that is told in words of its own."""


class Gathered(NamedTuple):
    """`ages` are seconds since each node was measured by its agent; nodes from slices have none."""

    inventory: Inventory
    ages: dict[str, float]
    warnings: tuple[str, ...]


class _Found(NamedTuple):
    node: Node | None
    warnings: tuple[str, ...] = ()
    age: float | None = None


def gather(nodes: Sequence[Mapping[str, Any]], slices: Sequence[Mapping[str, Any]], now: float) -> Gathered:
    """The inventory of all nodes that anything is known of, in the order of their names.

    A node that is not ready, or whose agent is silent, keeps its devices, each with the reason as `fault`.
    Where no node tells of any device, those that show no sign of cards count with their CPU, as in a cluster
    that has none and so runs no agents.
    Raises InventoryError where no node tells anything, or together they tell what cannot be.
    """
    sliced = read_slices(slices)
    ordered = {name_of(node): node for node in sorted(nodes, key=name_of)}
    found = {name: _node(node, sliced.get(name), now) for name, node in ordered.items()}
    if not any(one.node for one in found.values()):
        found = {name: _by_its_cpu(node, found[name]) for name, node in ordered.items()}
    found = _without_moved(found)
    inventory = Inventory(nodes=tuple(one.node for one in found.values() if one.node))
    warnings = [f"node {name}: {text}" for name, one in found.items() for text in one.warnings]
    if not inventory.nodes:
        hint = "take it on the node itself: sovereign inventory --save FILE; agents come with the first apply"
        raise InventoryError("; ".join(["no node of the cluster tells its devices", *warnings]), hint)
    for problem in problems(inventory):
        raise InventoryError(f"cluster ({spell(problem.steps)}): {problem.what}", problem.hint)
    ages = {name: one.age for name, one in found.items() if one.age is not None}
    return Gathered(inventory, ages, (*warnings, *conflicts(nodes, tuple(sliced))))


def _without_moved(found: Mapping[str, _Found]) -> dict[str, _Found]:
    """A card in health on one node is left out of others that count as at fault: it was moved, and the node
    that it came from is off or silent since."""
    healthy = {
        device.id: name
        for name, one in found.items()
        for device in (one.node.devices if one.node else ())
        if device.kind == "gpu" and not device.fault
    }
    return {name: _left(name, one, healthy) for name, one in found.items()}


def _left(name: str, found: _Found, healthy: Mapping[str, str]) -> _Found:
    devices = found.node.devices if found.node else ()
    moved = [one for one in devices if one.fault and healthy.get(one.id, name) != name]
    if found.node is None or not moved:
        return found
    kept = tuple(device for device in devices if device not in moved)
    warnings = [f"not counted: {one.id}, which is in health on node {healthy[one.id]}" for one in moved]
    node = msgspec.structs.replace(found.node, devices=kept) if kept else None
    return _Found(node, (*found.warnings, *warnings), found.age)


def name_of(node: Mapping[str, Any]) -> str:
    return str((node.get("metadata") or {}).get("name", ""))


def _node(node: Mapping[str, Any], sliced: Sliced | None, now: float) -> _Found:
    annotations = (node.get("metadata") or {}).get("annotations") or {}
    if INVENTORY in annotations:
        found = _announced(annotations, now)
    elif sliced:
        found = _from_slices(node, sliced)
    else:
        return _Found(None, ("not counted: no agent has measured it, and there are no ResourceSlices",))
    if found.node is None:
        return found
    named = msgspec.structs.replace(_within(found.node, node), name=name_of(node))
    trouble = not_ready(node)
    warnings = [*found.warnings, *([trouble] if trouble else ()), *_cordoned(node)]
    return _Found(_faulty(named, trouble), tuple(warnings), found.age)


def _announced(annotations: Mapping[str, str], now: float) -> _Found:
    try:
        node = decode_node(annotations[INVENTORY])
        age = max(0.0, now - decode_time(annotations.get(MEASURED, "")))
    except InventoryError as error:
        return _Found(None, (f"not counted: {error.message}",))
    except ValueError:
        silent = "its agent does not tell when it measured"
        return _Found(_faulty(node, silent), (silent,))
    if age <= STALE_S:
        return _Found(node, (), age)
    stale = f"its agent measured last {age / 60:.0f} minutes ago"
    return _Found(_faulty(node, f"{stale}: it is silent") if age > SILENT_S else node, (stale,), age)


def _from_slices(node: Mapping[str, Any], sliced: Sliced) -> _Found:
    if sliced.refusal or not sliced.devices:
        return _Found(None, (f"not counted: ResourceSlices: {sliced.refusal or 'no card'}",))
    allocatable = _allocatable(node)
    memory = int(allocatable.get("memory", 0))
    made = Node(
        name=name_of(node),
        devices=sliced.devices,
        cores=max(1, int(allocatable.get("cpu", 1))),
        memory_bytes=memory,
        memory_free_bytes=memory,
        driver_version=sliced.driver_version,
    )
    note = "no agent: from ResourceSlices, which know neither slots and links nor memory that is in use"
    return _Found(made, (note,))


def _by_its_cpu(node: Mapping[str, Any], found: _Found) -> _Found:
    """What the kubelet tells of every node."""
    allocatable = _allocatable(node)
    if INVENTORY in ((node.get("metadata") or {}).get("annotations") or {}) or _shows_cards(node):
        return found
    if not allocatable or _is_tainted(node):
        return found
    memory, cores = int(allocatable.get("memory", 0)), max(1, int(allocatable.get("cpu", 1)))
    name = str(((node.get("status") or {}).get("nodeInfo") or {}).get("architecture") or "CPU")
    cpu = Device(id="cpu", kind="cpu", name=name, memory_bytes=memory, memory_free_bytes=memory, cores=cores)
    made = Node(
        name=name_of(node), devices=(cpu,), cores=cores, memory_bytes=memory, memory_free_bytes=memory
    )
    trouble = not_ready(node)
    note = (
        "no agent: counted with its CPU alone, of which the kubelet tells; has it cards, run the agent on it"
    )
    warnings = [note, *([trouble] if trouble else ()), *_cordoned(node)]
    return _Found(_faulty(made, trouble), tuple(warnings))


def _shows_cards(node: Mapping[str, Any]) -> bool:
    offered = (node.get("status") or {}).get("capacity") or {}
    labels = (node.get("metadata") or {}).get("labels") or {}
    return any(name.startswith(CARD_SIGNS) for name in (*offered, *labels))


def _is_tainted(node: Mapping[str, Any]) -> bool:
    """As nodes of a control plane are: no pod of ours is put there."""
    taints = (node.get("spec") or {}).get("taints") or ()
    return any(
        taint.get("effect") in ("NoSchedule", "NoExecute")
        and not str(taint.get("key")).startswith(PASSING_TAINTS)
        for taint in taints
    )


def _within(found: Node, node: Mapping[str, Any]) -> Node:
    """Pods get no more of a node than is allocatable."""
    allocatable = _allocatable(node)
    cores, memory = allocatable.get("cpu", found.cores), allocatable.get("memory", found.memory_bytes)

    def capped(one: Capped) -> Capped:
        return msgspec.structs.replace(
            one,
            cores=max(1, min(one.cores, int(cores))),
            memory_bytes=min(one.memory_bytes, int(memory)),
            memory_free_bytes=min(one.memory_free_bytes, int(memory)),
        )

    devices = tuple(capped(one) if one.kind == "cpu" else one for one in found.devices)
    return msgspec.structs.replace(capped(found), devices=devices)


def _allocatable(node: Mapping[str, Any]) -> dict[str, float]:
    given = (node.get("status") or {}).get("allocatable") or {}
    return {name: quantity(str(given[name])) for name in ("cpu", "memory") if name in given}


def not_ready(node: Mapping[str, Any]) -> str:
    """Why no pod can run there now; "" where the kubelet says that one can."""
    conditions = (node.get("status") or {}).get("conditions") or ()
    ready = next((one for one in conditions if one.get("type") == "Ready"), None)
    if ready is None:
        return "the node is not ready: no kubelet has reported"
    if ready.get("status") == "True":
        return ""
    return f"the node is not ready: {ready.get('message') or ready.get('reason') or 'unknown'}"


def _cordoned(node: Mapping[str, Any]) -> Iterator[str]:
    if (node.get("spec") or {}).get("unschedulable"):
        yield "it is cordoned: pods that are there stay, no new one is started"


def _faulty(node: Node, trouble: str) -> Node:
    """Every device at fault for `trouble`, where there is one; a device's own fault stays."""
    if not trouble:
        return node
    devices = (
        msgspec.structs.replace(one, fault="; ".join(filter(None, (one.fault, trouble))))
        for one in node.devices
    )
    return msgspec.structs.replace(node, devices=tuple(devices))
