from __future__ import annotations

from itertools import combinations, pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from sovereign_ai.planner.partition import StageBound, split_layers

STAGES = st.builds(
    StageBound,
    seconds=st.sampled_from([1.0, 1.5, 2.0, 3.7]),
    fixed_bytes=st.integers(0, 30),
    layer_bytes=st.integers(0, 10),
    room_bytes=st.integers(0, 200),
)


def stage(seconds: float, most: int) -> StageBound:
    return StageBound(seconds=seconds, fixed_bytes=5, layer_bytes=10, room_bytes=5 + 10 * most)


def slowest(split: tuple[int, ...], stages: list[StageBound]) -> float:
    return max(count * one.seconds for count, one in zip(split, stages, strict=True))


def every_split(layers: int, parts: int) -> list[tuple[int, ...]]:
    cuts = combinations(range(1, layers), parts - 1)
    edges = ((0, *cut, layers) for cut in cuts)
    return [tuple(b - a for a, b in pairwise(edge)) for edge in edges]


def fits(split: tuple[int, ...], stages: list[StageBound]) -> bool:
    return all(count <= one.most for count, one in zip(split, stages, strict=True))


def test_alike_stages_get_alike_parts() -> None:
    assert split_layers(40, [stage(1, 40)] * 4) == (10, 10, 10, 10)
    assert split_layers(30, [stage(1, 40)] * 4) == (8, 8, 7, 7)


def test_a_faster_stage_gets_more() -> None:
    assert split_layers(40, [stage(1, 40), stage(3, 40)]) == (30, 10)


def test_a_full_stage_gets_no_more() -> None:
    assert split_layers(40, [stage(1, 12), stage(3, 40)]) == (12, 28)


def test_one_stage_has_everything() -> None:
    assert split_layers(7, [stage(1, 7)]) == (7,)


def test_what_does_not_fit_is_spread_by_room() -> None:
    assert split_layers(40, [stage(1, 20), stage(1, 10)]) == (27, 13)
    assert split_layers(4, [stage(1, 0), stage(1, 100)]) == (1, 3)


def test_a_layer_that_takes_nothing() -> None:
    weightless = StageBound(seconds=1.0, fixed_bytes=5, layer_bytes=0, room_bytes=12)
    assert weightless.most == 7
    assert StageBound(seconds=1.0, fixed_bytes=50, layer_bytes=10, room_bytes=12).most == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(STAGES, min_size=1, max_size=5), st.integers(0, 60))
def test_every_layer_has_a_stage_and_every_stage_a_layer(stages: list[StageBound], more: int) -> None:
    layers = len(stages) + more
    split = split_layers(layers, stages)
    assert sum(split) == layers
    assert min(split) >= 1


@settings(max_examples=100, deadline=None)
@given(st.lists(STAGES, min_size=1, max_size=4), st.integers(0, 9))
def test_no_split_that_fits_is_faster(stages: list[StageBound], more: int) -> None:
    layers = len(stages) + more
    split = split_layers(layers, stages)
    good = [other for other in every_split(layers, len(stages)) if fits(other, stages)]
    assert fits(split, stages) == bool(good)
    if good:
        assert slowest(split, stages) == min(slowest(other, stages) for other in good)
