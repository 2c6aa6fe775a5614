from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from sovereign_ai.planner.packing import (
    STEPS,
    Demand,
    Option,
    Packing,
    Placement,
    Pool,
    Problem,
    assign,
    check,
    levels,
    objective,
    validate,
    weight,
)

CASE = Problem(
    pools=(
        Pool(node="a", count=2, capacity_bytes=10),
        Pool(node="a", count=1, capacity_bytes=8),
        Pool(node="b", count=1, capacity_bytes=8),
    ),
    demands=(
        Demand(name="chat", copies=2, priority=1),
        Demand(name="code", copies=1, priority=2),
        Demand(name="embed", copies=2, priority=1),
    ),
    options=(
        Option(demand=0, uses=((0, 2),), score=9, need_bytes=10, key="chat on two"),
        Option(demand=1, uses=((1, 1),), score=5, need_bytes=6, shared_score=4, key="code"),
        Option(demand=2, uses=((1, 1),), score=3, need_bytes=2, shared_score=3, key="embed"),
        Option(demand=2, uses=((0, 1), (1, 1)), score=4, need_bytes=9, key="embed on two"),
    ),
)


def placed(*placements: tuple[int, bool, Sequence[tuple[int, int]]]) -> tuple[Placement, ...]:
    return tuple(
        Placement(option=at, shared=shared, devices=tuple(there)) for at, shared, there in placements
    )


def packed(*placements: tuple[int, bool, Sequence[tuple[int, int]]]) -> Packing:
    there = placed(*placements)
    reached = objective(CASE, there)
    return Packing(placements=there, objective=reached, bound=reached[-1], gap=0.0, proved=True)


# two devices for `chat`; `code` and `embed` share one
GOOD = ((0, False, ((0, 0), (0, 1))), (1, True, ((1, 0),)), (2, True, ((1, 0),)))


def test_levels_are_ordered_by_priority() -> None:
    assert levels(CASE) == ((0, 2), (1,))


def test_a_first_copy_counts_more_than_all_copies() -> None:
    assert weight(CASE, (0, 2)) == 5
    assert objective(CASE, placed(*GOOD)) == (5 + 1 + 5 + 1, 2 + 1, 9 + 4 + 3)
    assert objective(CASE, placed((1, False, ((1, 0),)))) == (0, 3, 5)


def test_a_good_packing_passes() -> None:
    validate(CASE)
    check(CASE, packed(*GOOD))


@pytest.mark.parametrize(
    ("placements", "complaint"),
    [
        ([(0, True, ((0, 0), (0, 1)))], "shares a device"),
        ([(0, False, ((0, 0),))], "does not have the devices"),
        ([(0, False, ((0, 0), (1, 0)))], "does not have the devices"),
        ([(0, False, ((0, 0), (0, 0)))], "has a device twice"),
        ([(0, False, ((0, 1), (0, 2)))], "is on device 2 of 2"),
        ([(3, False, ((0, 0), (1, 0)))], "is larger than its device"),
        ([(1, False, ((1, 0),)), (2, True, ((1, 0),))], "alone and by others"),
        ([(2, True, ((1, 0),)), (2, True, ((1, 0),))], "a demand twice"),
        ([(1, False, ((1, 0),)), (1, False, ((1, 0),))], "2 copies of `code`, 1 are wanted"),
    ],
)
def test_broken_rules_are_found(
    placements: list[tuple[int, bool, tuple[tuple[int, int], ...]]], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        check(CASE, packed(*placements))


def test_memory_that_is_not_there_is_found() -> None:
    larger = replace(
        CASE, options=(*CASE.options[:2], replace(CASE.options[2], need_bytes=3), CASE.options[3])
    )
    with pytest.raises(ValueError, match="holds 9 bytes"):
        check(larger, packed(*GOOD))


def test_claims_are_checked() -> None:
    good = packed(*GOOD)
    with pytest.raises(ValueError, match="is claimed"):
        check(CASE, replace(good, objective=(12, 3, 17)))
    with pytest.raises(ValueError, match="bound 15 is below"):
        check(CASE, replace(good, bound=15))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"demand": 3}, "of no demand"),
        ({"demand": -1}, "of no demand"),
        ({"uses": ()}, "uses no device"),
        ({"uses": ((0, 0),)}, "uses no device"),
        ({"uses": ((3, 1),)}, "a pool that is not there"),
        ({"uses": ((-1, 1),)}, "a pool that is not there"),
        ({"uses": ((0, 1), (0, 1))}, "names a pool twice"),
        ({"uses": ((0, 1), (2, 1))}, "more than one node"),
        ({"shared_score": 1}, "shares more than one device"),
        ({"score": -1}, "a number below 0"),
        ({"uses": ((0, 1),), "shared_score": -1}, "a number below 0"),
        ({"need_bytes": -1}, "a number below 0"),
        ({"key": "code"}, "option names are there twice: code"),
    ],
)
def test_options_that_contradict_the_problem(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        validate(replace(CASE, options=(replace(CASE.options[0], **change), *CASE.options[1:])))


def test_problems_that_contradict_themselves() -> None:
    with pytest.raises(ValueError, match="less than nothing"):
        validate(replace(CASE, pools=(*CASE.pools, Pool(node="c", count=-1, capacity_bytes=1))))
    with pytest.raises(ValueError, match="`none` is wanted 0 times"):
        validate(replace(CASE, demands=(*CASE.demands, Demand(name="none", copies=0))))
    with pytest.raises(ValueError, match="demand names are there twice: chat"):
        validate(replace(CASE, demands=(*CASE.demands, Demand(name="chat"))))


def fit(left: int, item: int) -> int | None:
    return left - item if item <= left else None


def test_assign_takes_the_first_bin() -> None:
    assert assign([], [3], fit) == []
    assert assign([3, 2, 1], [5, 5], fit) == [0, 0, 1]


def test_assign_goes_back() -> None:
    # 5 and 4 first fill the first bin to 9 of 10, which leaves no place for 3, 4, 4
    assert assign([5, 4, 3, 5, 3], [10, 10], fit) == [0, 1, 1, 0, 1]


def test_assign_gives_what_it_can() -> None:
    assert assign([3, 3, 2], [4, 2], fit) == [0, None, 1]


def test_assign_gives_up() -> None:
    """Ten bins that differ for items that none takes together: more ways than STEPS."""
    tried: list[int] = []

    def put(left: int, item: int) -> int | None:
        tried.append(item)
        return fit(left, item)

    items = [7] * 10 + [4] * 20
    assert None in assign(items, list(range(10, 20)), put)
    assert STEPS < len(tried) < 10 * (STEPS + 2 * len(items))
