"""What our agents leave on the nodes of a cluster: the inventory in annotations, and tokens."""

from __future__ import annotations

from sovereign_ai.deploy.kubernetes.applying import Tell
from sovereign_ai.deploy.kubernetes.connection import FORBIDDEN
from sovereign_ai.deploy.kubernetes.door import Door
from sovereign_ai.deploy.kubernetes.kinds import NODE, name_of
from sovereign_ai.errors import ClusterRefused
from sovereign_ai.inventory.published import INVENTORY, MEASURED, tokens_of
from sovereign_ai.render.kubernetes.labels import Object


def annotations_of(node: Object) -> list[str]:
    return [name for name in (INVENTORY, MEASURED) if name in (node["metadata"].get("annotations") or {})]


def tokens_on(node: Object) -> list[str]:
    status = node.get("status") or {}
    return sorted({name for key in ("capacity", "allocatable") for name in tokens_of(status.get(key) or {})})


def erase(door: Door, tell: Tell) -> None:
    """From all nodes, when no agent runs any more: a node that nobody measures tells of nothing."""
    try:
        nodes, _ = door.listed(NODE, "", {})
        for node in nodes:
            _erase(door, node, tell)
    except ClusterRefused as error:
        if error.code != FORBIDDEN:
            raise
        tell(f"what agents wrote on nodes stays, since it may not be taken away ({error.message})")


def _erase(door: Door, node: Object, tell: Tell) -> None:
    """A merge patch takes away what it gives as null."""
    name, annotations, tokens = name_of(node), annotations_of(node), tokens_on(node)
    if annotations:
        door.merge(NODE, "", name, {"metadata": {"annotations": dict.fromkeys(annotations)}})
    if tokens:
        gone = dict.fromkeys(tokens)
        door.merge(NODE, "", name, {"status": {"capacity": gone, "allocatable": gone}}, below="/status")
    if annotations or tokens:
        tell(f"cleaned Node/{name}: what its agent told of it, {len(tokens)} tokens")
