from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from sovereign_ai.inventory import catalog_bandwidths, form_tiers
from sovereign_ai.planner import groups
from sovereign_ai.planner.groups import MOST_CARDS, Group, layouts, like_groups, mixed_groups, pinned_group
from sovereign_ai.planner.rooms import Pool, Site, sites
from sovereign_ai.spec import Inventory
from tests.inventory.fakes import cpu, inventory, node
from tests.planner.models import card, rig


def site(there: Inventory, pinned: frozenset[tuple[str, str]] = frozenset()) -> Site:
    tiers = form_tiers(there, (), catalog_bandwidths(there))
    return sites(there, tiers, pins={"model": pinned})[0][0]


def pools(*names: str) -> tuple[Pool, ...]:
    return site(rig(*names)).pools


def kinds(*names: str) -> list[list[Pool]]:
    return [[pool] for pool in pools(*names)]


def counts(group: Group) -> dict[str, int]:
    return {pool.first.card.name.removeprefix("GeForce "): count for pool, count in group}


THREE_KINDS = ["RTX 3080 10GB"] * 2 + ["RTX 3060 12GB"] + ["RTX 3070"] * 2


def test_one_card_of_a_pool_then_two() -> None:
    (pool,) = pools(*["RTX 3090"] * 3)
    assert [[count for _, count in group] for group in like_groups([pool])] == [[1], [2], [3]]
    assert len(list(like_groups([pool], 1))) == 1


def test_no_more_cards_than_one_server_has() -> None:
    (pool,) = pools(*["RTX 3090"] * 10)
    assert len(list(like_groups([pool]))) == MOST_CARDS


def test_like_cards_of_several_pools_work_together() -> None:
    """Here one has the desktop; from each pool on, and no choice twice."""
    there = inventory(*(card(at, "RTX 3090", used_mib=900 * (at == 1)) for at in range(3)))
    found = [
        [(pool.first.device.index, count) for pool, count in group]
        for group in like_groups(site(there).pools)
    ]
    assert found == [[(0, 1)], [(1, 1)], [(0, 2)], [(0, 1), (1, 1)], [(0, 2), (1, 1)]]


def test_mixtures_begin_with_the_fewest_cards() -> None:
    found = [counts(group) for group in mixed_groups(kinds(*THREE_KINDS))]
    assert found[0] == {"RTX 3080 10GB": 1, "RTX 3060 12GB": 1}
    assert found[-1] == {"RTX 3080 10GB": 2, "RTX 3060 12GB": 1, "RTX 3070": 2}
    assert [sum(one.values()) for one in found] == sorted(sum(one.values()) for one in found)
    assert len(found) == 2 * 1 + 2 * 2 + 1 * 2 + 2 * 1 * 2


def test_a_cpu_mixes_with_nothing() -> None:
    there = inventory(card(0, "RTX 3090"), cpu())
    assert list(mixed_groups([[pool] for pool in site(there).pools])) == []


def test_dozens_of_kinds_are_not_all_tried() -> None:
    (pool,) = pools("RTX 3090")
    assert len(list(mixed_groups([[pool]] * 40))) == groups.MOST_GROUPS


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([*THREE_KINDS, "RTX 4090", "RTX 3060 Ti"]), min_size=1, max_size=9))
def test_mixtures_are_of_two_or_three_kinds_and_there_once(names: list[str]) -> None:
    found = [counts(group) for group in mixed_groups(kinds(*names))]
    for one in found:
        assert 2 <= len(one) <= 3
        assert sum(one.values()) <= MOST_CARDS
        assert all(1 <= count <= names.count(name) for name, count in one.items())
    assert len({tuple(sorted(one.items())) for one in found}) == len(found)


def test_pinned_cards_are_taken_exactly() -> None:
    there = rig("RTX 3090", "RTX 3090", "RTX 3060 12GB")
    pinned = frozenset({("box", "GPU-00000001"), ("box", "GPU-00000002")})
    group = pinned_group(site(there, pinned), pinned)
    assert sorted(room.id for pool, count in group for room in pool.rooms[:count]) == [
        "GPU-00000001",
        "GPU-00000002",
    ]
    assert pinned_group(site(there), frozenset({("elsewhere", "GPU-00000001")})) == ()


def ways(group: Group, *, pipelines: bool = True) -> list[tuple[int, int]]:
    return [(found.tp, found.pp) for found in layouts(group, "host", pipelines=pipelines)]


def test_ways_to_split_over_like_cards() -> None:
    (pool,) = pools(*["RTX 3090"] * 8)
    assert ways(((pool, 1),)) == [(1, 1)]
    assert ways(((pool, 2),)) == [(1, 2), (2, 1)]
    assert ways(((pool, 3),)) == [(1, 3)]
    assert ways(((pool, 6),)) == [(1, 6), (2, 3)]
    assert ways(((pool, 8),)) == [(1, 8), (2, 4), (4, 2), (8, 1)]
    assert ways(((pool, 6),), pipelines=False) == []
    assert ways(((pool, 8),), pipelines=False) == [(8, 1)]


def test_the_stages_of_a_mixture_are_alike_in_themselves() -> None:
    large, small, odd = pools(*THREE_KINDS)
    assert ways(((large, 2), (odd, 2))) == [(1, 4), (2, 2), (4, 1)]
    assert ways(((large, 2), (small, 1))) == [(1, 3)]
    assert ways(((large, 1), (small, 1))) == [(1, 2), (2, 1)]


def test_the_fastest_cards_come_first() -> None:
    _, small, odd = pools(*THREE_KINDS)
    (found, *_) = layouts(((small, 1), (odd, 2)), "p2p")
    assert [room.card.name for room in found.rooms] == ["GeForce RTX 3070"] * 2 + ["GeForce RTX 3060 12GB"]
    assert found.link == "p2p"


def test_cards_of_a_pool_are_planned_with_the_least_of_them() -> None:
    cards = (card(0, "RTX 3090", used_mib=10), card(1, "RTX 3090", used_mib=0))
    (pool,) = site(inventory(*cards)).pools
    (_, split) = layouts(((pool, 2),), "host")
    assert {room.usable_bytes for room in split.rooms} == {min(room.usable_bytes for room in pool.rooms)}


def test_two_nodes_are_two_sites() -> None:
    there = Inventory(nodes=(node(card(0, "RTX 3090"), name="b"), node(card(1, "RTX 3090"), name="a")))
    found, _ = sites(there, form_tiers(there))
    assert [[pool.node for pool in one.pools] for one in found] == [["a"], ["b"]]
