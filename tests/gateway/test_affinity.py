from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.gateway import affinity
from sovereign_ai.gateway.affinity import BLOCK_CHARACTERS, MAX_BLOCKS, Affinity


def text(blocks: int, last: str = "") -> str:
    return "".join(f"{number:0{BLOCK_CHARACTERS}d}" for number in range(blocks)) + last


def test_the_next_turn_finds_its_way_back() -> None:
    known = Affinity()
    known.remember(text(3, "a question"), "one")
    assert known.shares(text(3, "a question, its answer, and more")) == {"one": 3}
    assert known.shares(text(5)) == {"one": 3}
    assert known.shares(text(2)) == {"one": 2}


def test_another_beginning_shares_nothing() -> None:
    known = Affinity()
    known.remember(text(3), "one")
    assert known.shares("x" + text(3)) == {}
    assert known.shares("") == {}


def test_a_prompt_shorter_than_a_block_is_not_steered() -> None:
    known = Affinity()
    known.remember("short", "one")
    assert len(known) == 0


def test_who_was_asked_last_counts() -> None:
    known = Affinity()
    known.remember(text(4), "one")
    known.remember(text(2), "two")
    assert known.shares(text(4)) == {"two": 2, "one": 4}


def test_the_longest_unused_is_forgotten_first() -> None:
    known = Affinity(capacity=4)
    known.remember("a" * BLOCK_CHARACTERS * 2, "one")
    known.remember("b" * BLOCK_CHARACTERS * 2, "two")
    known.remember("a" * BLOCK_CHARACTERS, "one")
    known.remember("c" * BLOCK_CHARACTERS, "three")
    assert len(known) == 4
    assert known.shares("a" * BLOCK_CHARACTERS) == {"one": 1}
    assert known.shares("c" * BLOCK_CHARACTERS) == {"three": 1}


def test_only_the_beginning_of_a_long_prompt_is_looked_at() -> None:
    known = Affinity()
    known.remember(text(MAX_BLOCKS * 3), "one")
    assert len(known) == MAX_BLOCKS


@given(st.text(max_size=40), st.text(max_size=40))
def test_shared_blocks_are_those_of_the_common_beginning(one: str, two: str) -> None:
    size, affinity.BLOCK_CHARACTERS = affinity.BLOCK_CHARACTERS, 4
    try:
        known = Affinity()
        known.remember(one, "x")
        common = 0
        while common < min(len(one), len(two)) and one[common] == two[common]:
            common += 1
        assert known.shares(two).get("x", 0) == common // 4
    finally:
        affinity.BLOCK_CHARACTERS = size
