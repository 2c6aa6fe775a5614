from __future__ import annotations

from datetime import date

import pytest

from sovereign_ai.catalog.releases import release
from sovereign_ai.cli.expected import PodMemory, cluster_demand, host_demand, pod_memory
from sovereign_ai.config import ClusterSettings, Factory
from sovereign_ai.inventory import cluster_cards, cluster_case, drive
from sovereign_ai.inventory.cluster_condition import quantity
from sovereign_ai.inventory.cluster_facts import rights
from sovereign_ai.render.kubernetes import Object, Stack, labels, pinning, render_stack
from sovereign_ai.spec import Deployment, Inventory, Memory, Plan, Tier

GIB = 1 << 30


def deployment(model: str, node: str, *devices: str, tier: str = "large") -> Deployment:
    memory = Memory(weights_bytes=3 * GIB, kv_cache_bytes=GIB, activation_bytes=0, overhead_bytes=0)
    return Deployment(
        model=model,
        version="1",
        task="chat",
        engine="triton",
        backend="vllm",
        node=node,
        tier=tier,
        devices=devices,
        context=1024,
        max_num_seqs=1,
        memories=(memory,) * len(devices),
    )


TIERS = tuple(
    Tier(name=name, rank=rank, role="primary", rule="", devices=())
    for rank, name in enumerate(("large", "small"), start=1)
)
PLAN = Plan(
    tiers=TIERS,
    deployments=(
        deployment("a", "rig", "GPU-1", "GPU-2"),
        deployment("b", "rig", "GPU-3", tier="small"),
        deployment("c", "rig", "GPU-3", tier="small"),
        deployment("d", "box", "cpu"),
    ),
)


def test_the_memory_of_pods_is_one_a_group_of_devices() -> None:
    assert pod_memory(PLAN, ClusterSettings()) == {
        "rig": PodMemory((8 + 32 + 8 + 8) * GIB, (32 + 8) * GIB),
        "box": PodMemory((4 + 2 + 8) * GIB, 8 * GIB),
    }


def rendered(settings: ClusterSettings) -> tuple[Object, ...]:
    return render_stack(Stack(plan=PLAN, inventory=Inventory(nodes=()), cluster=settings))


def test_the_memory_of_pods_is_that_of_what_is_rendered() -> None:
    settings = ClusterSettings(shared_memory_gib=20, engine_image="localhost/engine:1")
    limits: dict[str, int] = {}
    for one in rendered(settings):
        if one["kind"] == "Deployment" and one["metadata"]["labels"][labels.COMPONENT] == "inference":
            pod = one["spec"]["template"]["spec"]
            node, limit = pod["nodeSelector"][labels.HOSTNAME], pod["containers"][0]["resources"]["limits"]
            limits[node] = limits.get(node, 0) + quantity(limit["memory"])
    assert limits == {node: one.limits_bytes for node, one in pod_memory(PLAN, settings).items()}


@pytest.mark.parametrize("version", ["1.31", "1.36"])
@pytest.mark.parametrize("monitoring", [True, False])
def test_rights_are_asked_for_every_kind_that_is_rendered(version: str, monitoring: bool) -> None:
    settings = ClusterSettings(version=version, monitoring=monitoring, engine_image="localhost/engine:1")
    kinds = {
        (f"{one['kind'].lower()}s".replace("classs", "classes").replace("policys", "policies"),
         one["apiVersion"].rpartition("/")[0])
        for one in rendered(settings)
    }  # fmt: skip
    wanted = {".".join(filter(None, kind)) for kind in kinds}
    dra = pinning.mode_of(settings) == "dra"
    assert {right.resource for right in rights(dra=dra, monitoring=monitoring)} == wanted


def test_names_that_render_and_doctor_share() -> None:
    assert cluster_cards.OWN_RUNTIME_CLASS == pinning.OWN_RUNTIME_CLASS
    assert cluster_cards.DRA_CLASS == pinning.DRA_CLASS
    assert cluster_case.DEVICE_PLUGIN == pinning.DEVICE_PLUGIN
    assert drive.SENTINEL == labels.SENTINEL


def test_what_is_asked_of_one_machine() -> None:
    assert host_demand(Factory(), None, "rig").limits_bytes is None
    assert host_demand(Factory(), PLAN, "box").limits_bytes == 14 * GIB
    assert host_demand(Factory(), PLAN, "elsewhere").limits_bytes is None
    alone = Plan(tiers=TIERS, deployments=PLAN.deployments[3:])
    assert host_demand(Factory(), alone, "elsewhere").shared_bytes == 8 * GIB


def test_what_is_asked_of_a_cluster() -> None:
    today = date(2026, 11, 25)
    found = cluster_demand(Factory(), PLAN, release("24.12"), today)
    assert found.cards == {"rig": ("GPU-1", "GPU-2", "GPU-3"), "box": ("cpu",)}
    assert found.limits_bytes == {"rig": 56 * GIB, "box": 14 * GIB}
    assert found.images == (
        "nvcr.io/nvidia/tritonserver:24.12-vllm-python-py3",
        "localhost/sovereign-ai:0.1.0",
    )
    assert cluster_demand(Factory(), None, release("24.12"), today).cards == {}
