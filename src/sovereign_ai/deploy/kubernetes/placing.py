"""Whether the nodes that pods are pinned to are in the cluster, and whose the cards there are. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from sovereign_ai.inventory.published import GPU_DOMAIN, PLUGIN
from sovereign_ai.render.kubernetes.labels import HOSTNAME, Object

SHOWN = 5
"""Names of nodes in a message."""

Nodes = Mapping[str, Object]
"""By what `kubernetes.io/hostname` is on each."""


def by_hostname(nodes: Iterable[Object]) -> Nodes:
    """A node's name is its host name where the label is missing."""
    return {
        str((one["metadata"].get("labels") or {}).get(HOSTNAME) or one["metadata"]["name"]): one
        for one in nodes
    }


def misplaced(one: Object, nodes: Nodes) -> str:
    """Why the pods of a workload may not be put where they are meant for; "" where they may."""
    spec = ((one.get("spec") or {}).get("template") or {}).get("spec") or {}
    wanted = (spec.get("nodeSelector") or {}).get(HOSTNAME)
    if wanted is None:
        return ""
    if wanted not in nodes:
        return _missing(wanted, nodes)
    count = ((nodes[wanted].get("status") or {}).get("capacity") or {}).get(PLUGIN, "0")
    if str(count) != "0" and (how := next(_ours(spec), "")):
        return _given_twice(wanted, f"{count} {PLUGIN}", how)
    return ""


def _given_twice(node: str, offered: str, how: str) -> str:
    away = f"kubectl label node {node} nvidia.com/gpu.deploy.device-plugin=false"
    return (
        f"the device plugin offers {offered} on node `{node}` beside our {how}: the same cards would go out "
        f"twice → keep its DaemonSet away from the node ({away}), or leave the cards to it "
        "(kubernetes.pinning: device-plugin)"
    )


def _missing(wanted: str, nodes: Nodes) -> str:
    shown = ", ".join(sorted(nodes)[:SHOWN]) or "none"
    more = f" and {len(nodes) - SHOWN} more" if len(nodes) > SHOWN else ""
    return (
        f"it is for node `{wanted}`, which the cluster does not have (it has {shown}{more}) → plan from the "
        "cluster's own inventory: sovereign inventory --cluster --save FILE"
    )


def _ours(spec: Object) -> Iterator[str]:
    """By what else than the device plugin the pods get cards."""
    for container in spec.get("containers") or ():
        resources = container.get("resources") or {}
        if any(name.startswith(f"{GPU_DOMAIN}/") for name in resources.get("limits") or {}):
            yield "tokens"
        if resources.get("claims"):
            yield "claims"
