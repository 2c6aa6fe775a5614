"""Tiers of fake rigs: they prove the rule, not that the cards of a tier serve well together."""

from __future__ import annotations

import random
import re

from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.inventory import form_tiers
from sovereign_ai.spec import Device, Inventory
from tests.inventory.fakes import cpu, gpu, inventory, node, six_card_rig


def test_the_reference_rig() -> None:
    tiers = form_tiers(six_card_rig())
    assert [(tier.rank, tier.name, tier.role, len(tier.devices)) for tier in tiers] == [
        (1, "rtx-3080-10g", "primary", 2),
        (2, "rtx-3060-12g", "context", 1),
        (3, "rtx-3060-ti-8g", "utility", 2),
        (4, "rtx-3070-8g", "utility", 1),
    ]
    assert tiers[0].devices == ("GPU-00000000", "GPU-00000003")
    assert tiers[0].rule == (
        "2× NVIDIA GeForce RTX 3080, 10 GiB each, compute capability 8.6: most memory together (20.0 GiB)"
    )


def test_no_gpu() -> None:
    (tier,) = form_tiers(inventory(cpu(sets=("avx512f", "avx2"))))
    assert (tier.name, tier.rank, tier.role, tier.devices) == ("cpu", 1, "primary", ("cpu",))
    assert tier.rule == "no GPU: the CPU serves (2 cores, avx512f)"


def test_a_cpu_without_vectors() -> None:
    assert form_tiers(inventory(cpu(sets=())))[0].rule.endswith("(2 cores, no vector instructions)")


def test_a_cpu_node_beside_gpus_comes_last() -> None:
    there = Inventory(nodes=(node(cpu(), name="a"), node(gpu(0, "NVIDIA L4", 23034, capability="8.9"))))
    assert [(tier.name, tier.role) for tier in form_tiers(there)] == [
        ("l4-22g", "primary"),
        ("cpu", "utility"),
    ]
    assert form_tiers(there)[1].rule == "behind the GPUs (2 cores, avx2)"


def test_nothing() -> None:
    assert form_tiers(Inventory(nodes=())) == ()


def test_names_are_told_apart() -> None:
    """One name and memory with two compute capabilities, and a name without a letter to keep."""
    cards = [gpu(0, "NVIDIA X", 8192), gpu(1, "NVIDIA X", 8192, capability="9.0"), gpu(2, "GeForce", 4096)]
    assert [tier.name for tier in form_tiers(inventory(*cards))] == ["x-8g", "x-8g-2", "gpu-4g"]


def test_ties_fall_to_the_newer_card() -> None:
    cards = [gpu(0, "A", 8192, capability="8.9"), gpu(1, "B", 8192, capability="12.0")]
    assert [tier.devices for tier in form_tiers(inventory(*cards))] == [("GPU-00000001",), ("GPU-00000000",)]


CARDS = st.builds(
    lambda name, mib, capability: (name, mib, capability),
    st.sampled_from(["NVIDIA GeForce RTX 3080", "NVIDIA GeForce RTX 3060", "Tesla T4", "NVIDIA H200 / x"]),
    st.sampled_from([8192, 10240, 10241, 12288]),
    st.sampled_from(["7.5", "8.6", "12.0"]),
)


def rig(cards: list[tuple[str, int, str]], with_cpu: bool) -> list[Device]:
    gpus = [gpu(at, name, mib, capability=capability) for at, (name, mib, capability) in enumerate(cards)]
    return [*gpus, cpu()] if with_cpu else gpus


@given(st.builds(rig, st.lists(CARDS, max_size=9), st.booleans()), st.randoms(use_true_random=False))
def test_every_device_in_one_tier_whatever_the_order(devices: list[Device], chance: random.Random) -> None:
    tiers = form_tiers(inventory(*devices))
    placed = [device for tier in tiers for device in tier.devices]
    assert sorted(placed) == sorted(device.id for device in devices)
    assert [tier.rank for tier in tiers] == list(range(1, len(tiers) + 1))
    assert len({tier.name for tier in tiers}) == len(tiers)
    assert all(re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", tier.name) for tier in tiers)
    shuffled = list(devices)
    chance.shuffle(shuffled)
    assert form_tiers(inventory(*shuffled)) == tiers
