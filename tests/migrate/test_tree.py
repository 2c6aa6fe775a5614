from __future__ import annotations

from typing import Any

import pytest

from sovereign_ai.errors import ConfigError
from sovereign_ai.migrate.tree import Fields, Items, Tree, read_tree


def plain(tree: Tree) -> Any:
    if isinstance(tree, Fields):
        return {key: plain(value) for key, value in tree.entries.items()}
    return [plain(item) for item in tree.items] if isinstance(tree, Items) else tree.text


def read(text: str, **variables: str) -> Any:
    return plain(read_tree("f", text, variables)[0])


def test_scalars_stay_text() -> None:
    assert read("{a: 012, b: no, c: 1.50, d: ~, e: null, f: '', g: 8080:80}") == {
        "a": "012", "b": "no", "c": "1.50", "d": None, "e": None, "f": "", "g": "8080:80",
    }  # fmt: skip


def test_merge_keys() -> None:
    text = """
    a: &a {x: 1, y: 1}
    b: &b {y: 2, z: 2}
    own: {<<: *a, y: 3}
    several: {<<: [*a, *b]}
    twice:
      <<: *a
      k: {<<: *b}
    """
    found = read(text)
    assert found["own"] == {"x": "1", "y": "3"}
    assert found["several"] == {"x": "1", "y": "1", "z": "2"}
    assert found["twice"] == {"k": {"y": "2", "z": "2"}, "x": "1", "y": "1"}


def test_places_are_those_of_the_anchor() -> None:
    tree, _ = read_tree("f", "a: &a\n  x: 1\nb:\n  <<: *a\n", {})
    assert isinstance(tree, Fields)
    other = tree.entries["b"]
    assert isinstance(other, Fields)
    assert str(other.keys["x"]) == "f:2"


def test_an_alias_bomb_is_read_at_once() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    tree, _ = read_tree("f", "\n".join(lines), {})
    assert isinstance(tree, Fields)
    assert len(tree.entries) == 30


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "f:1: not valid YAML"),
        ("a: 1\n\tb: 2", "f:2: not valid YAML"),
        ("a: *no", "f:1: not valid YAML: found undefined alias"),
        ("a: &a [*a]", "f:1: an alias inside of what it stands for"),
        ("a: {<<: x}", "f:1: `<<` takes a mapping"),
        ("a: 1\nb: 2\na: 3", "f:3: `a` is given twice (first on line 1)"),
        ("[a]: 1", "f:1: a key must be a word"),
        ("a: !reset null", "f:1: the tag `!reset` is not supported"),
        ('a: "\\ud800"', "f:1: a \\u escape names half a character"),
        ("a: 1\n---\nb: 1", "f:2: not valid YAML"),
        ("", "f: the file is empty"),
        ("%YAML 9.9\n---\na: 1", "not valid YAML"),
        ('a: "\\UFFFFFFFF"', "f: not valid YAML (OverflowError)"),
        ("a: " + "[" * 60 + "]" * 60, "f:1: nested too deeply"),
        ("[" * 5000, "f: nested too deeply"),
    ],
)
def test_what_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(text)
    assert message in refused.value.message


def test_without_variables_a_dollar_means_nothing() -> None:
    assert plain(read_tree("f", "a: $5 ${", None)[0]) == {"a": "$5 ${"}
