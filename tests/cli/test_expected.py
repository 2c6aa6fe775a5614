from __future__ import annotations

from datetime import date

import pytest

from sovereign_ai.catalog.releases import release
from sovereign_ai.cli.expected import PodMemory, cluster_demand, host_demand, pinning_of, pod_memory
from sovereign_ai.config import ClusterSettings, Factory
from sovereign_ai.spec import Deployment, Memory, Plan, Tier

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


@pytest.mark.parametrize(
    ("settings", "pinning"),
    [
        (ClusterSettings(), "tokens"),
        (ClusterSettings(version="1.34"), "dra"),
        (ClusterSettings(version="1.34", pinning="env"), "env"),
    ],
)
def test_how_cards_are_pinned(settings: ClusterSettings, pinning: str) -> None:
    assert pinning_of(settings) == pinning


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
