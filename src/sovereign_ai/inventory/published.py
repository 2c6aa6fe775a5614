"""What a node of a cluster publishes of its cards, and where it stands in the node's object. Pure.

Objects are plain dicts, as JSON has them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from sovereign_ai.errors import InventoryError
from sovereign_ai.spec import Node

DOMAIN = "sovereign.ai"
INVENTORY = f"{DOMAIN}/inventory"
"""Annotation of a node: what its agent measured, as inventory.json has a node."""
MEASURED = f"{DOMAIN}/inventory-measured"
"""Annotation of a node: when that was, RFC 3339 in UTC."""

GPU_DOMAIN = f"gpu.{DOMAIN}"
PLUGIN = "nvidia.com/gpu"
"""The resource that NVIDIA's device plugin counts cards by. Never ours to write."""

MAX_BYTES = 192 * 1024
"""Of the inventory annotation: the API server allows 256 KiB for all annotations of an object together, and
other owners write there too. 16 cards take 16 KiB, their 120 links 12 KiB."""

_TOKEN_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_QUANTITY = re.compile(r"([+-]?\d+(?:\.\d*)?|[+-]?\.\d+)(?:([eE][+-]?\d{1,3})|([KMGTPE]i|[numkMGTPE]?))")


def token(device: str) -> str:
    """The extended resource of one card, of which its node has 1, or 0 while it is lost or sick."""
    return f"{GPU_DOMAIN}/{device}"


def tokens_of(resources: Mapping[str, Any]) -> dict[str, str]:
    """The tokens among a node's capacity or allocatable → what it has of them."""
    return {name: str(value) for name, value in resources.items() if name.startswith(f"{GPU_DOMAIN}/")}


def can_be_token(device: str) -> bool:
    """Whether a device's id may be the name of a resource; no card without a UUID (`lost-1`) has a token."""
    return bool(_TOKEN_NAME.fullmatch(device)) and not device.startswith("lost-")


def quantity(text: str) -> float:
    """A Kubernetes quantity ("3920m", "16Gi", "1e3") as a number. Raises ValueError."""
    found = _QUANTITY.fullmatch(text)
    if not found:
        raise ValueError(f"`{text}` is no quantity")
    number, exponent, suffix = found.groups()
    if exponent:
        return float(number + exponent)
    if suffix in _BINARY:
        return float(number) * (1 << _BINARY[suffix])
    return float(f"{number}e{_DECIMAL[suffix or '']}")


def encode_node(node: Node) -> str:
    """The annotation: the same node gives the same text."""
    return msgspec.json.encode(node, order="deterministic").decode()


def decode_node(text: str) -> Node:
    """Raises InventoryError for what no agent of this version writes."""
    try:
        return msgspec.json.decode(text, type=Node)
    except (msgspec.DecodeError, RecursionError) as error:
        hint = "give the agents and this command the same version"
        raise InventoryError(f"its inventory annotation cannot be read: {error}", hint) from error


def encode_time(moment: float) -> str:
    """Seconds since 1970 as RFC 3339, to the second."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def decode_time(text: str) -> float:
    """Raises ValueError for what is no moment, or has no time zone."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError(f"`{text}` has no time zone")
    return moment.timestamp()


def conflicts(nodes: Iterable[Mapping[str, Any]], sliced: Sequence[str] = ()) -> tuple[str, ...]:
    """Why cards of a node could be handed out twice, one sentence a node; empty where they cannot.

    `nodes` are Node objects, `sliced` the names of those whose cards a DRA driver offers in ResourceSlices.
    """
    found = []
    for node in nodes:
        name = str((node.get("metadata") or {}).get("name", ""))
        others = [why for why in (_plugin(node), _slices(name, sliced)) if why]
        if others and any(value != "0" for value in tokens_of(_capacity(node)).values()):
            found.append(
                f"node {name}: {' and '.join(others)}, and our tokens ({GPU_DOMAIN}/…) stand for the same "
                "cards: two pods could get one card. Keep one of them on a node"
            )
    return tuple(found)


def _plugin(node: Mapping[str, Any]) -> str:
    try:
        count = quantity(str(_capacity(node).get(PLUGIN, "0")))
    except ValueError:
        count = 0.0
    return f"the device plugin hands out {count:g} cards ({PLUGIN})" if count > 0 else ""


def _slices(name: str, sliced: Sequence[str]) -> str:
    return "a DRA driver hands out its cards (ResourceSlices)" if name in sliced else ""


def _capacity(node: Mapping[str, Any]) -> Mapping[str, Any]:
    return (node.get("status") or {}).get("capacity") or {}
