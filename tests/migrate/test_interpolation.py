from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sovereign_ai.errors import ConfigError
from sovereign_ai.migrate.interpolation import LONGEST, fill

VARIABLES = {"A": "one", "EMPTY": "", "B": "two"}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("plain", "plain"),
        ("$A", "one"),
        ("${A}", "one"),
        ("x${A}y$B.z", "xoneytwo.z"),
        ("$$A", "$A"),
        ("$${A}", "${A}"),
        ("${A:-d}", "one"),
        ("${NO:-d}", "d"),
        ("${NO-d}", "d"),
        ("${EMPTY:-d}", "d"),
        ("${EMPTY-d}", ""),
        ("${NO:-${B}}", "two"),
        ("${NO:-${NOT:-$B}}", "two"),
        ("${NO:-a:b-c}", "a:b-c"),
        ("${A:+there}", "there"),
        ("${EMPTY:+there}", ""),
        ("${EMPTY+there}", "there"),
        ("${NO+there}", ""),
        ("${A:?say}", "one"),
        ("${NO:-}", ""),
    ],
)
def test_every_form(text: str, filled: str) -> None:
    assert fill(text, VARIABLES, "f:1") == (filled, ())


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("$NO", (("NO", ""),)),
        ("${NO}x$NOT", (("NO", ""), ("NOT", ""))),
        ("${NO:?set it}", (("NO", "set it"),)),
        ("${EMPTY:?set it}", (("EMPTY", "set it"),)),
        ("${NO?set $A}", (("NO", "set one"),)),
        ("${NO:-$NOT}", (("NOT", ""),)),
    ],
)
def test_a_variable_without_a_value_is_told(text: str, missing: tuple[tuple[str, str], ...]) -> None:
    assert fill(text, VARIABLES, "f:1").missing == missing


@pytest.mark.parametrize(
    "text", ["$", "a$ b", "$1", "${", "${A", "${}", "${A B}", "${1}", "${A:-${B}", "$(date)"]
)
def test_a_dollar_that_begins_no_variable_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"f:1: a `\$") as refused:
        fill(text, VARIABLES, "f:1")
    assert "$$" in refused.value.hint


def test_growth_is_bounded() -> None:
    with pytest.raises(ConfigError, match="longer than"):
        fill("$A$A", {"A": "x" * (LONGEST // 2 + 1)}, "f:1")
    with pytest.raises(ConfigError, match="too deeply"):
        fill("${X:-" * 50 + "}" * 50, {}, "f:1")


@given(st.text(st.characters(exclude_characters="$"), max_size=50))
def test_text_without_a_dollar_stays(text: str) -> None:
    assert fill(text, VARIABLES, "f:1") == (text, ())


@given(st.text(max_size=50))
def test_doubled_dollars_are_dollars(text: str) -> None:
    assert fill(text.replace("$", "$$"), VARIABLES, "f:1") == (text, ())


@given(st.text("${}AB:-?+ $", max_size=30))
def test_any_text_is_filled_in_or_refused(text: str) -> None:
    try:
        filled = fill(text, VARIABLES, "f:1")
    except ConfigError:
        return
    assert filled.text is not None
