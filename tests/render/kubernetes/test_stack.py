"""Every example, Kubernetes version and pinning mode, against the schemas and our own rules.

What this does not prove: that a cluster accepts the objects, or that the pods run.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import yaml
from kubernetes_validate.utils import validate as validate_schema
from msgspec.structs import replace

from sovereign_ai.config import CLUSTER_VERSIONS, DRA_FROM, ClusterStorage, GatewaySettings, UpstreamEntry
from sovereign_ai.errors import ConfigError
from sovereign_ai.inventory.published import quantity
from sovereign_ai.render.kubernetes import Object, Stack, render_stack, to_files, to_stack
from sovereign_ai.render.kubernetes.engine import Material
from sovereign_ai.render.kubernetes.labels import HOSTNAME, PLAN_HASH
from sovereign_ai.render.kubernetes.lint import WORKLOADS, lint, restricted_problems
from sovereign_ai.spec import Plan, Routes
from tests.render.kubernetes.examples import EXAMPLES, NAMES, planned, stack

MODES = ("auto", "tokens", "dra", "device-plugin", "env")
MIXED = ("4090-and-3060", "old-miners-rig", "reference-rig", "sixteen-mixed", "two-nodes")
"""Examples with a node whose cards are of several kinds."""

HOST_PATH = ClusterStorage(kind="hostPath")
_validated: set[tuple[str, str]] = set()


def validate(objects: tuple[Object, ...], version: str) -> None:
    for one in objects:
        text = json.dumps(one, sort_keys=True)
        if (text, version) not in _validated:
            validate_schema(one, version, strict=True)
            _validated.add((text, version))


def check(name: str, version: str, mode: str) -> None:
    cluster = {"version": version, "pinning": mode}
    if mode == "dra" and CLUSTER_VERSIONS.index(version) < DRA_FROM:
        pytest.skip("factory.yaml refuses it: tests/test_config.py")
    if mode == "device-plugin" and name in MIXED:
        with pytest.raises(ConfigError, match="cards of several kinds"):
            render_stack(stack(name, cluster=cluster))
        return
    objects = render_stack(stack(name, cluster=cluster))
    validate(objects, version)
    assert lint(objects) == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("version", ["1.31", "1.34"])
@pytest.mark.parametrize("name", ["reference-rig", "cpu-only", "two-nodes"])
def test_manifests_are_valid(name: str, version: str, mode: str) -> None:
    check(name, version, mode)


@pytest.mark.engine
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("version", CLUSTER_VERSIONS)
@pytest.mark.parametrize("name", NAMES)
def test_all_of_them_are_valid(name: str, version: str, mode: str) -> None:
    check(name, version, mode)


def pods(objects: tuple[Object, ...]) -> dict[str, Object]:
    return {
        f"{one['kind']}/{one['metadata']['name']}": one["spec"]["template"]["spec"]
        for one in objects
        if one["kind"] in WORKLOADS
    }


@pytest.mark.parametrize("name", NAMES)
def test_pod_security(name: str) -> None:
    """Everything is `restricted`. Only the choice of hostPath is not: pods that mount the models' drive."""
    objects = render_stack(stack(name, cluster={"monitoring": True}))
    assert {key: list(restricted_problems(pod)) for key, pod in pods(objects).items()} == {
        key: [] for key in pods(objects)
    }
    objects = render_stack(stack(name, cluster={"storage": HOST_PATH}))
    for key, pod in pods(objects).items():
        expected = (
            [] if "sovereign-agent" in key else ["volume weights is of a kind that `restricted` refuses"]
        )
        assert list(restricted_problems(pod)) == expected
    labels = objects[0]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "privileged"
    assert not any(one["kind"] in ("PersistentVolume", "StorageClass") for one in objects)


def test_the_golden_stack() -> None:
    """Made anew by SOVEREIGN_UPDATE_GOLDEN=1 .venv/bin/pytest tests/render/kubernetes/test_stack.py"""
    file = EXAMPLES / "reference-rig" / "triton-stack.yaml"
    if os.environ.get("SOVEREIGN_UPDATE_GOLDEN"):
        file.write_text(golden())
    text = file.read_text()
    assert text == golden()
    for words in (
        "tritonserver:24.12-vllm-python-py3",
        '"gpu.sovereign.ai/GPU-1f2a7333-0e1f-5061-8f3a-77193c18758a": "1"',
        '"gpu.sovereign.ai/GPU-9799af58-9d81-5bf3-b28b-190b237f56e3": "1"',
        '"tensor_parallel_size": 2',
        'sizeLimit: "32Gi"',
        "/mnt/sovereign-storage/models/mistral-nemo/main",
        'kind: "RuntimeClass"',
    ):
        assert words in text, words


def golden() -> str:
    return to_stack(render_stack(stack("reference-rig")))


def test_the_same_plan_gives_the_same_bytes() -> None:
    assert golden() == golden()
    one = render_stack(stack("two-nodes"))
    names = [(each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"]) for each in one]
    assert len(set(names)) == len(names), "no object twice"
    assert list(yaml.safe_load_all(to_stack(one))) == list(one)


def test_files_in_the_order_of_their_application() -> None:
    files = to_files(render_stack(stack("reference-rig")))
    listed = yaml.safe_load(files["kustomization.yaml"])["resources"]
    assert listed == sorted(listed) == [name for name in files if name != "kustomization.yaml"]
    assert "namespace" in listed[0]


def test_a_changed_plan_restarts_only_what_changed() -> None:
    """Pods carry no hash of the whole plan; their configuration has one in its name."""
    before = stack("reference-rig")
    changed = [
        replace(one, engine_args={**one.engine_args, "seed": 1}) if one.model == "coder" else one
        for one in before.plan.deployments
    ]
    after = replace(before, plan=replace(before.plan, deployments=tuple(changed)))
    old, new = pods(render_stack(before)), pods(render_stack(after))
    assert [key for key in old if old[key] != new[key]] == ["Deployment/triton-3f0e08af"]
    hashes = [
        one["metadata"]["annotations"][PLAN_HASH]
        for each in (before, after)
        for one in render_stack(each)[:1]
    ]
    assert hashes[0] != hashes[1]


def routes_of(objects: tuple[Object, ...]) -> dict[str, Any]:
    config = next(one for one in objects if one["metadata"]["name"] == "sovereign-gateway-routes")
    tree: dict[str, Any] = json.loads(config["data"]["routes.json"])
    return tree


def test_routes_lead_to_services_that_exist() -> None:
    upstream = UpstreamEntry(model="far", url="http://10.0.0.5:8000")
    one = stack("two-nodes", cluster={"namespace": "ai"}, gateway=GatewaySettings(upstreams=(upstream,)))
    objects = render_stack(one)
    services = {each["metadata"]["name"] for each in objects if each["kind"] == "Service"}
    urls = [
        end["url"]
        for route in routes_of(objects)["routes"]
        for end in route["endpoints"]
        if end["engine"] == "triton"
    ]
    assert urls
    assert all(url.removeprefix("http://").removesuffix(".ai.svc:8000") in services for url in urls)
    policy = next(
        each
        for each in objects
        if each["metadata"]["name"] == "sovereign-gateway" and each["kind"] == "NetworkPolicy"
    )
    assert policy["spec"]["policyTypes"] == ["Ingress"], "upstreams may be anywhere"


@pytest.mark.parametrize(("replicas", "shares"), [(1, [1]), (2, [1, 1]), (5, [3, 2])])
def test_the_gateways_replicas_spread(replicas: int, shares: list[int]) -> None:
    objects = render_stack(stack("two-nodes", cluster={"gateway_replicas": replicas}))
    found = [
        each["spec"]["replicas"]
        for each in objects
        if each["kind"] == "Deployment" and "sovereign-gateway" in each["metadata"]["name"]
    ]
    assert found == shares


def test_settings_reach_the_pods() -> None:
    cluster = {
        "pull_secrets": ("mine",),
        "pull_policy": "Never",
        "runtime_class": "nvidia",
        "clients": ("web",),
        "agent": False,
    }
    objects = render_stack(stack("reference-rig", cluster=cluster))
    assert not any(one["kind"] in ("RuntimeClass", "DaemonSet", "ClusterRole") for one in objects)
    engine = pods(objects)["Deployment/triton-1f2a7333-9799af58"]
    assert engine["runtimeClassName"] == "nvidia"
    assert engine["imagePullSecrets"] == [{"name": "mine"}]
    assert engine["containers"][0]["imagePullPolicy"] == "Never"
    assert '"web"' in to_stack(objects)


def test_what_is_checked_before_an_engine_starts() -> None:
    material = {"coder": Material(files={"model.safetensors": (7, "ab")})}
    objects = render_stack(stack("reference-rig", material=material))
    checks = [
        json.loads(one["data"]["checks.json"]) for one in objects if "checks.json" in one.get("data", {})
    ]
    models = {one["name"]: one["files"] for check in checks for one in check["models"]}
    assert models["coder"] == {"model.safetensors": [7, "ab"]}
    assert models["mistral-nemo"] == {}


def test_what_cannot_be_rendered() -> None:
    nothing = Stack(
        plan=Plan(tiers=(), deployments=()),
        inventory=planned("cpu-only").inventory,
        cluster=stack("cpu-only").cluster,
    )
    with pytest.raises(ConfigError, match="deploys nothing"):
        render_stack(nothing)
    one = stack("cpu-only")
    with pytest.raises(ConfigError, match="computes on a CPU"):
        render_stack(replace(one, cluster=replace(one.cluster, engine_image=None)))


def test_an_empty_route_list_is_not_rendered() -> None:
    tree = routes_of(render_stack(stack("cpu-only")))
    assert Routes(routes=()) is not None
    assert [route["model"] for route in tree["routes"]] == ["smollm2-135m", "minilm-l6-v2"]


def asked_of(objects: tuple[Object, ...], node: str) -> tuple[float, float]:
    """(cores, bytes) that all pods of a node ask for, the agent's among them."""
    cores = memory = 0.0
    for one in objects:
        if one["kind"] not in WORKLOADS:
            continue
        spec = one["spec"]["template"]["spec"]
        if one["kind"] == "Deployment" and spec["nodeSelector"][HOSTNAME] != node:
            continue
        for container in spec["containers"]:
            requests = container["resources"]["requests"]
            cores += one["spec"].get("replicas", 1) * quantity(requests["cpu"])
            memory += one["spec"].get("replicas", 1) * quantity(requests["memory"])
    return cores, memory


@pytest.mark.parametrize("gib", [6, 16, 64])
@pytest.mark.parametrize("cores", [2, 4, 8, 32])
@pytest.mark.parametrize("name", ["cpu-only", "reference-rig", "eight-a100", "two-nodes"])
def test_pods_leave_room_for_those_of_the_cluster_itself(name: str, cores: int, gib: int) -> None:
    """One core and 950 MiB are asked for by kubeadm's control plane and CoreDNS together."""
    made = stack(name)
    nodes = tuple(replace(node, cores=cores, memory_bytes=gib << 30) for node in made.inventory.nodes)
    objects = render_stack(replace(made, inventory=replace(made.inventory, nodes=nodes)))
    for node in nodes:
        asked_cores, asked_bytes = asked_of(objects, node.name)
        engines = len([one for one in objects if one["kind"] == "Deployment"])
        least = 0.25 * engines + 0.25  # what nobody may be given less than, on nodes that are too small
        assert asked_cores <= max(cores - 0.95, least)
        assert asked_bytes <= (gib << 30) - 950 * (1 << 20)
    assert lint(objects) == []
