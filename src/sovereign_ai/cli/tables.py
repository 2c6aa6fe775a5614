"""The tables of `up`: inventory, tiers, plan and where the seconds went."""

from __future__ import annotations

from collections.abc import Sequence

from sovereign_ai.console import Console, human_bytes
from sovereign_ai.spec import Inventory, Plan, Tier


def show_inventory(console: Console, inventory: Inventory) -> None:
    rows = [
        [
            node.name,
            device.id,
            device.name,
            human_bytes(device.memory_bytes),
            human_bytes(device.memory_free_bytes),
            device.compute_capability or f"{device.cores} cores, {' '.join(device.instruction_sets)}",
        ]
        for node in inventory.nodes
        for device in node.devices
    ]
    console.table("Inventory", ["node", "device", "name", "memory", "free", "compute"], rows)


def show_tiers(console: Console, tiers: Sequence[Tier]) -> None:
    rows = [[str(tier.rank), tier.name, tier.role, ", ".join(tier.devices), tier.rule] for tier in tiers]
    console.table("Tiers", ["rank", "tier", "role", "devices", "because"], rows)


def show_plan(console: Console, plan: Plan) -> None:
    rows = [
        [
            deployment.model,
            deployment.tier,
            ", ".join(deployment.devices),
            f"{deployment.engine}/{deployment.backend}",
            f"{deployment.context:,}",
            str(deployment.max_num_seqs),
            human_bytes(deployment.memory.weights_bytes),
            human_bytes(deployment.memory.kv_cache_bytes),
            human_bytes(deployment.memory.total_bytes),
            deployment.reason,
        ]
        for deployment in plan.deployments
    ]
    columns = ["model", "tier", "devices", "engine", "context", "seqs", "weights", "KV", "total", "because"]
    console.table("Plan", columns, rows)
    for lost in plan.rejected:
        console.note(f"{lost.model}: not {lost.option}: {lost.reason}")


def show_seconds(console: Console, stages: Sequence[tuple[str, float]]) -> None:
    """Where the seconds went; stages of the same name are added up."""
    merged: dict[str, float] = {}
    for name, seconds in stages:
        merged[name] = merged.get(name, 0.0) + seconds
    total = sum(merged.values()) or 1.0
    rows = [[name, f"{seconds:.1f}", f"{100 * seconds / total:.0f} %"] for name, seconds in merged.items()]
    rows.append(["together", f"{total:.1f}", ""])
    console.table("Where the seconds went", ["stage", "seconds", "share"], rows)
