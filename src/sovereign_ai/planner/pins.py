"""Devices that wishes insist on, by UUID or the beginning of one. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from sovereign_ai.errors import ConfigError
from sovereign_ai.planner.wish import Wish
from sovereign_ai.spec import Inventory


def resolve_pins(inventory: Inventory, wishes: Sequence[Wish]) -> dict[str, frozenset[tuple[str, str]]]:
    """(node, device) of the devices that wishes insist on.

    Raises ConfigError for a device that does not exist or is not unique, for devices of two nodes, and for a
    device that two wishes want, unless both want it alone and can share it.
    """
    known = [(node.name, device.id) for node in inventory.nodes for device in node.devices]
    found: dict[str, frozenset[tuple[str, str]]] = {}
    takers: dict[tuple[str, str], Wish] = {}
    for wish in wishes:
        if not wish.devices:
            continue
        keys = frozenset(_resolve(wish, name, known) for name in wish.devices)
        if len({node for node, _ in keys}) > 1:
            raise ConfigError(
                f"{wish.at}the devices of `{wish.name}` are on different nodes",
                "one deployment runs on one node",
            )
        for key in sorted(keys):
            other = takers.setdefault(key, wish)
            if other is not wish and not len(keys) == len(found[other.name]) == 1:
                raise ConfigError(
                    f"{wish.at}`{wish.name}` and `{other.name}` both insist on {key[1]}",
                    "give it to one of them",
                )
        found[wish.name] = keys
    return found


def _resolve(wish: Wish, name: str, known: Sequence[tuple[str, str]]) -> tuple[str, str]:
    exact = [key for key in known if key[1] == name]
    near = exact or [key for key in known if key[1].startswith(name)]
    if len(near) == 1:
        return near[0]
    if not near:
        raise ConfigError(
            f"{wish.at}there is no device `{name}` for `{wish.name}`", "sovereign inventory lists the devices"
        )
    raise ConfigError(f"{wish.at}`{name}` begins the names of {len(near)} devices", "write more of it")
