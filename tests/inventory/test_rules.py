from __future__ import annotations

from typing import Any

import msgspec
import pytest

from sovereign_ai.config import Match, TierRule
from sovereign_ai.errors import ConfigError
from sovereign_ai.inventory.cards import cards
from sovereign_ai.inventory.rules import Ruled, apply_rules
from sovereign_ai.spec import Inventory
from tests.inventory.fakes import cpu, gpu, inventory, six_card_rig

UUIDS = ("GPU-0a1b2c3d-1111", "GPU-0a1b2c3d-2222", "GPU-ffff0000-3333")


def rule(tier: str = "mine", /, **match: Any) -> TierRule:
    return TierRule(name=tier, match=Match(**match), where="factory.yaml:7")


def apply(there: Inventory, *rules: TierRule) -> Ruled:
    return apply_rules(there, cards(there, {}), rules)


def named() -> Inventory:
    return inventory(
        *(msgspec.structs.replace(gpu(at, "A", 8192, gb_s=448), id=each) for at, each in enumerate(UUIDS))
    )


def refused(there: Inventory, *rules: TierRule) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        apply(there, *rules)
    assert caught.value.message.startswith("factory.yaml:7: tier `mine`: ")
    assert caught.value.hint
    return caught.value


def test_no_rules() -> None:
    assert apply(six_card_rig()) == ((), cards(six_card_rig(), {}))


@pytest.mark.parametrize(
    ("match", "taken"),
    [
        ({"name": "rtx 3080"}, [0, 3]),
        ({"name": "RTX 3060"}, [1, 2, 5]),
        ({"name": "3060 Ti"}, [2, 5]),
        ({"min_memory_gib": 10}, [0, 1, 3]),
        ({"min_memory_gib": 12.5}, [1]),
        ({"max_memory_gib": 8}, [2, 4, 5]),
        ({"max_memory_gib": 7.5}, [2, 4, 5]),
        ({"min_memory_gib": 10, "max_memory_gib": 10}, [0, 3]),
        ({"min_capability": 8.6, "name": "3070"}, [4]),
        ({"uuids": ("GPU-00000003", "gpu-00000001")}, [1, 3]),
        ({"uuids": ("GPU-00000003", "GPU-00000001"), "name": "3080"}, [3]),
    ],
)
def test_what_a_rule_matches(match: dict[str, Any], taken: list[int]) -> None:
    (tier,), rest = apply(six_card_rig(), rule(**match))
    assert tier.devices == tuple(f"GPU-{index:08x}" for index in taken)
    assert [card.device.index for card in rest] == [index for index in range(6) if index not in taken]
    assert (tier.rank, tier.name, tier.role) == (1, "mine", "utility")


def test_reasons_have_the_numbers() -> None:
    match = {"name": "3060", "min_memory_gib": 11, "max_memory_gib": 12, "min_capability": 8.0}
    (tier,), _ = apply(six_card_rig(), rule(**match, uuids=("GPU-00000001",)))
    assert tier.rule.endswith("compute capability 8.6: by rule (factory.yaml:7)")
    assert tier.reasons == {
        "GPU-00000001": "NVIDIA GeForce RTX 3060, 12 GiB and 360 GB/s, compute capability 8.6: rule `mine` "
        "(factory.yaml:7) takes it for the name `3060`, the UUID `GPU-00000001`, 12.0 GiB (at least 11), "
        "12.0 GiB (at most 12), compute capability 8.6 (at least 8)"
    }


def test_compute_capabilities_are_numbers() -> None:
    there = inventory(gpu(0, "A", 8192, capability="12.0"), gpu(1, "B", 8192, capability="8.9"))
    (tier,), _ = apply(there, rule(min_capability=9.0))
    assert tier.devices == ("GPU-00000000",)


def test_a_card_that_does_not_tell_its_capability_has_none() -> None:
    silent = msgspec.structs.replace(gpu(0, "A", 8192), compute_capability=None)
    (tier,), rest = apply(inventory(silent, gpu(1, "A", 8192)), rule(min_capability=6.0))
    assert tier.devices == ("GPU-00000001",)
    assert "compute capability unknown" in apply(inventory(silent), rule(name="A")).tiers[0].rule
    assert len(rest) == 1


def test_the_first_rule_keeps_a_card() -> None:
    tiers, rest = apply(six_card_rig(), rule("a", name="3080"), rule("b", min_memory_gib=10))
    assert [(tier.rank, tier.name, tier.devices) for tier in tiers] == [
        (1, "a", ("GPU-00000000", "GPU-00000003")),
        (2, "b", ("GPU-00000001",)),
    ]
    assert len(rest) == 3


def test_a_mixed_tier_is_described_as_it_is() -> None:
    there = inventory(gpu(0, "A", 8192, gb_s=448, capability="7.5"), gpu(1, "B", 12288, capability="8.6"))
    (tier,), _ = apply(there, rule(min_memory_gib=1))
    assert tier.rule == (
        "1× A + 1× B, 8 to 12 GiB and 448 GB/s each, compute capability 7.5 to 8.6: by rule (factory.yaml:7)"
    )


def test_a_beginning_of_a_uuid() -> None:
    (tier,), _ = apply(named(), rule(uuids=("GPU-0a1b2c3d-2", "gpu-f")))
    assert tier.devices == UUIDS[1:]


def test_a_whole_uuid_that_begins_another() -> None:
    short = msgspec.structs.replace(gpu(9, "A", 8192), id="GPU-0a1b2c3d")
    (tier,), _ = apply(inventory(*named().devices, short), rule(uuids=("GPU-0a1b2c3d",)))
    assert tier.devices == ("GPU-0a1b2c3d",)


def test_a_beginning_of_two() -> None:
    error = refused(named(), rule(uuids=("GPU-0a1b",)))
    assert "`GPU-0a1b` begins 2 UUIDs" in error.message
    assert UUIDS[0] in error.hint
    assert UUIDS[1] in error.hint


@pytest.mark.parametrize("word", ["GPU-77", "", "cpu"])
def test_a_uuid_that_is_not_there(word: str) -> None:
    there = inventory(*named().devices, cpu())
    assert f"begins with `{word}`" in refused(there, rule(uuids=("GPU-f", word))).message


def test_a_lost_card_may_have_been_meant() -> None:
    lost = msgspec.structs.replace(gpu(3, "GPU 3", 8192), id="lost-3", fault="does not answer")
    error = refused(inventory(*named().devices, lost), rule(uuids=("GPU-77",)))
    assert error.hint.endswith("cards at fault: lost-3")


def test_no_card_matches() -> None:
    error = refused(six_card_rig(), rule(name="A100"))
    assert error.message.endswith("no card matches")
    assert "NVIDIA GeForce RTX 3060 Ti (8.0 GiB)" in error.hint
    assert refused(inventory(cpu()), rule(min_memory_gib=1)).hint == "there is: no GPU"


def test_earlier_rules_took_them_all() -> None:
    earlier = [rule("a", uuids=("GPU-00000000",)), rule("b", uuids=("GPU-00000003",))]
    error = refused(six_card_rig(), *earlier, rule(name="3080"))
    assert error.message.endswith("earlier rules take all of its cards (`a`, `b`)")


def test_a_rule_without_a_place() -> None:
    with pytest.raises(ConfigError, match=r"^tiers: tier `x`: no card"):
        apply(six_card_rig(), TierRule(name="x", match=Match(name="nothing")))
    (tier,), _ = apply(six_card_rig(), TierRule(name="x", match=Match(name="3070")))
    assert tier.rule.endswith(": by rule")


def test_a_rule_whose_only_card_died_stops_nobody() -> None:
    there = inventory(gpu(0, "A", 8192, fault="fell off the bus"), gpu(1, "B", 8192))
    tiers, rest = apply(there, rule(name="A"), rule("b", uuids=("GPU-00000000",)))
    assert tiers == ()
    assert [card.device.id for card in rest] == ["GPU-00000001"]
