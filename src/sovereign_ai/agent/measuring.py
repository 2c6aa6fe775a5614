"""One measurement of this node: what there is, and how it is now."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from sovereign_ai.errors import InventoryError
from sovereign_ai.inventory import take_inventory
from sovereign_ai.inventory.nvml import CardState, read_states
from sovereign_ai.spec import Node


class Reading(NamedTuple):
    """`trouble`: why the driver cannot answer for itself; then `node` has only its `cpu`."""

    node: Node
    states: tuple[CardState, ...] = ()
    trouble: str = ""


def measure(name: str) -> Reading:
    """The whole machine under its name in the cluster: the pod's own limits and host name are not the node's.

    NVML is opened and closed again each time, so that a card that is gone is seen to be gone, and nothing
    stands in the way of a card's reset. Raises InventoryError where /proc cannot be read.
    """
    try:
        found, states, trouble = take_inventory(whole=True), read_states(), ""
    except InventoryError as error:
        found, states, trouble = take_inventory(cpu_only=True, whole=True), (), error.message
    return Reading(msgspec.structs.replace(found.nodes[0], name=name), states, trouble)
