from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.gateway.picker import pick


@dataclass
class Candidate:
    outstanding: int
    healthy: bool


def test_least_outstanding_wins() -> None:
    candidates = [Candidate(2, True), Candidate(1, True), Candidate(3, True)]
    assert pick(candidates) is candidates[1]


def test_the_earlier_of_equals_wins() -> None:
    candidates = [Candidate(0, False), Candidate(1, True), Candidate(1, True)]
    assert pick(candidates) is candidates[1]


def test_none_without_a_healthy_one() -> None:
    assert pick([]) is None
    assert pick([Candidate(0, False)]) is None


@given(st.lists(st.builds(Candidate, st.integers(0, 5), st.booleans())))
def test_the_choice_is_healthy_and_no_healthy_one_is_less_busy(candidates: list[Candidate]) -> None:
    chosen = pick(candidates)
    healthy = [candidate for candidate in candidates if candidate.healthy]
    assert (chosen is None) == (not healthy)
    assert chosen is None or (chosen.healthy and chosen.outstanding == min(c.outstanding for c in healthy))
