from __future__ import annotations

from typing import Any

import pytest

from sovereign_ai.cli import plan_tables
from sovereign_ai.console import Console
from sovereign_ai.spec import (
    Deployment,
    Device,
    Inventory,
    Memory,
    Node,
    Plan,
    Rejected,
    Speed,
    Tier,
    Unplaced,
)

GIB = 1 << 30
FREE = int(9.76 * GIB)
"""Of a card of 10 GiB that nobody uses."""


def card(name: str, index: int, model: str = "RTX 3080", **facts: Any) -> Device:
    common = {
        "id": name, "kind": "gpu", "name": f"NVIDIA GeForce {model}", "index": index,
        "memory_bytes": 10 * GIB, "memory_free_bytes": FREE, "memory_reserved_bytes": 10 * GIB - FREE,
        "compute_capability": "8.6", "bandwidth_bytes_per_s": 760e9,
    }  # fmt: skip
    return Device(**{**common, **facts})


CPU = Device(id="cpu", kind="cpu", name="EPYC", memory_bytes=8 * GIB, memory_free_bytes=6 * GIB, cores=2)
CARDS = (card("GPU-aaaaaaaa-1", 0), card("GPU-bbbbbbbb-2", 1), card("GPU-cccccccc-3", 2, "RTX 3070"))


def box(*devices: Device) -> Inventory:
    node = Node(name="box", devices=devices, cores=2, memory_bytes=8 * GIB, memory_free_bytes=6 * GIB)
    return Inventory(nodes=(node,))


def memory(weights: float = 4, kv: float = 2) -> Memory:
    return Memory(
        weights_bytes=int(weights * GIB),
        kv_cache_bytes=int(kv * GIB),
        activation_bytes=GIB,
        overhead_bytes=GIB // 2,
        graphs_bytes=GIB // 2,
    )


def deployment(model: str, *devices: str, **changes: Any) -> Deployment:
    common: dict[str, Any] = {
        "model": model, "version": "1", "task": "chat", "engine": "triton", "backend": "vllm", "node": "box",
        "tier": "all", "devices": devices, "context": 4096, "max_num_seqs": 64, "kv_tokens": 10_000,
        "memories": tuple(memory() for _ in devices), "release": "24.12", "vllm": "0.5.5",
        "reason": "it fits",
        "speed": Speed(decode_one=50.04, decode_full=1234.5, batch=20, batch_context=1024, prefill=2000.0,
                       ttft_s={512: 0.256, 2048: 1.024}),
    }  # fmt: skip
    return Deployment(**{**common, **changes})


def plan(*deployments: Deployment, devices: tuple[Device, ...] = CARDS, **more: Any) -> Plan:
    names = tuple(device.id for device in devices)
    tier = Tier(name="all", rank=1, role="primary", rule="all there is", devices=names)
    return Plan(tiers=(tier,), deployments=deployments, **more)


def shown(
    capsys: pytest.CaptureFixture[str], made: Plan, *devices: Device, current: Plan | None = None
) -> dict[str, list[str]]:
    """Title → lines below it."""
    plan_tables.show_plan(Console(), made, box(*(devices or CARDS)), current)
    found: dict[str, list[str]] = {}
    title = ""
    for line in capsys.readouterr().out.splitlines():
        if line in ("Plan", "Engines", "Memory") or line.startswith("Speed expected"):
            title = line.partition(" (")[0]
            found[title] = []
        else:
            found.setdefault(title, []).append(line)
    return found


def test_who_goes_where(capsys: pytest.CaptureFixture[str]) -> None:
    made = plan(
        deployment("nemo", "GPU-aaaaaaaa-1", "GPU-bbbbbbbb-2", tp=2, format="w4a16", to_make=True),
        deployment("nemo", "GPU-cccccccc-3", replica=1),
    )
    rows = shown(capsys, made)["Plan"]
    assert rows[1] == "nemo    2× RTX 3080 10GB  TP=2   all   w4a16, to make  4,096    64 (2 full)"
    assert rows[2] == "nemo/2  1× RTX 3070       –      all   bfloat16        4,096    64 (2 full)"


def test_a_pipeline_of_unlike_cards(capsys: pytest.CaptureFixture[str]) -> None:
    both = ("GPU-aaaaaaaa-1", "GPU-cccccccc-3")
    rows = shown(capsys, plan(deployment("nemo", *both, pp=2, layer_partition=(24, 16))))["Plan"]
    assert "1× RTX 3080 10GB + 1× RTX 3070  PP=2 (24+16 layers)" in rows[1]
    rows = shown(capsys, plan(deployment("nemo", *both, tp=2, pp=2)))["Plan"]
    assert "TP=2 PP=2" in rows[1]


def test_engines_and_their_settings(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {"gpu_memory_utilization": 0.7383, "max_num_batched_tokens": 2048, "enforce_eager": True}
    made = plan(
        deployment("nemo", "GPU-aaaaaaaa-1", engine_args=arguments),
        deployment("bge", "GPU-bbbbbbbb-2", task="embed", backend="embedding", release="", vllm=""),
    )
    rows = shown(capsys, made)["Engines"]
    assert rows[1].split("  ")[-2:] == [
        "triton 24.12, vllm 0.5.5",
        "74 % of the memory, steps of 2,048 tokens, eager",
    ]
    assert rows[2].split() == ["bge", "box", "GPU-bbbbbbbb", "triton,", "embedding", "–"]


def test_every_device_shows_what_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    busy = card("GPU-bbbbbbbb-2", 1, memory_free_bytes=int(4.76 * GIB))
    rows = shown(capsys, plan(deployment("nemo", "GPU-aaaaaaaa-1")), CARDS[0], busy, CARDS[2])["Memory"]
    full, half, free = rows[:3]
    assert full.startswith("box #0 RTX 3080 10GB GPU-aaaaaaaa W")
    assert full.endswith("  8.4 GiB of 10.0 GiB")
    bar = full.split()[6]
    assert len(bar) == 48
    assert [bar.count(letter) for letter in "WKAGEOD·"] == [19, 10, 5, 2, 2, 0, 2, 8]
    assert half.split()[6].count("O") == 23
    assert half.endswith("  unused, 10.0 GiB")
    assert free.startswith("box #2 RTX 3070      GPU-cccccccc DD·")
    assert rows[3].startswith("W weights   K KV cache")


def test_copies_that_share_a_card_are_added_up(capsys: pytest.CaptureFixture[str]) -> None:
    small = (memory(1, 1),)
    made = plan(
        deployment("nemo", "GPU-aaaaaaaa-1", memories=small),
        deployment("bge", "GPU-aaaaaaaa-1", memories=small),
    )
    assert shown(capsys, made)["Memory"][0].endswith("8.4 GiB of 10.0 GiB")


def test_what_the_running_plan_holds_is_not_in_use_by_others(capsys: pytest.CaptureFixture[str]) -> None:
    made = plan(deployment("nemo", "GPU-aaaaaaaa-1"))
    running = card(
        "GPU-aaaaaaaa-1", 0, memory_free_bytes=int(9.76 * GIB) - made.deployments[0].memory.total_bytes
    )
    assert "O" not in shown(capsys, made, running, *CARDS[1:], current=made)["Memory"][0]
    assert "O" in shown(capsys, made, running, *CARDS[1:])["Memory"][0]


def test_a_cpu_has_no_slot(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = {"enforce_eager": True}
    made = plan(deployment("smol", "cpu", release="", engine_args=arguments), devices=(CPU,))
    tables = shown(capsys, made, CPU)
    assert tables["Plan"][1].startswith("smol   CPU    –")
    assert tables["Engines"][1].split()[:3] == ["smol", "box", "cpu"]
    assert tables["Engines"][1].endswith("triton, vllm 0.5.5  eager")
    assert tables["Memory"][0].startswith("box  CPU  W")
    assert "D kept by the driver" not in tables["Memory"][1]


def test_speed_is_told_where_it_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    short = Speed(
        decode_one=9.0, decode_full=9.0, batch=1, batch_context=512, prefill=100.0, ttft_s={512: 5.12}
    )
    made = plan(
        deployment("nemo", "GPU-aaaaaaaa-1"),
        deployment("short", "GPU-bbbbbbbb-2", speed=short),
        deployment("bge", "GPU-cccccccc-3", task="embed"),
        deployment("new", "GPU-cccccccc-3", speed=None),
    )
    header, *rows = shown(capsys, made)["Speed expected"]
    assert header.split("  ")[-2:] == ["TTFT 512", "TTFT 2,048"]
    assert [row.split() for row in rows] == [
        ["nemo", "50.0", "1,234", "(20)", "2,000", "0.26", "s", "1.02", "s"],
        ["short", "9.0", "9", "(1)", "100", "5.12", "s", "–"],
        ["bge", "–", "–", "2,000", "–", "–"],
    ]
    assert "Speed expected" not in shown(capsys, plan(deployment("new", "GPU-aaaaaaaa-1", speed=None)))


def test_notes_go_beside_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    made = plan(
        deployment("nemo", "GPU-aaaaaaaa-1", to_make=True, format="fp8"),
        unplaced=(Unplaced(model="coder", reason="others took it"),),
        warnings=("the driver is old",),
    )
    plan_tables.show_plan(Console(), made, box(*CARDS))
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "no place: coder: others took it"
    assert err.splitlines() == [
        "nemo: it fits",
        "to make: nemo in fp8 does not exist yet: sovereign models quantize nemo --scheme fp8",
        "warning: the driver is old",
    ]


def test_a_plan_without_deployments_has_no_tables(capsys: pytest.CaptureFixture[str]) -> None:
    plan_tables.show_plan(Console(), plan(), box(*CARDS))
    assert capsys.readouterr() == ("", "")


def test_options_that_lost(capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        Rejected(model="nemo", option="BF16 on 1× T4", reason="too large"),
        Rejected(model="nemo", option="INT8 on 1× T4", reason="slower", fits=True),
    )
    plan_tables.show_options(Console(), "nemo", options)
    assert capsys.readouterr().out.splitlines() == [
        "Options of nemo that lost",
        "fits  option         why",
        "no    BF16 on 1× T4  too large",
        "yes   INT8 on 1× T4  slower",
    ]
