from __future__ import annotations

import pytest

from sovereign_ai.planner.layout import Rung, ladder
from tests.planner.models import layout

PAIR = ("RTX 3080 10GB", "RTX 3080 10GB")


def test_settings_from_generous_to_frugal() -> None:
    assert ladder(1) == (
        *(Rung(size, 2048, False) for size in (256, 128, 64, 32, 16, 8)),
        Rung(8, 512, False),
        Rung(8, 512, True),
    )


@pytest.mark.parametrize(
    ("concurrency", "least"), [(1, 8), (8, 8), (9, 16), (64, 64), (200, 256), (300, 512)]
)
def test_no_batch_is_smaller_than_the_requests_at_once(concurrency: int, least: int) -> None:
    rungs = ladder(concurrency)
    assert {rung.max_num_seqs for rung in rungs[-3:]} == {least}
    assert min(rung.max_num_seqs for rung in rungs) == least


def test_a_card_alone() -> None:
    one = layout(["RTX 3060 12GB"])
    assert one.cards == "1× RTX 3060 12GB"
    assert one.label == "1× RTX 3060 12GB (tier primary, node box)"
    assert not one.mixed


def test_a_pair() -> None:
    assert layout(PAIR, tp=2).label == "2× RTX 3080 10GB at TP=2 (tier primary, node box)"


def test_a_pipeline_of_kinds() -> None:
    four = layout((*PAIR, "RTX 3070", "RTX 3060 Ti"), tp=2, pp=2)
    assert four.mixed
    assert four.cards == "2× RTX 3080 10GB + 1× RTX 3070 + 1× RTX 3060 Ti at TP=2 PP=2"
    assert four.label.endswith("(tier primary, context, node box)")
    assert [[room.device.index for room in stage] for stage in four.stages] == [[0, 1], [2, 3]]


def test_the_oldest_card_decides_what_all_can() -> None:
    assert layout(["RTX 4090", "RTX 2080 Ti", "RTX 3060 12GB"], pp=3).capability == "7.5"
