from __future__ import annotations

import pytest

from sovereign_ai.cli import tables
from sovereign_ai.console import Console
from sovereign_ai.spec import (
    Device,
    Inventory,
    Link,
    Node,
    Pcie,
    Tier,
)

GIB = 1 << 30


def device(**facts: object) -> Device:
    common = {"id": "cpu", "kind": "cpu", "name": "EPYC", "memory_bytes": 8 * GIB, "memory_free_bytes": GIB}
    return Device(**{**common, **facts})  # type: ignore[arg-type]


def shown(capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def box(*devices: Device, links: tuple[Link, ...] = ()) -> Inventory:
    node = Node(name="box", devices=devices, cores=2, memory_bytes=GIB, memory_free_bytes=GIB, links=links)
    return Inventory(nodes=(node,))


CARD = device(
    id="GPU-1",
    kind="gpu",
    name="NVIDIA GeForce RTX 3080",
    index=3,
    compute_capability="8.6",
    memory_reserved_bytes=2 * GIB,
    bandwidth_bytes_per_s=760.3e9,
    pci_address="00000000:01:00.0",
    pcie=Pcie(generation=1, generation_max=4, width=4, width_max=16),
    display_attached=True,
    power_limit_w=320.0,
    power_limit_max_w=350.0,
)


def test_the_inventory_shows_what_each_device_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    cpu = device(cores=2, instruction_sets=("avx2",))
    tables.show_inventory(Console(), box(cpu, CARD))
    lines = shown(capsys)
    assert lines[2] == ["box", "–", "2", "1.0", "GiB", "1.0", "GiB", "–", "–"]
    assert lines[3] == ["Inventory"]
    assert lines[5] == ["box", "cpu", "EPYC", "8.0", "1.0", "7.0", "2", "cores,", "avx2", "–", "ok"]
    assert lines[6] == ["box", "3", "RTX", "3080", "8.0", "1.0", "5.0", "8.6", "760", "ok"]
    assert len(lines) == 7


def test_what_is_wrong_with_a_card_is_told_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    lost = device(id="lost-1", kind="gpu", name="GPU 1", index=1, fault="does not answer: it is gone")
    tables.show_inventory(Console(), box(lost))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2].endswith("at fault")
    assert lines[-1] == "box #1 (GPU 1): does not answer: it is gone"


def test_slots_show_how_a_card_is_plugged_in(capsys: pytest.CaptureFixture[str]) -> None:
    plain = device(id="GPU-2", kind="gpu", name="B", index=4)
    fixed = device(
        id="GPU-3", kind="gpu", name="C", index=5, display_attached=False, power_limit_w=70.0,
        pcie=Pcie(generation=3, generation_max=3, width=8, width_max=8),
    )  # fmt: skip
    tables.show_slots(Console(), box(device(), CARD, plain, fixed))
    lines = shown(capsys)
    slot = ["box", "3", "00000000:01:00.0", "1.0", "×4", "of", "4.0", "×16", "yes", "320", "of", "350", "W"]
    assert lines[2] == slot
    assert lines[3] == ["box", "4", "–", "–", "–", "–"]
    assert lines[4] == ["box", "5", "–", "3.0", "×8", "no", "70", "W"]
    assert lines[7:] == [["box", "3", "GPU-1"], ["box", "4", "GPU-2"], ["box", "5", "GPU-3"]]


def test_a_node_without_cards_has_no_slots(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show_slots(Console(), box(device()))
    assert capsys.readouterr().out == ""


def test_links_are_named_while_they_are_few(capsys: pytest.CaptureFixture[str]) -> None:
    cards = [device(id=f"GPU-{at}", kind="gpu", name="A", index=at) for at in range(6)]
    few = (Link(a="GPU-0", b="GPU-1", kind="nvlink"), Link(a="GPU-2", b="GPU-5", kind="p2p"))
    tables.show_inventory(Console(), box(*cards, links=few))
    assert "nvlink 0–1; p2p 2–5" in capsys.readouterr().out
    many = tuple(Link(a="GPU-0", b=f"GPU-{at}", kind="nvlink") for at in range(1, 6))
    tables.show_inventory(Console(), box(*cards, links=many))
    assert "nvlink 5 pairs" in capsys.readouterr().out


def test_tiers_say_why(capsys: pytest.CaptureFixture[str]) -> None:
    tier = Tier(
        name="heavy", rank=1, role="large", rule="10 GiB and more", devices=("a", "b"), reasons={"a": "big"}
    )
    tables.show_tiers(Console(), [tier])
    assert shown(capsys)[2] == ["1", "heavy", "large", "a", "b", "10", "GiB", "and", "more"]
    tables.show_reasons(Console(), [tier])
    assert shown(capsys)[2:] == [["a", "heavy", "big"], ["b", "heavy"]]


def test_uuids_are_shortened_while_they_differ() -> None:
    ids = ["cpu", "GPU-0a1b2c3d-1111", "GPU-0a1b2c3d-1222", "GPU-ffffffff-1111", "GPU-ffffffff"]
    assert list(tables.short_ids(ids).values()) == [
        "cpu", "GPU-0a1b2c3d-11", "GPU-0a1b2c3d-12", "GPU-ffffffff-", "GPU-ffffffff",
    ]  # fmt: skip


def test_seconds_of_the_same_stage_are_added_up(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show_seconds(Console(), [("plan", 1.0), ("load", 6.0), ("plan", 1.0)])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [["plan", "2.0", "25", "%"], ["load", "6.0", "75", "%"], ["together", "8.0"]]


def test_no_time_at_all_is_no_division_by_zero(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show_seconds(Console(), [])
    assert "together" in capsys.readouterr().out
