from __future__ import annotations

import pytest

from sovereign_ai.cli import tables
from sovereign_ai.console import Console
from sovereign_ai.spec import Deployment, Device, Inventory, Memory, Node, Plan, Rejected, Tier

GIB = 1 << 30


def device(**facts: object) -> Device:
    common = {"id": "cpu", "kind": "cpu", "name": "EPYC", "memory_bytes": 8 * GIB, "memory_free_bytes": GIB}
    return Device(**{**common, **facts})  # type: ignore[arg-type]


def test_the_inventory_shows_what_each_device_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    card = device(id="GPU-1", kind="gpu", name="RTX 3080", compute_capability="8.6")
    cpu = device(cores=2, instruction_sets=("avx2",))
    node = Node(name="box", devices=(cpu, card), cores=2, memory_bytes=GIB, memory_free_bytes=GIB)
    tables.show_inventory(Console(), Inventory(nodes=(node,)))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["Inventory"]
    assert lines[2] == ["box", "cpu", "EPYC", "8.0", "GiB", "1.0", "GiB", "2", "cores,", "avx2"]
    assert lines[3] == ["box", "GPU-1", "RTX", "3080", "8.0", "GiB", "1.0", "GiB", "8.6"]


def test_tiers_say_why(capsys: pytest.CaptureFixture[str]) -> None:
    tier = Tier(name="heavy", rank=1, role="large models", rule="10 GiB and more", devices=("a", "b"))
    tables.show_tiers(Console(), [tier])
    row = capsys.readouterr().out.splitlines()[2]
    assert row.split() == ["1", "heavy", "large", "models", "a,", "b", "10", "GiB", "and", "more"]


def test_the_plan_says_what_was_rejected_beside_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    deployment = Deployment(
        model="smol", version="1", task="chat", engine="triton", backend="vllm", node="box", tier="cpu",
        devices=("cpu",), context=8192, max_num_seqs=16,
        memories=(Memory(weights_bytes=GIB, kv_cache_bytes=GIB, activation_bytes=GIB, overhead_bytes=GIB),),
        reason="fits",
    )  # fmt: skip
    lost = Rejected(model="smol", option="bfloat16", reason="no bf16 units")
    tables.show_plan(Console(), Plan(tiers=(), deployments=(deployment,), rejected=(lost,)))
    out, err = capsys.readouterr()
    assert out.splitlines()[2].split() == (
        ["smol", "cpu", "cpu", "triton/vllm", "8,192", "16", "1.0", "GiB", "1.0", "GiB", "4.0", "GiB", "fits"]
    )
    assert err == "smol: not bfloat16: no bf16 units\n"


def test_seconds_of_the_same_stage_are_added_up(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show_seconds(Console(), [("plan", 1.0), ("load", 6.0), ("plan", 1.0)])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [["plan", "2.0", "25", "%"], ["load", "6.0", "75", "%"], ["together", "8.0"]]


def test_no_time_at_all_is_no_division_by_zero(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show_seconds(Console(), [])
    assert "together" in capsys.readouterr().out
