from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.inventory.places import Steps, find_places, read_steps, spell

TEXT = """{
  "a": [1,
    {"b, [x": "}"}, []
  ],

  "c": {},
  "a":
    true
}
"""


def test_lines_of_values() -> None:
    places = find_places(TEXT)
    assert places.lines == {
        (): 1,
        ("a",): 2,
        ("a", 0): 2,
        ("a", 1): 3,
        ("a", 1, "b, [x"): 3,
        ("a", 2): 3,
        ("c",): 6,
    }
    assert places.twice == ((("a",), 7),)


def test_a_value_that_is_not_there_stands_in_the_one_around_it() -> None:
    places = find_places(TEXT)
    assert places.line(("a", 1, "missing", 3)) == 3
    assert places.line(("x",)) == 1
    assert find_places("").line(()) == 1


def test_the_deepest_levels_are_not_kept() -> None:
    places = find_places('{"a": [' * 40 + "1" + "]}" * 40)
    assert max(map(len, places.lines)) == 32


def test_a_path_in_words() -> None:
    assert spell(("nodes", 0, "devices", 3, "id")) == "nodes[0].devices[3].id"
    assert spell(()) == ""
    assert read_steps("$.nodes[0].devices[3].id`") == ("nodes", 0, "devices", 3, "id")
    assert read_steps("$.nodes[...].id`") == ("nodes",)
    assert read_steps("") == ()


def every_step(value: Any, steps: Steps = ()) -> set[Steps]:
    children: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        children = list(value.items())
    elif isinstance(value, list):
        children = list(enumerate(value))
    return {steps}.union(*(every_step(child, (*steps, step)) for step, child in children))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(JSON, st.sampled_from([None, 1]))
def test_every_value_of_any_json_has_its_line(value: Any, indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    places = find_places(text)
    assert set(places.lines) == every_step(value)
    assert places.twice == ()
    assert max(places.lines.values()) <= text.count("\n") + 1
