from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.errors import ConfigError
from sovereign_ai.migrate.dotenv import read_settings


def values(text: str, **variables: str) -> dict[str, str]:
    found, _ = read_settings(".env", text, variables)
    return {name: setting.value for name, setting in found.items()}


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=one", "one"),
        ("export A=one", "one"),
        ("  A = one two  ", "one two"),
        ("A=one # comment", "one"),
        ("A=one#no", "one#no"),
        ("A=# all comment", ""),
        ("A=", ""),
        ("A: one", "one"),
        ("A='$B # x'", "$B # x"),
        ('A="$B" # x', "two"),
        ('A="a\\nb\\"c\\$B"', 'a\nb"c$B'),
        ("A='two\nlines'", "two\nlines"),
        ("A=${B}-${C:-c}", "two-c"),
        ("A=one\r", "one"),
    ],
)
def test_every_form(line: str, value: str) -> None:
    assert values(line + "\n", B="two")["A"] == value


def test_places_and_earlier_variables() -> None:
    found, missing = read_settings("x.env", "# c\n\nA=1\nB='x\ny'\nC=$A$NO\nD\n", {})
    assert [(name, one.value, str(one.place)) for name, one in found.items()] == [
        ("A", "1", "x.env:3"), ("B", "x\ny", "x.env:4"), ("C", "1", "x.env:6"),
    ]  # fmt: skip
    assert [(one.name, one.place.line) for one in missing] == [("NO", 6), ("D", 7)]


def test_a_bad_line_is_refused_without_being_shown() -> None:
    with pytest.raises(ConfigError, match=r"^x.env:2: not a NAME=value line$"):
        read_settings("x.env", "A=1\nsk-secret value\n", {})


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        read_settings("x.env", text, {})
    except ConfigError as error:
        assert error.message.startswith("x.env:")
