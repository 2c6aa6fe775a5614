"""Tiers of fake rigs: they prove the rule, not that the cards of a tier serve well together."""

from __future__ import annotations

import random
import re

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.config import Match, TierRule
from sovereign_ai.inventory import form_tiers
from sovereign_ai.spec import Device, Inventory
from tests.inventory.fakes import cpu, gpu, inventory, node, six_card_rig

Kind = tuple[str, int, float, str]
"""Name, GiB, GB/s, compute capability."""

RTX4090: Kind = ("RTX 4090", 24, 1010, "8.9")
RTX3090: Kind = ("RTX 3090", 24, 936, "8.6")
RTX3060: Kind = ("RTX 3060", 12, 360, "8.6")
RTX3060TI: Kind = ("RTX 3060 Ti", 8, 448, "8.6")
A100: Kind = ("A100", 80, 2039, "8.0")
T4: Kind = ("Tesla T4", 15, 320, "7.5")
P40: Kind = ("Tesla P40", 24, 347, "6.1")


def rig(*kinds: Kind, first: int = 0) -> tuple[Device, ...]:
    return tuple(
        gpu(at, name, gib * 1024, gb_s=speed, capability=capability)
        for at, (name, gib, speed, capability) in enumerate(kinds, first)
    )


def seen(there: Inventory) -> list[tuple[str, str]]:
    """(tier's name, the cards in it by name) of each tier."""
    names = {device.id: device.name for device in there.devices}
    return [(tier.name, " ".join(names[device] for device in tier.devices)) for tier in form_tiers(there)]


def test_the_reference_rig() -> None:
    tiers = form_tiers(six_card_rig())
    assert [(tier.rank, tier.name, tier.role, tier.devices) for tier in tiers] == [
        (1, "primary", "primary", ("GPU-00000000", "GPU-00000003")),
        (2, "context", "context", ("GPU-00000001",)),
        (3, "utility", "utility", ("GPU-00000002", "GPU-00000004", "GPU-00000005")),
    ]
    assert tiers[0].rule == (
        "2× NVIDIA GeForce RTX 3080, 10 GiB and 760 GB/s each, compute capability 8.6: most memory × "
        "bandwidth in one node (20 GiB × 760 GB/s = 15,206; next 24 GiB × 448 GB/s = 10,752)"
    )
    assert tiers[2].reasons["GPU-00000004"] == (
        "NVIDIA GeForce RTX 3070, 8 GiB and 448 GB/s, compute capability 8.6: matched with 2 other cards by "
        "memory, compute capability and bandwidth within 10%; utility: a smaller or slower card "
        "(8 GiB at 448 GB/s)"
    )


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ([RTX4090, RTX3060], [("primary", "RTX 4090"), ("context", "RTX 3060")]),
        ([RTX3090], [("primary", "RTX 3090")]),
        ([RTX3090] * 2, [("primary", "RTX 3090 RTX 3090")]),
        ([A100] * 8, [("primary", " ".join(["A100"] * 8))]),
        ([T4, T4, A100, T4, T4], [("primary", "A100"), ("context", "Tesla T4 Tesla T4 Tesla T4 Tesla T4")]),
        (
            [RTX3060TI] * 4 + [RTX3090],
            [("primary", "RTX 3090"), ("context", " ".join(["RTX 3060 Ti"] * 4))],
        ),
        ([RTX3060] * 8 + [RTX4090], [("primary", " ".join(["RTX 3060"] * 8)), ("context", "RTX 4090")]),
        ([P40] * 4 + [RTX3060], [("primary", "RTX 3060"), ("context", " ".join(["Tesla P40"] * 4))]),
    ],
    ids=["fast and slow", "one", "pair", "eight alike", "one large, four small", "four small do not weigh up",
         "eight do", "no tensor cores"],
)  # fmt: skip
def test_rigs_that_people_have(cards: list[Kind], expected: list[tuple[str, str]]) -> None:
    assert seen(inventory(*rig(*cards))) == expected


def test_why_a_group_without_tensor_cores_comes_last() -> None:
    first, second = form_tiers(inventory(*rig(P40, P40, P40, P40, RTX3060)))
    assert first.rule.endswith("next 96 GiB × 347 GB/s = 33,312), and tensor cores, which the next lacks")
    assert second.rule.endswith("largest single card of the rest (24 GiB at 347 GB/s, no tensor cores)")


def test_two_nodes() -> None:
    """Alike cards are one tier wherever they are; but no deployment spans two nodes, so that what counts for
    `primary` is what one node holds: here the pair, and not the three single cards."""
    there = Inventory(
        nodes=(
            node(*rig(RTX3060TI, RTX4090), name="c"),
            node(*rig(RTX3090, RTX3090, RTX3060TI, first=2), name="a"),
            node(*rig(RTX4090, RTX3060TI, first=5), name="b"),
        )
    )
    assert seen(there) == [
        ("primary", "RTX 3090 RTX 3090"),
        ("context", "RTX 4090 RTX 4090"),
        ("utility", "RTX 3060 Ti RTX 3060 Ti RTX 3060 Ti"),
    ]
    assert form_tiers(there)[1].devices == ("GPU-00000005", "GPU-00000001")  # by node


@pytest.mark.parametrize(
    ("speeds", "tiers"),
    [([500, 450], 1), ([500, 449], 2), ([500, 455, 450, 445, 401], 2), ([500, 400, 300], 3)],
)
def test_bandwidths_within_ten_percent_are_near(speeds: list[int], tiers: int) -> None:
    cards = [gpu(at, f"Card {at}", 8192, gb_s=speed) for at, speed in enumerate(speeds)]
    assert len(form_tiers(inventory(*cards))) == tiers


def test_a_group_runs_at_its_slowest_card() -> None:
    cards = [gpu(0, "A", 8192, gb_s=500), gpu(1, "B", 8192, gb_s=455)]
    (tier,) = form_tiers(inventory(*cards))
    assert tier.rule == (
        "1× A + 1× B, 8 GiB and 455 to 500 GB/s each, compute capability 8.6: "
        "the only kind of card (16 GiB × 455 GB/s = 7,280)"
    )


def test_another_architecture_is_another_tier() -> None:
    cards = [gpu(0, "A", 8192, gb_s=448), gpu(1, "A", 8192, gb_s=448, capability="7.5")]
    assert [tier.devices for tier in form_tiers(inventory(*cards))] == [("GPU-00000000",), ("GPU-00000001",)]


def test_the_last_mebibytes_do_not_matter() -> None:
    cards = [gpu(0, "A", 24576, gb_s=936), gpu(1, "A", 24564, gb_s=936)]
    assert len(form_tiers(inventory(*cards))) == 1


def test_without_any_bandwidth_memory_decides() -> None:
    there = inventory(
        *(msgspec.structs.replace(card, bandwidth_bytes_per_s=None) for card in six_card_rig().devices)
    )
    tiers = form_tiers(there)
    assert [(tier.name, len(tier.devices)) for tier in tiers] == [
        ("primary", 2), ("context", 1), ("utility", 2), ("utility-2", 1),
    ]  # fmt: skip
    assert tiers[0].rule == (
        "2× NVIDIA GeForce RTX 3080, 10 GiB and unknown bandwidth each, compute capability 8.6: most "
        "memory in one node (20 GiB together, bandwidth unknown; next 16 GiB together, bandwidth unknown)"
    )
    assert (
        "matched with 1 other card by memory, compute capability and name" in tiers[0].reasons["GPU-00000000"]
    )


def test_bandwidths_fill_what_the_driver_does_not_tell() -> None:
    rig = six_card_rig().devices
    there = inventory(*(msgspec.structs.replace(card, bandwidth_bytes_per_s=None) for card in rig))
    bandwidths = {card.id: card.bandwidth_bytes_per_s or 0.0 for card in rig}
    assert form_tiers(there, bandwidths=bandwidths) == form_tiers(six_card_rig())
    told = form_tiers(six_card_rig(), bandwidths={"GPU-00000000": 1.0})
    assert told == form_tiers(six_card_rig())


def test_a_twin_tells_for_a_card_that_does_not() -> None:
    cards = [gpu(0, "A", 8192), gpu(1, "A", 8192, gb_s=448)]
    assert len(form_tiers(inventory(*cards))) == 1


def test_a_card_nobody_knows_counts_as_the_slowest() -> None:
    cards = [gpu(0, "Unknown", 49152), gpu(1, "A", 8192, gb_s=448), gpu(2, "B", 8192, gb_s=300)]
    first, *_ = form_tiers(inventory(*cards))
    assert first.devices == ("GPU-00000000",)
    assert "(48 GiB × 300 GB/s assumed = 14,400; next 8 GiB × 448 GB/s = 3,584)" in first.rule


def test_cards_at_fault_are_in_no_tier() -> None:
    cards = [gpu(0, "A", 8192, gb_s=448, fault="fell off the bus"), gpu(1, "A", 8192, gb_s=448)]
    (tier,) = form_tiers(inventory(*cards))
    assert tier.devices == ("GPU-00000001",)
    assert form_tiers(inventory(cards[0])) == ()


def test_no_gpu() -> None:
    (tier,) = form_tiers(inventory(cpu(sets=("avx512f", "avx2"))))
    assert (tier.name, tier.rank, tier.role, tier.devices) == ("cpu", 1, "primary", ("cpu",))
    assert tier.rule == "no GPU: the CPU serves (2 cores, avx512f)"
    assert tier.reasons == {"cpu": tier.rule}


def test_a_cpu_without_vectors() -> None:
    assert form_tiers(inventory(cpu(sets=())))[0].rule.endswith("(2 cores, no vector instructions)")


def test_a_cpu_node_beside_gpus_comes_last() -> None:
    there = Inventory(nodes=(node(cpu(), name="a"), node(gpu(0, "NVIDIA L4", 23034, capability="8.9"))))
    assert [(tier.name, tier.role) for tier in form_tiers(there)] == [
        ("primary", "primary"),
        ("cpu", "utility"),
    ]
    assert form_tiers(there)[1].rule == "behind the GPUs (2 cores, avx2)"


def test_nothing() -> None:
    assert form_tiers(Inventory(nodes=())) == ()


def test_ties_fall_to_the_newer_card() -> None:
    cards = [gpu(0, "A", 8192, capability="8.9"), gpu(1, "B", 8192, capability="12.0")]
    assert [tier.devices for tier in form_tiers(inventory(*cards))] == [("GPU-00000001",), ("GPU-00000000",)]


def rule(tier: str, role: str, name: str) -> TierRule:
    return TierRule(name=tier, role=role, match=Match(name=name))


def test_rules_first_then_the_rest() -> None:
    """A role that a rule gives is not given again; names are told apart."""
    rules = [rule("cpu", "primary", name="3060 Ti"), rule("context", "utility", name="3070")]
    tiers = form_tiers(inventory(*six_card_rig().devices, cpu()), rules)
    assert [(tier.rank, tier.name, tier.role, len(tier.devices)) for tier in tiers] == [
        (1, "cpu", "primary", 2),
        (2, "context", "utility", 1),
        (3, "context-2", "context", 1),
        (4, "utility", "utility", 2),
        (5, "cpu-2", "utility", 1),
    ]
    assert "largest single card of the rest (12 GiB at 360 GB/s; next 10 GiB at 760 GB/s)" in tiers[2].rule


def test_a_rule_of_another_role_leaves_primary_to_the_rest() -> None:
    tiers = form_tiers(six_card_rig(), [rule("embedding", "embed", name="3070")])
    assert [tier.name for tier in tiers] == ["embedding", "primary", "context", "utility"]


CARDS = st.tuples(
    st.sampled_from(["NVIDIA GeForce RTX 3080", "NVIDIA GeForce RTX 3060", "Tesla T4", "NVIDIA H200 / x"]),
    st.sampled_from([8192, 10240, 10241, 12288]),
    st.sampled_from(["7.5", "8.6", "12.0", "6.1"]),
    st.sampled_from([None, 300.0, 310.0, 340.0, 760.0]),
    st.booleans(),
)


def devices(cards: list[tuple[str, int, str, float | None, bool]], with_cpu: bool) -> list[Device]:
    gpus = [
        gpu(at, name, mib, capability=capability, gb_s=speed, fault="lost" if sick else "")
        for at, (name, mib, capability, speed, sick) in enumerate(cards)
    ]
    return [*gpus, cpu()] if with_cpu else gpus


@given(st.builds(devices, st.lists(CARDS, max_size=9), st.booleans()), st.randoms(use_true_random=False))
def test_every_healthy_device_in_one_tier_whatever_the_order(
    there: list[Device], chance: random.Random
) -> None:
    tiers = form_tiers(inventory(*there))
    placed = [device for tier in tiers for device in tier.devices]
    assert sorted(placed) == sorted(device.id for device in there if not device.fault)
    assert [tier.rank for tier in tiers] == list(range(1, len(tiers) + 1))
    assert len({tier.name for tier in tiers}) == len(tiers)
    assert all(re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", tier.name) for tier in tiers)
    assert all(set(tier.reasons) == set(tier.devices) for tier in tiers)
    shuffled = list(there)
    chance.shuffle(shuffled)
    assert form_tiers(inventory(*shuffled)) == tiers
