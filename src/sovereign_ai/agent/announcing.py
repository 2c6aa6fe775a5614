"""What the node's object has to say, and whether it does already. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from sovereign_ai.agent.knowledge import lasting
from sovereign_ai.errors import InventoryError
from sovereign_ai.inventory.published import (
    INVENTORY,
    MAX_BYTES,
    MEASURED,
    conflicts,
    decode_node,
    decode_time,
    encode_node,
    encode_time,
)
from sovereign_ai.spec import Node

REFRESH_S = 120
"""How old the annotation may get while nothing lasting changes: free memory is that old at most, and a
reader takes an agent for silent long after. Each write goes to every watcher of nodes."""


def announced(annotations: Mapping[str, str]) -> Node | None:
    """The node as an agent wrote it last; None where none did, or in words of another version."""
    try:
        return decode_node(annotations[INVENTORY])
    except (KeyError, InventoryError):
        return None


def announcement(node: Node, annotations: Mapping[str, str], now: float) -> dict[str, str]:
    """The annotations to write at `now`; empty while those that are there will do.

    Raises InventoryError for a node that is too large, even without the links between its cards.
    """
    there = announced(annotations)
    if there is not None and lasting(there) == lasting(node) and _fresh(annotations, now):
        return {}
    return {INVENTORY: _text(node), MEASURED: encode_time(now)}


def _fresh(annotations: Mapping[str, str], now: float) -> bool:
    try:
        return 0 <= now - decode_time(annotations[MEASURED]) < REFRESH_S
    except (KeyError, ValueError):
        return False


def _text(node: Node) -> str:
    whole = encode_node(node)
    text = whole if _fits(whole) else encode_node(msgspec.structs.replace(node, links=()))
    if not _fits(text):
        raise InventoryError(f"the inventory takes more than the {MAX_BYTES} bytes of an annotation")
    return text


def _fits(text: str) -> bool:
    return len(text.encode()) <= MAX_BYTES


def handed_out_twice(name: str, capacity: Mapping[str, str], tokens: Mapping[str, str]) -> str:
    """Why cards of this node could be handed out twice with these tokens; "" where they cannot."""
    after = {"metadata": {"name": name}, "status": {"capacity": {**capacity, **tokens}}}
    return "; ".join(conflicts([after]))
