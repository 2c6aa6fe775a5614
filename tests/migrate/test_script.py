from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.migrate.script import SHELLS, commands, program
from sovereign_ai.migrate.service import Word, placed
from sovereign_ai.migrate.tree import Place

AT = Place("f", 1)


def split(*words: str, **environment: str) -> list[list[str]]:
    values = {name: Word(value, AT) for name, value in environment.items()}
    return [[word.text for word in one] for one in commands([Word(word, AT) for word in words], values)]


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("a b", [["a", "b"]]),
        ("a && b; c | d & e", [["a"], ["b"], ["c"], ["d"], ["e"]]),
        ("a 'b c' \"d;e\"", [["a", "b c", "d;e"]]),
        ("a \\\n  b\nc", [["a", "b"], ["c"]]),
        ("# no\nX=1 exec a\n", [["a"]]),
        ("if a; then b; fi", [["a"], ["b"], ["fi"]]),
        ("for x in 1 2; do a $x; done", [["a", "1"], ["a", "2"], ["done"]]),
        ('for x in $LIST; do a "${x}"; done', [["a", "p"], ["a", "q"], ["done"]]),
        ("a $V ${V} $NO", [["a", "v", "v", "$NO"]]),
        ("a 'unclosed", [["a", "'unclosed"]]),
        ("", []),
    ],
)
def test_scripts(script: str, found: list[list[str]]) -> None:
    assert split("sh", "-c", script, V="v", LIST="p q") == found


def test_no_script_is_one_command() -> None:
    assert split("/app/llama-server", "-m", "x;y") == [["/app/llama-server", "-m", "x;y"]]
    assert program((Word("/app/llama-server", AT),)) == "llama-server"
    assert split() == []
    assert split("bash", "-c") == []
    assert split("CMD-SHELL", "a || b") == [["a"], ["b"]]
    assert split("/bin/bash", "-ec", "a") == [["a"]]


def test_lines_of_a_block() -> None:
    rows = ("- |", "  serve --one 1", "  --two ${X}", "  --three 3")
    words = placed(["serve", "--one", "1", "--two", "filled", "--three"], Place("f", 5), rows)
    assert [word.place.line for word in words] == [6, 6, 6, 7, 7, 8]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12), max_size=6))
def test_quoted_words_come_back(words: list[str]) -> None:
    """As shlex quotes them; a newline in a quote is part of the word, a comment at a line's start is not."""
    if any("\n" in word or "\r" in word or "$" in word or "\\" in word for word in words):
        return
    script = "run " + " ".join(shlex.quote(word) for word in words)
    assert split("sh", "-c", script) == [["run", *words]]


@given(st.text(max_size=60))
def test_any_script_is_split(script: str) -> None:
    for shell in SHELLS[:1]:
        split(shell, "-c", script, A="x")
