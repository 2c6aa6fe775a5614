"""The reader against a fake API server; see fake_api.py for what that does not prove."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from sovereign_ai.errors import InventoryError
from sovereign_ai.inventory.cluster_condition import quantity, read_cluster
from sovereign_ai.inventory.cluster_facts import (
    Claim,
    Cluster,
    ClusterNode,
    DnsPod,
    Right,
    Slice,
    Volume,
)
from tests.inventory.fake_api import FakeApi, serving

INVENTORY = "sovereign.ai/inventory"
AGENT = (
    '{"name":"rig","cores":8,"memory_bytes":1,"memory_free_bytes":1,"devices":['
    '{"id":"GPU-1","kind":"gpu","name":"RTX 3060","memory_bytes":1,"memory_free_bytes":1},'
    '{"id":"GPU-2","kind":"gpu","name":"RTX 3060","memory_bytes":1,"memory_free_bytes":1,"fault":"lost"}]}'
)


def named(name: str, **more: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, **more.pop("metadata", {})}, **more}


def listed(*items: dict[str, Any]) -> dict[str, Any]:
    return {"kind": "List", "metadata": {}, "items": list(items)}


READY = [{"type": "Ready", "status": "True"}]
RIG = named(
    "rig",
    metadata={"annotations": {INVENTORY: AGENT}},
    spec={
        "unschedulable": True,
        "taints": [{"key": "a", "effect": "NoSchedule"}, {"key": "b", "value": "c", "effect": "NoExecute"}],
    },
    status={
        "conditions": READY,
        "allocatable": {"cpu": "8", "memory": "64Gi", "gpu.sovereign.ai/GPU-1": "1"},
        "runtimeHandlers": [{"name": ""}, {"name": "nvidia"}],
        "images": [{"names": ["repo/a@sha256:1", "repo/a:1"]}, {}],
    },
)
CARD = {"name": "gpu-0", "attributes": {"uuid": {"string": "GPU-1"}, "index": {"int": 0}}}
POOL = {"name": "rig", "generation": 3, "resourceSliceCount": 1}
ANSWERS: dict[str, Any] = {
    "/version": {"gitVersion": "v1.36.2"},
    "/api/v1/nodes": listed(RIG, named("bare", metadata={"annotations": {INVENTORY: "{"}})),
    "/api/v1/namespaces/mine": named("mine", metadata={"labels": {"a": "b"}}),
    "/apis/node.k8s.io/v1/runtimeclasses": listed(named("sovereign-nvidia", handler="nvidia")),
    "/apis/resource.k8s.io/v1/deviceclasses": listed(named("gpu.nvidia.com", spec={})),
    "/apis/resource.k8s.io/v1/resourceslices": listed(
        named("s", spec={"driver": "gpu.nvidia.com", "nodeName": "rig", "pool": POOL, "devices": [CARD]})
    ),
    "/apis/storage.k8s.io/v1/storageclasses": listed(named("local", provisioner="none")),
    "/api/v1/namespaces/mine/persistentvolumeclaims": listed(
        named("weights", spec={"storageClassName": "local"}, status={"phase": "Bound"}), named("new", spec={})
    ),
    "/api/v1/persistentvolumes": listed(
        named("v", spec={"claimRef": {"namespace": "mine", "name": "weights"}}, status={"phase": "Bound"}),
        named("w", spec={"claimRef": {"namespace": "other", "name": "weights"}}),
        named("x", spec={}),
    ),
    "/api/v1/namespaces/mine/events": listed(
        *2 * [named("e", reason="FailedCreatePodSandBox", message="no runtime", involvedObject={})],
        named("f", reason="Pulled", involvedObject={}),
    ),
    "/api/v1/namespaces/kube-system/pods": listed(named("coredns", status={"conditions": READY})),
}
RIGHTS = (Right("deployments.apps", "patch"), Right("namespaces", "create", False))


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def read(tmp_path: Path, answers: dict[str, Any], denied: tuple[str, ...] = ()) -> Cluster:
    with serving(FakeApi(answers, denied)) as api:
        return read_cluster(api.kubeconfig(tmp_path), "mine", INVENTORY, RIGHTS)


def test_everything_that_a_server_tells(tmp_path: Path) -> None:
    assert read(tmp_path, ANSWERS, denied=("namespaces",)) == Cluster(
        version="v1.36.2",
        nodes=(
            ClusterNode(
                name="rig",
                ready=True,
                cordoned=True,
                taints=("a:NoSchedule", "b=c:NoExecute"),
                memory_bytes=64 << 30,
                extended={"gpu.sovereign.ai/GPU-1": 1},
                handlers=("", "nvidia"),
                images=("repo/a@sha256:1", "repo/a:1"),
                images_listed=2,
                cards=("GPU-1",),
            ),
            ClusterNode(name="bare", ready=False),
        ),
        runtime_classes={"sovereign-nvidia": "nvidia"},
        namespace={"a": "b"},
        device_classes=("gpu.nvidia.com",),
        slices=(
            Slice(
                driver="gpu.nvidia.com",
                node="rig",
                pool="rig",
                generation=3,
                pool_slices=1,
                cards=("GPU-1",),
            ),
        ),
        storage_classes=("local",),
        claims=(
            Claim(name="weights", phase="Bound", storage_class="local"),
            Claim(name="new", phase="Pending"),
        ),
        volumes=(Volume(name="v", phase="Bound", claim="weights"),),
        sandbox_failures=("no runtime",),
        dns=(DnsPod(name="coredns", ready=True),),
        denied=RIGHTS[1:],
    )


def test_what_is_refused_is_told_and_the_rest_is_read(tmp_path: Path) -> None:
    answers: dict[str, Any] = {**ANSWERS, "/api/v1/nodes": 403, "/api/v1/persistentvolumes": 500}
    for path in ("resource.k8s.io/v1/deviceclasses", "resource.k8s.io/v1/resourceslices"):
        del answers[f"/apis/{path}"]
    del answers["/api/v1/namespaces/mine"]
    found = read(tmp_path, answers)
    assert found.unreadable["nodes"] == "this user may not read them"
    assert "500" in found.unreadable["persistentvolumes"]
    assert set(found.unreadable) == {"nodes", "persistentvolumes"}
    assert (found.nodes, found.device_classes, found.slices, found.namespace) == (None,) * 4
    assert found.storage_classes == ("local",)


def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    api = FakeApi({})
    path = api.kubeconfig(tmp_path)
    api.server_close()
    found = read_cluster(path, "mine", INVENTORY, ())
    assert found.problem.startswith(f"{api.url} does not answer: ")


def test_a_server_that_refuses_everything(tmp_path: Path) -> None:
    assert "401" in read(tmp_path, {"/version": 401}).problem


@pytest.mark.parametrize("text", [None, "", "{}", "- 1", "{", '{"current-context": "x", "contexts": []}'])
def test_a_kubeconfig_that_is_none(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "kubeconfig"
    if text is not None:
        path.write_text(text)
    assert read_cluster(path, "mine", INVENTORY, ()).problem.startswith("no way to a cluster: ")


def test_without_the_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "lightkube":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InventoryError) as raised:
        read_cluster(tmp_path / "kubeconfig", "mine", INVENTORY, ())
    assert "sovereign-ai[kubernetes]" in raised.value.hint


@pytest.mark.parametrize(
    ("text", "value"), [("64Gi", 64 << 30), ("2", 2), ("1.5k", 1500), ("100m", 0), ("", 0), ("12Ki", 12288)]
)
def test_quantities(text: str, value: int) -> None:
    assert quantity(text) == value
