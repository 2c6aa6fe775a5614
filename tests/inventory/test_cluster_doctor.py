"""One cluster at fault for every check: what is seen, and what to do. Pure: facts are made up here."""

from __future__ import annotations

from datetime import date
from typing import Any, TypeVar

import msgspec
import pytest

from sovereign_ai.config import ClusterSettings, ClusterStorage
from sovereign_ai.inventory.cluster_doctor import CLUSTER_CHECKS, ClusterDemand, examine_cluster
from sovereign_ai.inventory.cluster_facts import (
    Claim,
    Cluster,
    ClusterNode,
    DnsPod,
    Right,
    Slice,
    Volume,
    rights,
)
from sovereign_ai.inventory.findings import Finding
from tests.inventory.fakes import GIB

Facts = TypeVar("Facts", bound=msgspec.Struct)

IMAGES = ("nvcr.io/nvidia/tritonserver:24.12-vllm-python-py3", "localhost/sovereign-ai:0.1.0")
NODE = ClusterNode(
    name="rig",
    taints=("nvidia.com/gpu:NoSchedule",),
    memory_bytes=60 * GIB,
    extended={"gpu.sovereign.ai/GPU-1": 1, "gpu.sovereign.ai/GPU-2": 1},
    handlers=("", "runc", "nvidia"),
    images=IMAGES,
    images_listed=2,
    cards=("GPU-1", "GPU-2"),
)
CLAIM = Claim(name="weights-rig", phase="Bound", storage_class="sovereign-local")
CLUSTER = Cluster(
    version="v1.36.2",
    nodes=(NODE, ClusterNode(name="plain", handlers=("",))),
    runtime_classes={"sovereign-nvidia": "nvidia"},
    namespace={"pod-security.kubernetes.io/enforce": "restricted"},
    device_classes=("gpu.nvidia.com",),
    slices=(),
    storage_classes=("sovereign-local",),
    claims=(CLAIM,),
    volumes=(Volume(name="sovereign-weights-rig", phase="Bound", claim="weights-rig"),),
    sandbox_failures=(),
    dns=(DnsPod(name="coredns-1", ready=True), DnsPod(name="coredns-2", ready=False)),
    denied=(),
)
DEMAND = ClusterDemand(
    settings=ClusterSettings(version="1.36"),
    pinning="tokens",
    runtime_class="sovereign-nvidia",
    token_domain="gpu.sovereign.ai",
    today=date(2026, 11, 25),
    images=IMAGES,
    cards={"rig": ("GPU-1", "GPU-2")},
    limits_bytes={"rig": 48 * GIB},
)
SLICE = Slice(
    driver="gpu.nvidia.com", node="rig", pool="rig", generation=2, pool_slices=1, cards=("GPU-1", "GPU-2")
)
WITHOUT_TOKENS = msgspec.structs.replace(NODE, extended={})
DRA = msgspec.structs.replace(DEMAND, pinning="dra", settings=ClusterSettings(version="1.36", agent=False))


def changed(facts: Facts, **changes: Any) -> Facts:
    return msgspec.structs.replace(facts, **changes)


def cluster(**facts: Any) -> Cluster:
    return changed(CLUSTER, **facts)


def node(**facts: Any) -> Cluster:
    return cluster(nodes=(changed(NODE, **facts),))


def claimed(*slices: Slice, **facts: Any) -> Cluster:
    """A cluster whose cards are claimed."""
    return cluster(nodes=(WITHOUT_TOKENS,), slices=slices, **facts)


def demand(**wishes: Any) -> ClusterDemand:
    return changed(DEMAND, **wishes)


def settings(**wishes: Any) -> ClusterDemand:
    return demand(settings=ClusterSettings(version="1.36", **wishes))


def bad(found: Cluster, wanted: ClusterDemand = DEMAND) -> list[Finding]:
    findings = examine_cluster(found, wanted)
    assert list(dict.fromkeys(one.check for one in findings)) == [check.name for check in CLUSTER_CHECKS]
    return [one for one in findings if one.state in ("fault", "warning")]


def test_a_cluster_in_health() -> None:
    assert bad(CLUSTER) == []
    skipped = {one.check for one in examine_cluster(CLUSTER, DEMAND) if one.state == "skipped"}
    assert skipped == {"device class", "resource slices", "network policies"}


def test_a_cluster_whose_cards_are_claimed() -> None:
    old = changed(SLICE, generation=1, cards=())
    other = changed(SLICE, driver="other.com", pool="other", pool_slices=9)
    found = claimed(SLICE, old, other)
    assert bad(found, DRA) == []
    assert {one.check for one in examine_cluster(found, DRA) if one.state == "skipped"} == {
        "runtime class",
        "tokens",
        "network policies",
    }


def test_the_agent_needs_the_runtime_class_even_where_cards_are_claimed() -> None:
    wanted = demand(pinning="dra")
    plain = cluster(nodes=(changed(WITHOUT_TOKENS, handlers=("",)),), slices=(SLICE,))
    assert [one.check for one in bad(plain, wanted)] == ["runtime class"]


def test_a_server_that_does_not_answer() -> None:
    (finding,) = bad(Cluster(problem="https://10.0.0.1:6443 does not answer: refused"))
    assert (finding.check, finding.state) == ("API server", "fault")
    skipped = [one for one in examine_cluster(Cluster(problem="x"), DEMAND) if one.state == "skipped"]
    assert {one.what for one in skipped} == {"the API server does not answer"}
    assert len(skipped) == len(CLUSTER_CHECKS) - 1


@pytest.mark.parametrize(
    ("check", "found", "wanted", "state", "what", "fix"),
    [
        ("Kubernetes version", CLUSTER, demand(settings=ClusterSettings(version="1.35")), "warning",
         "the cluster is 1.36, manifests are made for 1.35", 'kubernetes.version: "1.36"'),
        ("Kubernetes version", CLUSTER, demand(settings=ClusterSettings(version="1.37")), "fault",
         "the cluster is 1.36, manifests are made for 1.37", 'kubernetes.version: "1.36"'),
        ("end of life", CLUSTER, demand(today=date(2027, 7, 1)), "warning",
         "no fixes since 2027-06-28", "upgrade"),
        ("rights", cluster(denied=(Right("deployments.apps", "patch"),)), DEMAND, "fault",
         "may not patch deployments.apps", "clusterrolebinding"),
        ("nodes", node(ready=False), DEMAND, "fault", "is not ready", "describe node rig"),
        ("nodes", node(cordoned=True), DEMAND, "warning", "takes no new pods", "uncordon rig"),
        ("taints", node(taints=("nvidia.com/gpu=a:NoSchedule", "a:PreferNoSchedule",
                                "nvidia.com/gpu:NoExecute")), DEMAND,
         "fault", "nvidia.com/gpu:NoExecute: pods", "nvidia.com/gpu:NoExecute-"),
        ("taints", node(taints=("node.kubernetes.io/disk-pressure:NoSchedule",)), DEMAND, "fault",
         "disk-pressure", "goes by itself"),
        ("nodes", node(cordoned=True, taints=("node.kubernetes.io/unschedulable:NoSchedule",)), DEMAND,
         "warning", "takes no new pods", "uncordon"),
        ("taints", node(taints=("dedicated=db:NoSchedule",)), DEMAND, "fault", "do not bear it",
         "kubectl taint node rig dedicated=db:NoSchedule-"),
        ("runtime class", CLUSTER, demand(runtime_class="mine"), "fault", "no RuntimeClass mine",
         "one of sovereign-nvidia"),
        ("runtime class", node(handlers=("", "runc")), DEMAND, "fault", "no handler nvidia (runc)",
         "nvidia-ctk"),
        ("device plugin", node(extended={**NODE.extended, "nvidia.com/gpu": 2}), DEMAND, "fault",
         "offers 2 nvidia.com/gpu beside tokens", "deploy.device-plugin=false"),
        ("device plugin", cluster(
            nodes=(changed(WITHOUT_TOKENS, extended={"nvidia.com/gpu": 2}),), slices=(SLICE,)), DRA, "fault",
         "beside claims", "deploy.device-plugin=false"),
        ("device plugin", CLUSTER, demand(pinning="device-plugin"), "fault",
         "offers no nvidia.com/gpu", "install"),
        ("tokens", node(cards=None), DEMAND, "warning", "no agent has measured it", "kubernetes.agent: true"),
        ("tokens", node(extended={"gpu.sovereign.ai/GPU-1": 1, "gpu.sovereign.ai/GPU-2": 0}), DEMAND, "fault",
         "no token for GPU-2", "rollout restart"),
        ("tokens", node(extended={**NODE.extended, "gpu.sovereign.ai/GPU-9": 1}), DEMAND, "fault",
         "a token for GPU-9", "rollout restart"),
        ("tokens", CLUSTER, demand(cards={"rig": ("GPU-7",)}), "fault", "the plan uses GPU-7", "plan anew"),
        ("device class", claimed(SLICE, device_classes=()), DRA, "fault", "no DeviceClass gpu.nvidia.com",
         "DRA driver"),
        ("device class", claimed(SLICE, device_classes=None), DRA, "fault", "no resource.k8s.io/v1", "1.34"),
        ("resource slices", claimed(), DRA, "fault", "not there, or not complete", "get resourceslices"),
        ("resource slices", claimed(changed(SLICE, pool_slices=2)), DRA, "fault", "not complete",
         "pod on it"),
        ("resource slices", claimed(changed(SLICE, cards=("GPU-1",))), DRA, "fault", "lack GPU-2", "restart"),
        ("memory of nodes", CLUSTER, demand(limits_bytes={"rig": 64 * GIB}), "fault",
         "64.0 GiB together, 60.0",
         "shared_memory_gib"),
        ("sandboxes", cluster(sandbox_failures=('no runtime for "nvidia" is configured',)), DEMAND, "fault",
         "does not know the runtime", "restart containerd"),
        ("sandboxes", cluster(sandbox_failures=("no IP addresses left",)), DEMAND, "warning",
         "no IP", "journalctl"),
        ("Pod Security", CLUSTER, settings(storage=ClusterStorage(kind="hostPath")), "fault",
         "enforces restricted, which refuses hostPath", "storage.kind: local"),
        ("storage class", cluster(storage_classes=()), DEMAND, "fault",
         "no StorageClass sovereign-local", "apply"),
        ("volumes", cluster(claims=(changed(CLAIM, phase="Pending"),)), DEMAND, "warning", "Pending",
         "describe pvc"),
        ("volumes", cluster(claims=(changed(CLAIM, phase="Lost"),)), DEMAND, "fault", "Lost", "describe pvc"),
        ("volumes", cluster(volumes=(Volume(name="v", phase="Released", claim="c"),)), DEMAND, "fault",
         "its claim c was deleted", "kubectl patch pv v"),
        ("images", node(images=IMAGES[:1], images_listed=1), DEMAND, "fault", "no registry has it",
         "images import"),
        ("images", node(images=IMAGES[1:], images_listed=1), DEMAND, "warning", "is not on it yet",
         "crictl pull"),
        ("cluster DNS", cluster(dns=()), DEMAND, "warning", "no pod with k8s-app=kube-dns", "coredns"),
        ("cluster DNS", cluster(dns=CLUSTER.dns[1:] if CLUSTER.dns else ()), DEMAND, "fault",
         "none of 1", "loop"),
    ],
)  # fmt: skip
def test_one_thing_wrong(
    check: str, found: Cluster, wanted: ClusterDemand, state: str, what: str, fix: str
) -> None:
    (finding,) = bad(found, wanted)
    assert (finding.check, finding.state) == (check, state)
    assert what in finding.what
    assert fix in finding.fix


def test_a_plan_for_a_node_that_is_not_there() -> None:
    found = bad(CLUSTER, demand(cards={"other": ("GPU-1",)}, limits_bytes={"other": GIB}))
    assert [(one.check, one.subject) for one in found] == [("nodes", "other")]
    assert {one.check for one in bad(cluster(nodes=()))} == {"nodes"}


def test_what_this_user_may_not_read() -> None:
    kinds = ("nodes", "runtimeclasses", "namespaces", "events", "pods", "rights", "persistentvolumes")
    refused = Cluster(version="v1.36.0", unreadable=dict.fromkeys(kinds, "this user may not read them"))
    findings = examine_cluster(refused, DEMAND)
    assert {one.state for one in findings} <= {"ok", "skipped"}
    assert "nodes: this user may not read them" in [one.what for one in findings]


def test_a_list_of_images_that_ends_at_fifty_tells_nothing_of_others() -> None:
    full = node(images=(), images_listed=50)
    assert bad(full) == []
    (finding,) = [one for one in examine_cluster(full, DEMAND) if one.check == "images"]
    assert finding.state == "skipped"


def test_before_the_first_apply() -> None:
    """What apply makes is not missed, and a runtime that tells nothing of itself is not blamed."""
    first = cluster(
        nodes=(changed(NODE, handlers=None),),
        runtime_classes={},
        namespace=None,
        storage_classes=(),
        claims=(),
        volumes=(),
        version="v1.30.1",
    )
    wanted = demand(settings=ClusterSettings(version="1.31"), cards={}, limits_bytes={})
    assert [one.check for one in bad(first, wanted)] == ["Kubernetes version"]
    by_path = settings(storage=ClusterStorage(kind="hostPath"))
    assert bad(cluster(namespace={}), by_path) == []


def test_cards_are_told_by_any_sign_of_them() -> None:
    """Without a plan the nodes that matter are those with cards."""
    plain = ClusterNode(name="plain", cards=None)
    without = demand(cards={}, limits_bytes={})
    assert bad(cluster(nodes=(NODE, plain)), without) == []
    (finding,) = bad(cluster(nodes=(plain,)), without)[:1]
    assert (finding.check, finding.subject) == ("tokens", "plain")


def test_slices_of_a_server_that_has_none_and_of_no_node() -> None:
    (finding,) = bad(cluster(nodes=(WITHOUT_TOKENS,), device_classes=None, slices=None), DRA)
    assert finding.check == "device class"
    assert {one.check for one in bad(cluster(nodes=(), slices=()), DRA)} == {"nodes"}


def test_rights_that_apply_needs() -> None:
    found = rights(dra=True, monitoring=False)
    assert Right("resourceclaimtemplates.resource.k8s.io", "patch") in found
    assert Right("namespaces", "delete", False) not in found
    assert len(rights(dra=False, monitoring=False)) < len(found) < len(rights(dra=True, monitoring=True))
