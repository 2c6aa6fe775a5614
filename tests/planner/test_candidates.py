"""Which ways are looked at, and what they are worth against each other."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from sovereign_ai.catalog.releases import release
from sovereign_ai.config import Prefer
from sovereign_ai.errors import ConfigError
from sovereign_ai.inventory import catalog_bandwidths, form_tiers
from sovereign_ai.planner.candidates import Candidate, Search, Tried, check_tier, fidelity, pace
from sovereign_ai.planner.rooms import Site, sites
from sovereign_ai.planner.sizing import Fit, Misfit
from sovereign_ai.planner.wish import Wish
from sovereign_ai.spec import Inventory
from tests.inventory.fakes import GIB, cpu, inventory, node
from tests.planner.models import LLAMA_3B, MINILM, NEMO, QWEN_7B, SMOL, card, model, rig

RIG = ("RTX 3080 10GB", "RTX 3080 10GB", "RTX 3060 12GB", "RTX 3060 Ti", "RTX 3060 Ti", "RTX 3070")
NOBODY: frozenset[tuple[str, str]] = frozenset()
Found = tuple[list[Candidate], list[Tried]]


def where(there: Inventory) -> tuple[Site, ...]:
    return sites(there, form_tiers(there, (), catalog_bandwidths(there)))[0]


def search(
    there: Inventory, *, prefer: Prefer = "quality", mixing: bool = False, thorough: bool = False
) -> Search:
    return Search(where(there), release("24.12"), prefer, mixing=mixing, thorough=thorough)


def ways(
    there: Inventory, wish: Wish, *, prefer: Prefer = "quality", mixing: bool = False, thorough: bool = False
) -> list[Candidate]:
    looking = search(there, prefer=prefer, mixing=mixing, thorough=thorough)
    return looking.candidates(wish, NOBODY, 1.0)[0]


def named(found: Sequence[Candidate]) -> list[str]:
    return [f"{one.fit.format} on {one.fit.layout.cards}" for one in found]


def best(found: Sequence[Candidate]) -> str:
    return named([max(found, key=lambda one: one.score or 0)])[0]


def test_like_cards_from_one_to_all_of_them() -> None:
    found = ways(rig(*["RTX 3090"] * 4), Wish(model=QWEN_7B, context=8192))
    assert [name for name in named(found) if name.startswith("bfloat16")] == [
        "bfloat16 on 1× RTX 3090",
        "bfloat16 on 2× RTX 3090 at TP=2",
        "bfloat16 on 4× RTX 3090 at TP=4",
    ]
    assert [one.uses for one in found][-2:] == [((0, 2),), ((0, 4),)]


def test_a_single_card_is_offered_in_every_format() -> None:
    """It may be shared, for which a smaller one is another chance."""
    (given, *smaller) = ways(rig("RTX 3090"), Wish(model=QWEN_7B, context=8192))
    assert [one.fit.format for one in (given, *smaller)] == ["bfloat16", "fp8", "int8", "w4a16"]
    assert all(one.alone and one.least and one.shared_score for one in (given, *smaller))


def test_several_cards_are_offered_in_the_most_faithful_format_that_fits() -> None:
    pairs = [
        one for one in ways(rig(*RIG[:2]), Wish(model=NEMO, context=8192)) if len(one.fit.layout.rooms) == 2
    ]
    # FP8 and INT8 are equally faithful
    assert {one.fit.format for one in pairs} == {"fp8", "int8"}
    assert all(one.least is None and one.shared_score is None for one in pairs)


def test_pipelines_only_where_fewer_cards_do_not_hold_the_model() -> None:
    assert not [one for one in ways(rig(*["RTX 3090"] * 4), Wish(model=QWEN_7B)) if one.fit.layout.pp > 1]
    three = named(ways(rig(*["RTX 3060 12GB"] * 3), Wish(model=NEMO, context=8192)))
    assert "bfloat16 on 3× RTX 3060 12GB at PP=3" in three


def test_mixtures_only_where_like_cards_do_not_hold_the_model_in_8_bit() -> None:
    roomy, tight = rig("RTX 3090", "RTX 3060 12GB"), rig("RTX 3080 10GB", "RTX 3060 12GB")
    wish = Wish(model=NEMO, context=16_384)
    assert not [one for one in ways(roomy, wish) if one.fit.layout.mixed]
    assert [one for one in ways(roomy, wish, mixing=True) if one.fit.layout.mixed]
    assert [one for one in ways(tight, wish) if one.fit.layout.mixed]


def test_thorough_looks_at_everything() -> None:
    wish = Wish(model=LLAMA_3B, context=8192)
    some, every = (
        len(search(rig(*RIG), thorough=far).candidates(wish, NOBODY, 1.0)[1]) for far in (False, True)
    )
    assert every > 3 * some


def test_an_embedding_model_is_on_one_device() -> None:
    found = ways(rig(*RIG), Wish(model=MINILM))
    assert {len(one.fit.layout.rooms) for one in found} == {1}
    assert {one.fit.format for one in found} == {"float32"}
    assert len(found) == 4


def test_the_cpu_serves_in_float32() -> None:
    (one,) = ways(inventory(cpu()), Wish(model=SMOL))
    assert (one.fit.format, one.alone, one.uses) == ("float32", one.least, ((0, 1),))
    assert one.score and one.shared_score and one.score > one.shared_score


def test_only_the_wished_tier_by_name_or_role() -> None:
    (one,) = {
        one.fit.layout.rooms[0].card.name for one in ways(rig(*RIG), Wish(model=MINILM, tier="context"))
    }
    assert one == "GeForce RTX 3060 12GB"


def pinned(there: Inventory, *ids: str) -> Found:
    pins = frozenset(("box", device) for device in ids)
    tiers = form_tiers(there, (), catalog_bandwidths(there))
    looking = Search(sites(there, tiers, pins={"chat": pins})[0], release("24.12"), "quality")
    return looking.candidates(Wish(model=LLAMA_3B, context=8192), pins, 1.0)


def test_only_the_pinned_cards() -> None:
    found, tried = pinned(rig(*RIG), "GPU-00000003", "GPU-00000004")
    assert {room.id for one in found for room in one.fit.layout.rooms} == {"GPU-00000003", "GPU-00000004"}
    assert {len(one.layout.rooms) for one in tried} == {2}


def test_pinned_cards_of_one_node_are_not_on_another() -> None:
    other = msgspec.structs.replace(card(0, "RTX 3090"), id="GPU-other")
    there = Inventory(nodes=(node(other, name="a"), *rig(*RIG).nodes))
    assert {one.fit.layout.rooms[0].node for one in pinned(there, "GPU-00000002")[0]} == {"box"}


def test_a_pinned_card_at_fault_is_not_left_out() -> None:
    """Rather no place than another than was asked for."""
    good, bad = rig("RTX 3090", "RTX 3090").devices
    there = inventory(good, msgspec.structs.replace(bad, fault="has fallen off the bus"))
    assert pinned(there, good.id, bad.id) == ([], [])


def test_equal_cards_of_another_node_are_sized_once() -> None:
    other = msgspec.structs.replace(card(0, "RTX 3090"), id="GPU-other")
    there = Inventory(nodes=(node(card(0, "RTX 3090"), name="a"), node(other, name="b")))
    found, tried = search(there).candidates(Wish(model=QWEN_7B, context=8192), NOBODY, 1.0)
    assert {one.uses for one in found} == {((0, 1),), ((1, 1),)}
    assert len(tried) == len(found) / 2
    assert found[0].alone is found[len(found) // 2].alone


def test_models_of_one_shape_are_sized_once() -> None:
    looking = search(rig("RTX 3090"))
    first, second = (
        Wish(model=QWEN_7B, context=8192),
        Wish(model=model("another", QWEN_7B.shape), context=8192),
    )
    found = [looking.candidates(wish, NOBODY, 1.0)[0] for wish in (first, second)]
    assert found[0][0].alone is found[1][0].alone
    longer = looking.candidates(msgspec.structs.replace(first, context=4096), NOBODY, 1.0)[0]
    assert longer[0].alone is not found[0][0].alone


def test_what_does_not_fit_is_kept_with_the_reason() -> None:
    found, tried = search(rig("RTX 3060 Ti")).candidates(Wish(model=NEMO, context=32_768), NOBODY, 1.0)
    assert not found
    assert all(isinstance(one.result, Misfit) for one in tried)


def test_faithful_weights_come_before_speed() -> None:
    assert best(ways(rig("RTX 3090"), Wish(model=QWEN_7B, context=8192))).startswith("bfloat16")
    fastest = ways(rig("RTX 3090"), Wish(model=QWEN_7B, context=8192), prefer="speed")
    assert (
        best(fastest) == named([max(fastest, key=lambda one: pace(one.fit))])[0] != "bfloat16 on 1× RTX 3090"
    )
    assert fidelity(Wish(model=model("awq", NEMO.shape, format="awq")), "awq") == 0
    assert [fidelity(Wish(model=NEMO), form) for form in ("bfloat16", "fp8", "awq")] == [0, 1, 2]


def test_like_cards_in_8_bit_come_before_a_mixture() -> None:
    there, wish = rig(*RIG[:3]), Wish(model=NEMO, context=8192)
    assert best(ways(there, wish, mixing=True)) in {
        f"{form} on 2× RTX 3080 10GB at TP=2" for form in ("fp8", "int8")
    }


def test_a_longer_context_is_worth_something() -> None:
    found = ways(rig("RTX 3090", "RTX 3090"), Wish(model=LLAMA_3B))
    assert max(one.fit.context for one in found) > 8192
    assert max(found, key=lambda one: one.score or 0).fit.context > 8192


def test_a_card_that_adds_little_is_left_free() -> None:
    found = ways(rig(*["RTX 3090"] * 8), Wish(model=LLAMA_3B, context=8192))
    assert named([max(found, key=lambda one: pace(one.fit))])[0].endswith("at TP=8")
    assert best(found) == "bfloat16 on 2× RTX 3090 at TP=2"


def test_a_shared_device_is_worth_less() -> None:
    for one in ways(rig("RTX 3090"), Wish(model=QWEN_7B, context=8192)):
        assert one.score is not None and one.shared_score is not None
        assert one.shared_score < one.score


def test_a_share_of_the_traffic_scales_the_worth() -> None:
    looking, wish = search(rig("RTX 3090")), Wish(model=QWEN_7B, context=8192)
    whole, half = (looking.candidates(wish, NOBODY, weight)[0][0].score or 0 for weight in (1.0, 0.5))
    assert whole == pytest.approx(2 * half, abs=2)


@pytest.mark.parametrize("prefer", ["quality", "speed"])
def test_ways_of_little_worth_are_told_apart(prefer: Prefer) -> None:
    """Of mixtures in one format the faster is worth more, however little that is."""
    found = ways(
        rig("RTX 3070", "RTX 3060 Ti", "RTX 3080 10GB"), Wish(model=NEMO, context=8192), prefer=prefer
    )
    mixed = [
        one for one in found if one.fit.layout.mixed and one.fit.format == "w4a16" and len(one.uses) == 2
    ]
    assert len(mixed) > 3
    by_score = sorted(mixed, key=lambda one: one.score or 0)
    assert [pace(one.fit) for one in by_score] == sorted(pace(one.fit) for one in mixed)


def test_pace_is_between_both_speeds() -> None:
    fit = ways(rig("RTX 3090"), Wish(model=QWEN_7B, context=8192))[0].fit
    assert isinstance(fit, Fit)
    assert fit.speed.decode_one < pace(fit) < fit.speed.decode_full
    still = msgspec.structs.replace(fit, speed=msgspec.structs.replace(fit.speed, decode_one=0.0))
    assert 0 < pace(still) < 1e-2


def test_tiers_that_are_not_there() -> None:
    there = where(rig(*RIG))
    for known in (None, "primary", "utility"):
        check_tier(Wish(model=SMOL, tier=known), there)
    with pytest.raises(ConfigError) as near:
        check_tier(Wish(model=SMOL, tier="primry", where="factory.yaml:3"), there)
    assert near.value.message == "factory.yaml:3: there is no tier `primry` for `smollm2-135m`"
    assert near.value.hint == "did you mean `primary`?"
    with pytest.raises(ConfigError) as far:
        check_tier(Wish(model=SMOL, tier="zzz"), there)
    assert far.value.hint == "tiers here: context, primary, utility"


def test_a_cpu_that_is_too_small() -> None:
    assert ways(inventory(cpu(free_bytes=GIB)), Wish(model=LLAMA_3B)) == []
