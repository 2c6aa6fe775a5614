"""How the cluster hands out cards: runtime class, tokens, device plugin, claims; and the memory beside them.
Pure."""

from __future__ import annotations

from collections.abc import Iterator

from sovereign_ai.inventory.cluster_case import DEVICE_PLUGIN, ClusterCase
from sovereign_ai.inventory.cluster_facts import ClusterNode, Slice
from sovereign_ai.inventory.findings import Check, Seen, fault, gib, ok, skipped, warning

DRA_DRIVER = DRA_CLASS = "gpu.nvidia.com"
OWN_RUNTIME_CLASS, HANDLER = "sovereign-nvidia", "nvidia"
"""What apply makes where factory.yaml names none, and the handler that it names."""


def _runtime_class(case: ClusterCase) -> Iterator[Seen]:
    classes, wanted = case.cluster.runtime_classes or {}, case.demand.runtime_class
    if reason := case.unknown("runtimeclasses", "nodes"):
        yield skipped(reason)
    elif case.demand.pinning == "dra" and not case.demand.settings.agent:
        yield skipped("pods get their cards by DRA: no runtime class is needed")
    elif wanted not in classes and wanted != OWN_RUNTIME_CLASS:
        what = f"there is no RuntimeClass {wanted}: the API server refuses every pod that names it"
        yield fault(what, f"kubernetes.runtime_class: one of {', '.join(classes) or 'none'}, or leave it out")
    else:
        yield from _handlers(case, classes.get(wanted, HANDLER), wanted in classes)


def _handlers(case: ClusterCase, handler: str, made: bool) -> Iterator[Seen]:
    lacking = [node for node in case.ours if node.handlers is not None and handler not in node.handlers]
    for node in lacking:
        there = ", ".join(filter(None, node.handlers or ())) or "its default only"
        what = f"its runtime has no handler {handler} ({there})"
        yield fault(what, "nvidia-ctk runtime configure --runtime=containerd, restart containerd", node.name)
    silent = [node.name for node in case.ours if node.handlers is None]
    if not lacking and silent:
        yield skipped(f"{', '.join(silent)} does not tell which handlers its runtime has")
    elif not lacking:
        yield ok(f"{handler}, which its nodes have" + ("" if made else "; apply makes the RuntimeClass"))


def _device_plugin(case: ClusterCase) -> Iterator[Seen]:
    """Two hands that give out the same cards: the scheduler sees neither's work in the other."""
    if reason := case.unknown("nodes"):
        yield skipped(reason)
        return
    pinning, found = case.demand.pinning, False
    for node in case.ours:
        count, ours = node.extended.get(DEVICE_PLUGIN, 0), case.tokens(node)
        claims = [
            one for one in case.cluster.slices or () if one.node == node.name and one.driver == DRA_DRIVER
        ]
        if count and (ours or claims or pinning in ("tokens", "dra")):
            found = True
            other = "tokens" if ours else "claims" if claims else pinning
            what = f"the device plugin offers {count} {DEVICE_PLUGIN} beside {other}: cards go out twice"
            label = f"kubectl label node {node.name} nvidia.com/gpu.deploy.device-plugin=false"
            fix = f"keep its DaemonSet away: {label}"
            yield fault(what, fix, node.name)
        elif not count and pinning == "device-plugin":
            found = True
            yield fault(f"offers no {DEVICE_PLUGIN}", "install NVIDIA's device plugin on it", node.name)
    if not found:
        yield ok("nothing else hands out the same cards")


def _tokens(case: ClusterCase) -> Iterator[Seen]:
    if reason := case.unknown("nodes"):
        yield skipped(reason)
    elif case.demand.pinning != "tokens":
        yield skipped(f"pinning is {case.demand.pinning}")
    else:
        for node in case.ours:
            yield _tokens_of(case, node)
        if not case.ours:
            yield skipped("the cluster has no node")


def _tokens_of(case: ClusterCase, node: ClusterNode) -> Seen:
    tokens = {card for card, count in case.tokens(node).items() if count}
    agent = f"kubectl -n {case.demand.settings.namespace} rollout restart daemonset sovereign-agent"
    if node.cards is None:
        what = "no agent has measured it: its cards cannot be asked for"
        return warning(what, "apply starts the agent (kubernetes.agent: true)", node.name)
    unknown = set(case.demand.cards.get(node.name, ())) - set(node.cards) - {"cpu"}
    if unknown:
        what = f"the plan uses {', '.join(sorted(unknown))}, which its agent does not find in health"
        return fault(what, "take the inventory of this node again and plan anew", node.name)
    if lacking := set(node.cards) - tokens:
        what = f"no token for {', '.join(sorted(lacking))}: the kubelet zeroes them when it starts anew"
        return fault(what, agent, node.name)
    if stray := tokens - set(node.cards):
        what = f"a token for {', '.join(sorted(stray))}, which its agent does not find in health"
        return fault(what, agent, node.name)
    return ok(f"{len(tokens)} tokens, as its agent measured", node.name)


def _no_claims(case: ClusterCase, kind: str) -> str:
    return case.unknown(kind) or ("" if case.demand.pinning == "dra" else f"pinning is {case.demand.pinning}")


def _device_class(case: ClusterCase) -> Iterator[Seen]:
    if reason := _no_claims(case, "deviceclasses"):
        yield skipped(reason)
    elif case.cluster.device_classes is None:
        what = "the API has no resource.k8s.io/v1"
        yield fault(what, "it comes with Kubernetes 1.34; use pinning: tokens below")
    elif DRA_CLASS not in case.cluster.device_classes:
        yield fault(f"there is no DeviceClass {DRA_CLASS}", "install NVIDIA's DRA driver for GPUs")
    else:
        yield ok(DRA_CLASS)


def _slices(case: ClusterCase) -> Iterator[Seen]:
    if reason := _no_claims(case, "resourceslices"):
        yield skipped(reason)
        return
    if case.cluster.slices is None:
        yield skipped("the API has no resource.k8s.io/v1")
        return
    for node in case.ours:
        current = _current([one for one in case.cluster.slices if one.node == node.name])
        cards = {card for one in current for card in one.cards}
        wanted = set(case.demand.cards.get(node.name, node.cards or ())) - {"cpu"}
        if not current or any(len(_of(current, one.pool)) < one.pool_slices for one in current):
            what = "its slices are not there, or not complete: the scheduler takes none of its cards"
            yield fault(what, "kubectl get resourceslices; look at the DRA driver's pod on it", node.name)
        elif lacking := wanted - cards:
            what = f"its slices lack {', '.join(sorted(lacking))}"
            yield fault(what, "restart the DRA driver's pod on it; sovereign doctor there", node.name)
        else:
            yield ok(f"{len(cards)} cards in {len(current)} slices", node.name)
    if not case.ours:
        yield skipped("the cluster has no node")


def _current(slices: list[Slice]) -> list[Slice]:
    """Of NVIDIA's driver, and of each pool's newest generation: older ones are being replaced."""
    ours = [one for one in slices if one.driver == DRA_DRIVER]
    newest = {one.pool: max(other.generation for other in _of(ours, one.pool)) for one in ours}
    return [one for one in ours if one.generation == newest[one.pool]]


def _of(slices: list[Slice], pool: str) -> list[Slice]:
    return [one for one in slices if one.pool == pool]


def _memory(case: ClusterCase) -> Iterator[Seen]:
    if reason := case.unknown("nodes"):
        yield skipped(reason)
    elif not case.demand.limits_bytes:
        yield skipped("no plan is given: --plan FILE")
    else:
        there = {node.name: node.memory_bytes for node in case.cluster.nodes or ()}
        for name, need in case.demand.limits_bytes.items():
            if name not in there:
                yield skipped(f"{name} is not a node of the cluster")
            elif need > there[name]:
                what = (
                    f"limits of the plan's pods are {gib(need)} together, {gib(there[name])} are allocatable"
                )
                fix = "lower kubernetes.shared_memory_gib, or plan fewer groups: pods may be killed otherwise"
                yield fault(what, fix, name)
            else:
                yield ok(f"{gib(need)} for the plan's pods", name)


CARD_CHECKS: tuple[Check[ClusterCase], ...] = (
    Check("runtime class", _runtime_class),
    Check("device plugin", _device_plugin),
    Check("tokens", _tokens),
    Check("device class", _device_class),
    Check("resource slices", _slices),
    Check("memory of nodes", _memory),
)
