"""How long a plan takes: the reference rig, and clusters from 6 to 1,000 mixed cards.

    .venv/bin/python benchmarks/planner_scale.py            (the whole curve; about a minute)

Times are after imports, of the whole way from inventory and wishes to the plan: sizing every candidate, the
exact choice, memory and speed of what was chosen. Clusters are random but plausible, and the same for the
same --seed: nodes of one to eight cards of one or two kinds, models of 0.5 to 72 billion parameters with
copies."""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import highspy  # noqa: F401  the solver imports it when it is first asked; imports are not what is measured

from sovereign_ai.catalog.gpus import find_gpu
from sovereign_ai.catalog.shapes import find_shape
from sovereign_ai.inventory import catalog_bandwidths, form_tiers, load_inventory
from sovereign_ai.planner import Wish, make_plan
from sovereign_ai.planner.whatif import _device
from sovereign_ai.spec import Inventory, Model, Node

EXAMPLES = Path(__file__).parents[1] / "examples"
KINDS = (
    "GeForce RTX 3060 12GB",
    "GeForce RTX 3060 Ti",
    "GeForce RTX 3070",
    "GeForce RTX 3080 10GB",
    "GeForce RTX 3090",
    "GeForce RTX 4060 Ti 16GB",
    "GeForce RTX 4070 Ti",
    "GeForce RTX 4090",
    "RTX A6000",
    "L40S",
)
MODELS = (
    ("qwen2.5-0.5b", 8192),
    ("qwen2.5-1.5b", 16384),
    ("qwen2.5-3b", 16384),
    ("llama-3.2-3b", 16384),
    ("mistral-7b-v0.3", 16384),
    ("qwen2.5-7b", 16384),
    ("llama-3.1-8b", 16384),
    ("mistral-nemo", 32768),
    ("qwen2.5-14b", 16384),
    ("qwen2.5-32b", 16384),
    ("llama-3.1-70b", 8192),
    ("bge-m3", None),
)
CURVE = (6, 12, 25, 50, 100, 250, 500, 1000)


def cluster(cards: int, seed: int) -> Inventory:
    """Nodes of up to eight cards, `cards` in all."""
    dice = random.Random(seed)  # noqa: S311
    nodes: list[Node] = []
    left = cards
    while left:
        size = min(left, dice.choice((1, 2, 2, 4, 4, 4, 4, 6, 8)))
        left -= size
        first = dice.randint(1, size)
        kinds = [dice.choice(KINDS)] * first + [dice.choice(KINDS)] * (size - first)
        name = f"node-{len(nodes):03}"
        devices = []
        for index, kind in enumerate(kinds):
            facts = find_gpu(kind)
            assert facts is not None, kind
            devices.append(_device(facts, f"GPU-{name}-{index}", index))
        nodes.append(
            Node(
                name=name, devices=tuple(devices), cores=16, memory_bytes=64 << 30, memory_free_bytes=60 << 30
            )
        )
    return Inventory(nodes=tuple(nodes))


def wishes(count: int, seed: int, cards: int) -> list[Wish]:
    """Copies so that there is one for about every third card, up to 8 of a model."""
    each = cards / 3 / count
    dice = random.Random(seed)  # noqa: S311
    found = []
    for number in range(count):
        name, context = MODELS[number % len(MODELS)]
        known = find_shape(name)
        assert known is not None, name
        model = Model(
            name=f"{name}-{number}",
            version="1",
            task=known.task,
            source=f"hf:{known.hub}",
            weights_bytes=2 * known.shape.parameters,
            dtype="bfloat16",
            shape=known.shape,
        )
        found.append(
            Wish(
                model=model,
                context=context,
                priority=dice.randint(1, 3),
                share=dice.choice((0.5, 1.0, 2.0)),
                replicas=max(1, min(8, round(each * dice.uniform(0.5, 1.5)))),
            )
        )
    return found


def measure(inventory: Inventory, wanted: Sequence[Wish], rounds: int) -> dict[str, Any]:
    tiers = form_tiers(inventory, (), catalog_bandwidths(inventory))
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        made = make_plan(inventory, tiers, wanted)
        times.append(time.perf_counter() - started)
    return {
        "nodes": len(inventory.nodes),
        "cards": len(inventory.devices),
        "models": len(wanted),
        "copies": sum(wish.replicas for wish in wanted),
        "placed": len(made.deployments),
        "seconds": statistics.median(times),
        "slowest": max(times),
        "warnings": list(made.warnings),
    }


def reference_rig(rounds: int) -> dict[str, Any]:
    """The rig with three models that may go anywhere: no tier narrows the search."""
    inventory = load_inventory(EXAMPLES / "reference-rig" / "inventory.json")
    every = wishes(len(MODELS), 1, 1)
    wanted = [wish for wish in every if wish.name.startswith(("mistral-nemo", "qwen2.5-7b", "bge-m3"))]
    return measure(inventory, wanted, rounds)


def machine() -> str:
    name = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    return f"{name[1] if name else platform.machine()}, {len(os.sched_getaffinity(0))} cores, shared"


def show(rows: Sequence[dict[str, Any]]) -> None:
    print("| cards | nodes | models | copies placed | seconds, median | slowest |")
    print("|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['cards']:,} | {row['nodes']} | {row['models']} | {row['placed']} of {row['copies']} "
            f"| {row['seconds']:.3f} | {row['slowest']:.3f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cards", type=int, nargs="*", default=list(CURVE))
    parser.add_argument("--out", type=Path, default=None, help="write the figures here as JSON")
    options = parser.parse_args()
    rows = [reference_rig(max(5, options.rounds))]
    for cards in options.cards:
        wanted = wishes(max(2, min(40, cards // 5)), options.seed, cards)
        rows.append(measure(cluster(cards, options.seed), wanted, options.rounds))
    print(f"{machine()}; after imports; the first row is the reference rig\n")
    show(rows)
    for row in rows:
        for warning in row["warnings"]:
            print(f"{row['cards']} cards: {warning}")
    if options.out:
        record = {"machine": machine(), "date": time.strftime("%Y-%m-%d"), "rows": rows}
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
