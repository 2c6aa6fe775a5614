from __future__ import annotations

from collections.abc import Sequence

from sovereign_ai.planner.packing import Demand, Option, Placement, Pool, Problem
from sovereign_ai.planner.reduce import (
    Group,
    Mode,
    alike,
    hand_out,
    reduce,
    sociable,
    unblockable,
    undominated,
)


def alone(rank: int, uses: Sequence[tuple[int, int]], value: int) -> Mode:
    return Mode(rank, False, tuple(uses), value, 0, (0,))


def shared(rank: int, value: int, need: int, position: int = 0) -> Mode:
    return Mode(rank, True, ((position, 1),), value, need, (0,))


def group(*modes: Mode, counts: Sequence[int] = (4, 4), capacity: int = 10, nodes: int = 1) -> Group:
    pools = tuple(tuple(range(at, at + len(counts))) for at in range(nodes))
    return Group(pools, tuple(counts), (capacity,) * len(counts), modes, (None,) * len(counts))


def problem(pools: Sequence[Pool], options: Sequence[Option], copies: Sequence[int] = (1,)) -> Problem:
    demands = tuple(Demand(name=f"m{at}", copies=count) for at, count in enumerate(copies))
    return Problem(pools=tuple(pools), demands=demands, options=tuple(options))


def on(
    pool: int, key: str, score: int = 5, *, demand: int = 0, need: int = 4, share: int | None = None
) -> Option:
    return Option(demand=demand, uses=((pool, 1),), score=score, need_bytes=need, shared_score=share, key=key)


# --- undominated


def test_fewer_devices_for_as_much() -> None:
    one, two = alone(0, [(0, 1)], 5), alone(0, [(0, 2)], 5)
    assert undominated(group(two, one)).modes == (one,)


def test_more_devices_for_more_stay() -> None:
    one, two = alone(0, [(0, 1)], 5), alone(0, [(0, 2)], 6)
    assert undominated(group(one, two)).modes == (two, one)


def test_a_pair_beside_one_of_its_cards() -> None:
    one, pair, other = alone(0, [(1, 1)], 5), alone(0, [(0, 1), (1, 1)], 4), alone(0, [(0, 1)], 4)
    assert undominated(group(pair, one, other)).modes == (one, other)


def test_demands_do_not_beat_each_other() -> None:
    assert len(undominated(group(alone(0, [(0, 1)], 5), alone(1, [(0, 1)], 4))).modes) == 2


def test_sharing_is_beaten_by_sharing_only() -> None:
    better, larger, smaller = shared(0, 5, 4), shared(0, 5, 5), shared(0, 4, 3)
    there = (alone(0, [(0, 1)], 9), better, larger, smaller, shared(0, 5, 5, position=1))
    kept = undominated(group(*there)).modes
    assert set(there) - set(kept) == {larger}


def test_a_mode_that_shares_may_beat_one_alone() -> None:
    assert undominated(group(alone(0, [(0, 1)], 5), shared(0, 6, 4))).modes == (shared(0, 6, 4),)


# --- sociable


def test_nobody_to_share_with() -> None:
    by_itself, with_others = alone(0, [(0, 1)], 5), shared(0, 5, 6)
    assert sociable(group(by_itself, with_others)).modes == (by_itself,)
    larger = shared(1, 5, 5)
    assert sociable(group(by_itself, with_others, larger)).modes == (by_itself, larger)
    smaller = shared(1, 5, 4)
    assert sociable(group(by_itself, with_others, smaller)).modes == (by_itself, with_others, smaller)


def test_sharing_with_nobody_may_be_worth_more() -> None:
    there = alone(0, [(0, 1)], 4), shared(0, 5, 6)
    assert sociable(group(*there)).modes == there


# --- unblockable


def test_what_others_cannot_block_is_enough() -> None:
    """Two other copies block two cards; the third of the best kind is free whatever they do."""
    kinds = [
        group(alone(0, [(0, 1)], 9), alone(1, [(0, 1)], 9), counts=(1,), nodes=nodes) for nodes in (1, 2)
    ]
    worse = group(alone(0, [(0, 1)], 8), alone(1, [(0, 1)], 10), counts=(1,))
    kept = unblockable([*kinds, worse], [1, 2])
    assert [[mode.rank for mode in one.modes] for one in kept] == [[0, 1], [0, 1], [1]]


def test_what_others_can_block_needs_a_second() -> None:
    best, worse = group(alone(0, [(0, 1)], 9), counts=(4,)), group(alone(0, [(0, 1)], 8), counts=(4,))
    large = group(alone(1, [(0, 4)], 9), counts=(4,))
    assert len(unblockable([best, worse, large], [1, 1])[1].modes) == 1
    small = group(alone(1, [(0, 3)], 9), counts=(4,))
    assert len(unblockable([best, worse, small], [1, 1])[1].modes) == 0


def test_a_copy_blocks_one_node_only() -> None:
    """Counted by devices, one copy on eight could block two nodes of four."""
    best = group(alone(0, [(0, 1)], 9), counts=(4,), nodes=2)
    worse = group(alone(0, [(0, 1)], 8), alone(1, [(0, 8)], 8), counts=(8,))
    assert [mode.rank for mode in unblockable([best, worse], [1, 1])[1].modes] == [1]


# --- alike


def test_nodes_alike_are_one_group() -> None:
    pools = [Pool(node=node, count=2, capacity_bytes=10) for node in ("b", "a", "c")]
    case = problem(pools, [on(0, "0"), on(1, "1"), on(2, "2", 6)])
    groups = alike(case, (0,))
    assert [one.nodes for one in groups] == [((1,), (0,)), ((2,),)]
    assert groups[0].modes[0].options == (1, 0)


def test_capacity_matters_where_models_share() -> None:
    pools = [Pool(node=node, count=2, capacity_bytes=room) for node, room in (("a", 10), ("b", 11))]
    assert len(alike(problem(pools, [on(0, "0"), on(1, "1")]), (0,))) == 1
    assert len(alike(problem(pools, [on(0, "0", share=3), on(1, "1", share=3)]), (0,))) == 2


def test_pools_are_matched_by_what_runs_on_them() -> None:
    pools = [Pool(node=node, count=1, capacity_bytes=10) for node in ("a", "a", "b", "b")]
    case = problem(pools, [on(0, "0", 7), on(1, "1", 3), on(2, "2", 3), on(3, "3", 7)])
    (found,) = alike(case, (0,))
    assert found.nodes == ((1, 0), (2, 3))


def test_what_does_not_fit_is_no_mode() -> None:
    case = problem([Pool(node="a", count=1, capacity_bytes=10)], [on(0, "0", need=11, share=4)])
    assert reduce(case).groups == ()


def test_demands_are_ranked_by_priority_and_name() -> None:
    names = (("x", 2), ("y", 1), ("a", 2))
    demands = tuple(Demand(name=name, priority=priority) for name, priority in names)
    assert reduce(Problem(pools=(), demands=demands, options=())).ranked == (1, 2, 0)


# --- hand out


def test_large_copies_get_their_devices_first() -> None:
    """Taken as listed, the single would break the node that the four need."""
    there = group(alone(0, [(0, 1)], 5), alone(1, [(0, 4)], 5), counts=(4,), nodes=1)
    two = there._replace(
        nodes=((7,), (8,)), modes=tuple(mode._replace(options=(10, 11)) for mode in there.modes)
    )
    handed = hand_out(two, [[2], [1]], {}, 3)
    assert handed.finer == []
    assert handed.placements == [
        Placement(option=10, shared=False, devices=((7, 0), (7, 1), (7, 2), (7, 3))),
        Placement(option=11, shared=False, devices=((8, 0),)),
        Placement(option=11, shared=False, devices=((8, 1),)),
    ]


def test_sharing_that_does_not_fit_is_modelled_by_device() -> None:
    there = group(*(shared(rank, 1, need) for rank, need in enumerate((6, 6, 6))), counts=(2,))
    handed = hand_out(there, [[1], [1], [1]], {0: 2}, 3)
    assert [one.covers for one in handed.finer] == [((),)]
    assert len(handed.placements) == 2


def test_a_device_too_full_gives_a_cover() -> None:
    there = group(*(shared(rank, 1, need) for rank, need in enumerate((2, 6, 5))), counts=(1,))
    by_device = there._replace(covers=((),))
    handed = hand_out(by_device, [[1], [1], [1]], {0: 1}, 3)
    assert [one.covers for one in handed.finer] == [((frozenset({1, 2}),),)]


def test_devices_as_the_solver_filled_them_where_no_search_finds_out() -> None:
    """Given devices count where the search for others gives up, here for lack of a device."""
    there = group(shared(0, 1, 6), shared(1, 1, 6), counts=(2,))._replace(covers=((),))
    handed = hand_out(there, [[1, 0], [0, 1]], {0: 1}, 2)
    assert handed.finer == []
    assert len(handed.placements) == 2


def test_nodes_are_split_but_no_more_than_there_are_copies() -> None:
    there = group(alone(0, [(0, 3)], 5), counts=(4,), nodes=3)
    modes = tuple(mode._replace(options=(10, 11, 12)) for mode in there.modes)
    handed = hand_out(there._replace(modes=modes), [[4]], {}, 2)
    assert len(handed.placements) == 3
    assert [(one.nodes, one.modes[0].options) for one in handed.finer] == [(((0,),), (10,)), (((1,),), (11,))]
