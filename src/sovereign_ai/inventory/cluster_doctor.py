"""Is the cluster fit for the stack: one answer a question, with what was seen and what to do. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date

from sovereign_ai.inventory.cluster_cards import CARD_CHECKS
from sovereign_ai.inventory.cluster_case import ClusterCase, ClusterDemand
from sovereign_ai.inventory.cluster_facts import Cluster
from sovereign_ai.inventory.cluster_storage import STORAGE_CHECKS
from sovereign_ai.inventory.findings import Check, Finding, Seen, ask, fault, ok, skipped, warning

__all__ = ["CLUSTER_CHECKS", "ClusterDemand", "examine_cluster"]

END_OF_LIFE = {
    "1.31": date(2025, 11, 11),
    "1.32": date(2026, 2, 28),
    "1.33": date(2026, 6, 28),
    "1.34": date(2026, 10, 27),
    "1.35": date(2027, 2, 28),
    "1.36": date(2027, 6, 28),
    "1.37": date(2027, 10, 28),
}
"""https://kubernetes.io/releases"""

TOLERATED = re.compile(r"nvidia\.com/gpu(=[^:]*)?:NoSchedule|.*:PreferNoSchedule")
"""Taints that our pods bear."""
TOLD = re.compile(r"node\.kubernetes\.io/(unschedulable|not-ready|unreachable):.*")
"""Taints that say what the node's state says."""
PRESSURE = re.compile(r"node\.kubernetes\.io/.*-pressure:.*")
"""Taints that the kubelet takes off by itself."""
MOST_MESSAGES = 3


def _api(case: ClusterCase) -> Iterator[Seen]:
    if case.cluster.problem:
        fix = "kubectl cluster-info; KUBECONFIG or ~/.kube/config must lead to the cluster"
        yield fault(case.cluster.problem, fix)
    else:
        yield ok(f"Kubernetes {case.cluster.version or 'of an unknown version'} answers")


def _minor(case: ClusterCase) -> str:
    found = re.match(r"v?(\d+\.\d+)", case.cluster.version)
    return found[1] if found else ""


def _numbers(minor: str) -> tuple[int, ...]:
    return tuple(map(int, minor.split(".")))


def _version(case: ClusterCase) -> Iterator[Seen]:
    there, wanted = _minor(case), case.demand.settings.version
    if reason := case.unknown("version"):
        yield skipped(reason)
    elif there != wanted:
        what = f"the cluster is {there or 'of an unknown version'}, manifests are made for {wanted}"
        # a newer one takes what is made for an older; an older one may lack what is used
        is_newer = bool(there) and _numbers(there) > _numbers(wanted)
        fix = f'kubernetes.version: "{there or wanted}" in factory.yaml, then render anew'
        yield (warning if is_newer else fault)(what, fix)
    else:
        yield ok(f"{there}, as manifests are made for")


def _end_of_life(case: ClusterCase) -> Iterator[Seen]:
    there = _minor(case)
    end = END_OF_LIFE.get(there)
    if reason := case.unknown("version"):
        yield skipped(reason)
    elif end is None:
        yield skipped(f"the end of {there or 'an unknown version'} is not known here")
    elif end < case.demand.today:
        what = f"{there} gets no fixes since {end}"
        yield warning(what, "go up one minor version at a time: kubeadm upgrade plan")
    else:
        yield ok(f"{there} gets fixes until {end}")


def _ready(case: ClusterCase) -> Iterator[Seen]:
    nodes = case.cluster.nodes or ()
    if reason := case.unknown("nodes"):
        yield skipped(reason)
        return
    for name in case.demand.cards:
        if name not in {node.name for node in nodes}:
            what = f"the plan has it, the cluster has {', '.join(node.name for node in nodes) or 'no node'}"
            yield fault(what, "name the node as kubectl get nodes does: the inventory's name", name)
    for node in nodes:
        if not node.ready:
            yield fault(
                "is not ready", f"kubectl describe node {node.name}; journalctl -u kubelet", node.name
            )
        elif node.cordoned:
            yield warning("takes no new pods", f"kubectl uncordon {node.name}", node.name)
        else:
            yield ok("ready", node.name)
    if not nodes:
        yield fault("the cluster has no node", "kubeadm join, or k3s agent")


def _taints(case: ClusterCase) -> Iterator[Seen]:
    if reason := case.unknown("nodes"):
        yield skipped(reason)
        return
    found = [
        (node, taint)
        for node in case.ours
        for taint in node.taints
        if not TOLERATED.fullmatch(taint) and not TOLD.fullmatch(taint)
    ]
    for node, taint in found:
        what = f"{taint}: pods of the stack do not bear it and stay Pending"
        fix = f"kubectl taint node {node.name} {taint}-"
        yield fault(
            what, "free what is short: it goes by itself" if PRESSURE.match(taint) else fix, node.name
        )
    if not found:
        yield ok("none that keeps the stack's pods away")


def _sandboxes(case: ClusterCase) -> Iterator[Seen]:
    messages = case.cluster.sandbox_failures or ()
    if reason := case.unknown("events"):
        yield skipped(reason)
        return
    for message in messages[:MOST_MESSAGES]:
        if re.search(r"no runtime for .+ is configured", message):
            fix = "nvidia-ctk runtime configure --runtime=containerd on its node, then restart containerd"
            yield fault(f"containerd does not know the runtime: {message}", fix)
        else:
            yield warning(message, "journalctl -u containerd on its node")
    if not messages:
        yield ok("no failed sandbox among the namespace's events")


LEVELS_WITHOUT_HOST_PATH = ("baseline", "restricted")
ENFORCE = "pod-security.kubernetes.io/enforce"


def _pod_security(case: ClusterCase) -> Iterator[Seen]:
    labels, settings = case.cluster.namespace, case.demand.settings
    level = (labels or {}).get(ENFORCE, "")
    if reason := case.unknown("namespaces"):
        yield skipped(reason)
    elif labels is None:
        yield skipped(f"there is no namespace {settings.namespace} yet: apply makes it")
    elif settings.storage.kind == "hostPath" and level in LEVELS_WITHOUT_HOST_PATH:
        what = f"{settings.namespace} enforces {level}, which refuses hostPath volumes"
        fix = (
            f"storage.kind: local; or kubectl label ns {settings.namespace} {ENFORCE}=privileged --overwrite"
        )
        yield fault(what, fix)
    else:
        passes = f"{settings.storage.kind} volumes pass"
        yield ok(f"{level} is enforced, {passes}" if level else f"no level is enforced, {passes}")


def _rights(case: ClusterCase) -> Iterator[Seen]:
    denied = case.cluster.denied or ()
    if reason := case.unknown("rights"):
        yield skipped(reason)
    elif denied:
        what = ", ".join(sorted({f"{one.verb} {one.resource}" for one in denied}))
        who = "kubectl create clusterrolebinding sovereign-apply --clusterrole=cluster-admin --user=YOU"
        yield fault(f"this user may not {what}", f"{who}, or a role with just these")
    else:
        yield ok("this user may do everything that apply does")


def _network_policies(case: ClusterCase) -> Iterator[Seen]:
    """No API tells whether the network plugin enforces them: flannel alone takes them and does nothing."""
    if reason := case.unknown():
        yield skipped(reason)
    else:
        namespace = case.demand.settings.namespace
        image = case.demand.settings.control_image
        test = f"kubectl -n default run probe --rm -it --restart=Never --image={image}"
        script = "import urllib.request as r; r.urlopen('http://ENGINE.%s:8000/v2/health/live', timeout=5)"
        fix = f'{test} -- python3 -c "{script % namespace}": it must time out, not answer'
        yield Seen("skipped", "whether the network enforces them cannot be asked, only tried", fix)


def _dns(case: ClusterCase) -> Iterator[Seen]:
    pods = case.cluster.dns or ()
    ready = [pod for pod in pods if pod.ready]
    if reason := case.unknown("pods"):
        yield skipped(reason)
    elif not pods:
        what = "no pod with k8s-app=kube-dns in kube-system"
        yield warning(what, "fine where DNS is called otherwise; else kubeadm init phase addon coredns")
    elif not ready:
        fix = "kubectl -n kube-system logs -l k8s-app=kube-dns: a loop means that the node resolves to itself"
        yield fault(f"none of {len(pods)} pods is ready: the gateway finds no engine", fix)
    else:
        yield ok(f"{len(ready)} of {len(pods)} pods are ready")


CLUSTER_CHECKS: tuple[Check[ClusterCase], ...] = (
    Check("API server", _api),
    Check("Kubernetes version", _version),
    Check("end of life", _end_of_life),
    Check("rights", _rights),
    Check("nodes", _ready),
    Check("taints", _taints),
    *CARD_CHECKS,
    Check("sandboxes", _sandboxes),
    Check("Pod Security", _pod_security),
    *STORAGE_CHECKS,
    Check("cluster DNS", _dns),
    Check("network policies", _network_policies),
)
"""In the order of what a person should mend first."""


def examine_cluster(cluster: Cluster, demand: ClusterDemand) -> tuple[Finding, ...]:
    """At least one finding a check: what does not apply here is skipped, with the reason."""
    return ask(CLUSTER_CHECKS, ClusterCase(cluster, demand))
