"""How long rendering takes: 1,000 cards, 200 deployments, to objects and to YAML.

    .venv/bin/python benchmarks/render_scale.py

Aim: below 3 s.
"""

from __future__ import annotations

import statistics
import time

from sovereign_ai.config import ClusterSettings
from sovereign_ai.render.kubernetes import Stack, render_stack, to_stack
from sovereign_ai.spec import Deployment, Device, Inventory, Memory, Node, Plan, Tier

NODES, CARDS, GROUP = 100, 10, 5
ROUNDS = 5
GIB = 1 << 30


def card(node: int, index: int) -> str:
    return f"GPU-{node:08x}-0000-4000-8000-{index:012x}"


def inventory() -> Inventory:
    nodes = []
    for node in range(NODES):
        devices = tuple(
            Device(id=card(node, index), kind="gpu", name="NVIDIA GeForce RTX 3080", memory_bytes=10 * GIB,
                   memory_free_bytes=10 * GIB)
            for index in range(CARDS)
        )  # fmt: skip
        nodes.append(
            Node(name=f"node-{node:03}", devices=devices, cores=16, memory_bytes=GIB, memory_free_bytes=GIB)
        )
    return Inventory(nodes=tuple(nodes))


def plan() -> Plan:
    memory = Memory(weights_bytes=4 * GIB, kv_cache_bytes=GIB, activation_bytes=GIB, overhead_bytes=GIB)
    deployments = tuple(
        Deployment(
            model=f"model-{node}-{group}",
            version="1",
            task="chat",
            engine="triton",
            backend="vllm",
            node=f"node-{node:03}",
            tier="primary",
            devices=tuple(card(node, group * GROUP + index) for index in range(GROUP)),
            context=32_768,
            max_num_seqs=64,
            memories=(memory,) * GROUP,
            engine_args={"tensor_parallel_size": GROUP, "max_model_len": 32_768, "dtype": "bfloat16"},
            release="24.12",
        )
        for node in range(NODES)
        for group in range(CARDS // GROUP)
    )
    cards = tuple(device for one in deployments for device in one.devices)
    tier = Tier(name="primary", rank=1, role="primary", rule="all", devices=cards)
    return Plan(tiers=(tier,), deployments=deployments)


def main() -> None:
    stack = Stack(plan=plan(), inventory=inventory(), cluster=ClusterSettings())
    seconds: dict[str, list[float]] = {"objects": [], "YAML": []}
    for _ in range(ROUNDS):
        began = time.perf_counter()
        objects = render_stack(stack)
        seconds["objects"].append(time.perf_counter() - began)
        began = time.perf_counter()
        text = to_stack(objects)
        seconds["YAML"].append(time.perf_counter() - began)
    print(f"{len(stack.plan.deployments)} deployments on {NODES * CARDS} cards: {len(objects)} objects, "
          f"{len(text):,} bytes")  # fmt: skip
    for name, those in seconds.items():
        print(f"{name}: median {statistics.median(those):.2f} s, worst {max(those):.2f} s")


if __name__ == "__main__":
    main()
