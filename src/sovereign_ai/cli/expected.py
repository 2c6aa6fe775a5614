"""What factory.yaml and a plan ask of machines and of a cluster: what doctor judges by."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from itertools import groupby
from typing import NamedTuple

from sovereign_ai.catalog.releases import Release
from sovereign_ai.config import ClusterSettings, Factory
from sovereign_ai.inventory.cluster_doctor import ClusterDemand
from sovereign_ai.inventory.doctor import Demand
from sovereign_ai.render.kubernetes.engine import CPU_MARGIN_BYTES, UTILITY_SHARE, WORK_BYTES
from sovereign_ai.render.kubernetes.labels import GPU_DOMAIN
from sovereign_ai.render.kubernetes.pinning import mode_of, runtime_class
from sovereign_ai.spec import Deployment, Plan

GIB = 1 << 30


class PodMemory(NamedTuple):
    """Of one node's pods together."""

    limits_bytes: int
    shared_bytes: int


def pod_memory(plan: Plan, settings: ClusterSettings) -> dict[str, PodMemory]:
    """By node: the engines' pods, as they are rendered, one a group of devices. What a pod writes to /dev/shm
    counts against its limit. Agent and gateway, some hundred MiB, are left out."""

    def group(one: Deployment) -> tuple[str, tuple[str, ...]]:
        return one.node, one.devices

    found: dict[str, PodMemory] = {}
    for (node, _), members in groupby(sorted(plan.deployments, key=group), group):
        limit, shared = _pod(plan, settings, tuple(members))
        before = found.get(node, PodMemory(0, 0))
        found[node] = PodMemory(before.limits_bytes + limit, before.shared_bytes + shared)
    return found


def _pod(plan: Plan, settings: ClusterSettings, members: tuple[Deployment, ...]) -> PodMemory:
    ranks = {tier.name: tier.rank for tier in plan.tiers}
    on_cpu = members[0].devices == ("cpu",)
    shared = settings.shared_memory_gib * GIB
    if on_cpu or ranks.get(members[0].tier, 1) > 1:
        shared = max(GIB, shared // UTILITY_SHARE // GIB * GIB)
    need = sum(memory.total_bytes for one in members for memory in one.memories) + CPU_MARGIN_BYTES
    work = -(-need // GIB) * GIB if on_cpu else WORK_BYTES
    return PodMemory(work + shared, shared)


def host_demand(factory: Factory, plan: Plan | None, node: str, *, running: bool = False) -> Demand:
    """Of the machine called `node`; of a plan for one node that is called otherwise, that one.
    `running`: whether our own stack is up."""
    memory: Mapping[str, PodMemory] = pod_memory(plan, factory.kubernetes) if plan else {}
    mine = memory.get(node) or (next(iter(memory.values())) if len(memory) == 1 else None)
    return Demand(
        gateway_port=factory.gateway.port,
        gateway_runs=running,
        agent=factory.kubernetes.agent,
        pinning=mode_of(factory.kubernetes),
        limits_bytes=mine.limits_bytes if mine else None,
        shared_bytes=mine.shared_bytes if mine else None,
    )


def cluster_demand(factory: Factory, plan: Plan | None, release: Release, today: date) -> ClusterDemand:
    settings = factory.kubernetes
    cards: dict[str, tuple[str, ...]] = {}
    for one in plan.deployments if plan else ():
        cards[one.node] = tuple(dict.fromkeys((*cards.get(one.node, ()), *one.devices)))
    memory = pod_memory(plan, settings) if plan else {}
    return ClusterDemand(
        settings=settings,
        pinning=mode_of(settings),
        runtime_class=runtime_class(settings),
        token_domain=GPU_DOMAIN,
        today=today,
        images=(settings.engine_image or release.image, settings.control_image),
        cards=cards,
        limits_bytes={node: one.limits_bytes for node, one in memory.items()},
    )
