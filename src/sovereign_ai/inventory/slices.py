"""ResourceSlices of NVIDIA's DRA driver → devices. Pure: objects are plain dicts, as JSON has them.

The three versions that are served from 1.32 to 1.37 differ in one thing that matters here: v1beta1 has a
device's attributes one level deeper, under `basic`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from sovereign_ai.inventory.published import quantity
from sovereign_ai.spec import Device

DRIVER = "gpu.nvidia.com"
PCI_ADDRESS = "resource.kubernetes.io/pciBusID"
SERVED_VERSIONS = ("v1", "v1beta2", "v1beta1")
"""Of resource.k8s.io, the best one first."""


class Sliced(NamedTuple):
    """What slices tell of one node: its cards in PCI order, or why they cannot be believed."""

    devices: tuple[Device, ...]
    driver_version: str | None = None
    refusal: str = ""


def read_slices(slices: Sequence[Mapping[str, Any]]) -> dict[str, Sliced]:
    """Node → what it has. Slices of other drivers, and those of no single node, are left out."""
    pools: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for one in slices:
        spec = one.get("spec") or {}
        if spec.get("driver") == DRIVER and spec.get("nodeName"):
            pools[spec["nodeName"], str((spec.get("pool") or {}).get("name", ""))].append(spec)
    nodes: dict[str, list[Sliced]] = defaultdict(list)
    for (node, pool), specs in sorted(pools.items()):
        nodes[node].append(_pool(pool, specs))
    return {node: _joined(found) for node, found in nodes.items()}


def _joined(pools: Sequence[Sliced]) -> Sliced:
    devices = sorted((one for pool in pools for one in pool.devices), key=lambda one: one.pci_address or "")
    numbered = tuple(msgspec.structs.replace(one, index=at) for at, one in enumerate(devices))
    version = next((pool.driver_version for pool in pools if pool.driver_version), None)
    return Sliced(numbered, version, "; ".join(pool.refusal for pool in pools if pool.refusal))


def _pool(name: str, specs: Sequence[Mapping[str, Any]]) -> Sliced:
    """Only the newest generation counts, and only once all of its slices are there: while a driver rewrites
    a pool, cards are in none of them or in two."""
    newest = max(_number(spec["pool"].get("generation")) for spec in specs)
    current = [spec for spec in specs if _number(spec["pool"].get("generation")) == newest]
    wanted = _number(current[0]["pool"].get("resourceSliceCount"))
    if len(current) != wanted:
        return Sliced((), None, f"pool `{name}`: {len(current)} of {wanted} slices of generation {newest}")
    offered = [device for spec in current for device in spec.get("devices") or ()]
    read = [_device(device) for device in offered if _text(_facts(device), "type") in ("", "gpu")]
    refusals = [one for one in read if isinstance(one, str)]
    versions = [_text(_facts(device), "driverVersion") for device in offered]
    version = next((found for found in versions if found), None)
    return Sliced(
        () if refusals else tuple(one for one in read if isinstance(one, Device)),
        version,
        f"pool `{name}`: {'; '.join(refusals)}" if refusals else "",
    )


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _device(device: Mapping[str, Any]) -> Device | str:
    """The card, or what it lacks."""
    facts, name = _facts(device), str(device.get("name", ""))
    uuid, memory = _text(facts, "uuid"), _memory(device)
    if not uuid or not memory:
        return f"device `{name}` tells no {'memory' if uuid else 'UUID'}"
    return Device(
        id=uuid,
        kind="gpu",
        name=_text(facts, "productName") or name,
        memory_bytes=memory,
        memory_free_bytes=memory,
        compute_capability=_capability(_text(facts, "cudaComputeCapability")),
        pci_address=_text(facts, PCI_ADDRESS) or None,
        fault=_fault(device),
    )


def _basic(device: Mapping[str, Any]) -> Mapping[str, Any]:
    return device.get("basic") or device


def _facts(device: Mapping[str, Any]) -> Mapping[str, Any]:
    return _basic(device).get("attributes") or {}


def _text(attributes: Mapping[str, Any], name: str) -> str:
    """An attribute's value: a driver may spell its own with its domain in front or without."""
    value = attributes.get(name) or attributes.get(f"{DRIVER}/{name}") or {}
    return str(value.get("string") or value.get("version") or "")


def _memory(device: Mapping[str, Any]) -> int:
    """Bytes; 0 where it is not told. v1 has `{value: 10Gi}`, the first alpha had the bare quantity."""
    capacity = _basic(device).get("capacity") or {}
    found = capacity.get("memory") or capacity.get(f"{DRIVER}/memory") or "0"
    try:
        return int(quantity(str(found.get("value", "0") if isinstance(found, Mapping) else found)))
    except ValueError:
        return 0


def _capability(version: str) -> str | None:
    """`8.6.0`, as a semantic version has to be written, → `8.6`."""
    parts = version.split(".")
    return ".".join(parts[:2]) if len(parts) >= 2 and all(part.isdecimal() for part in parts[:2]) else None


def _fault(device: Mapping[str, Any]) -> str:
    """A taint that keeps pods away is what a driver says of a card that it found unhealthy."""
    taints = [taint for taint in _basic(device).get("taints") or () if taint.get("effect") != "None"]
    return "; ".join(f"tainted: {taint.get('key', '')}={taint.get('value') or ''}" for taint in taints)
