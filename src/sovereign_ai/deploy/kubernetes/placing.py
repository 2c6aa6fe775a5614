"""Whether the nodes that pods are pinned to are in the cluster. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from sovereign_ai.render.kubernetes.labels import HOSTNAME, Object

SHOWN = 5
"""Names of nodes in a message."""


def hostnames(nodes: Iterable[Object]) -> frozenset[str]:
    """What `kubernetes.io/hostname` is on each; its name where the label is missing."""
    return frozenset(
        str((one["metadata"].get("labels") or {}).get(HOSTNAME) or one["metadata"]["name"]) for one in nodes
    )


def misplaced(one: Object, names: Collection[str]) -> str:
    """Why no node will ever take the pods of a workload; "" where one may."""
    template = (one.get("spec") or {}).get("template") or {}
    wanted = ((template.get("spec") or {}).get("nodeSelector") or {}).get(HOSTNAME)
    if wanted is None or wanted in names:
        return ""
    shown = ", ".join(sorted(names)[:SHOWN]) or "none"
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (
        f"it is for node `{wanted}`, which the cluster does not have (it has {shown}{more}) → plan from the "
        "cluster's own inventory: sovereign inventory --cluster --save FILE"
    )
