from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.gateway.picker import AFFINITY_BLOCKS, pick


@dataclass
class Candidate:
    outstanding: int
    available: bool = True
    weight: float = 1.0
    context: int = 1000
    name: str = ""


def test_least_outstanding_wins() -> None:
    candidates = [Candidate(2), Candidate(1), Candidate(3)]
    assert pick(candidates) is candidates[1]


def test_the_earlier_of_equals_wins() -> None:
    candidates = [Candidate(0, False), Candidate(1), Candidate(1)]
    assert pick(candidates) is candidates[1]


def test_none_without_an_available_one() -> None:
    assert pick([]) is None
    assert pick([Candidate(0, False)]) is None


def test_work_is_weighed_by_speed() -> None:
    fast, slow = Candidate(3, weight=100.0), Candidate(0, weight=20.0)
    assert pick([slow, fast]) is fast
    fast.outstanding = 5
    assert pick([slow, fast]) is slow


def test_a_prompt_goes_where_it_fits() -> None:
    small, large = Candidate(0, context=100), Candidate(9, context=200)
    assert pick([small, large], tokens=100) is small
    assert pick([small, large], tokens=101) is large
    assert pick([small, large], tokens=201) is None


def test_a_beginning_read_before_is_worth_one_request() -> None:
    idle, knows = Candidate(0, name="idle"), Candidate(1, name="knows")
    assert pick([knows, idle], seen={"knows": AFFINITY_BLOCKS}) is knows
    assert pick([knows, idle], seen={"knows": AFFINITY_BLOCKS - 1}) is idle
    knows.outstanding = 2
    assert pick([knows, idle], seen={"knows": 1000}) is idle


@given(
    st.lists(
        st.builds(Candidate, st.integers(0, 5), st.booleans(), st.floats(0.1, 100), st.integers(1, 100))
    ),
    st.integers(0, 100),
)
def test_nobody_would_be_done_sooner(candidates: list[Candidate], tokens: int) -> None:
    chosen = pick(candidates, tokens=tokens)
    fitting = [one for one in candidates if one.available and one.context >= tokens]
    assert (chosen is None) == (not fitting)
    if chosen:
        assert chosen in fitting
        wait = (chosen.outstanding + 1) / chosen.weight
        assert wait == min((one.outstanding + 1) / one.weight for one in fitting)
