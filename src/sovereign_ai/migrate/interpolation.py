"""Variables of compose files: `$NAME`, `${NAME}`, `${NAME:-default}`, `${NAME:?text}`, `${NAME:+text}`, `$$`.

The grammar is that of https://docs.docker.com/reference/compose-file/interpolation/. Pure: the process
environment is not asked, so that a migration gives the same result wherever it is made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from sovereign_ai.errors import ConfigError

LONGEST = 64 * 1024
"""Characters of one value once it is filled in: variables made of variables can grow without bound."""

DEEPEST = 20
"""Defaults within defaults."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPERATOR = re.compile(r":?[-?+]")


class Filled(NamedTuple):
    """A text with its variables filled in; (name, message) of those without a value."""

    text: str
    missing: tuple[tuple[str, str], ...] = ()


def fill(text: str, variables: Mapping[str, str], where: str, depth: int = 0) -> Filled:
    """A variable without value and default becomes nothing, as docker compose has it, and is told.

    Raises ConfigError at `where` for a `$` that begins no variable.
    """
    if "$" not in text:
        return Filled(text)
    if depth > DEEPEST:
        raise ConfigError(f"{where}: defaults of variables are nested too deeply")
    parts: list[str] = []
    missing: list[tuple[str, str]] = []
    at = 0
    while (dollar := text.find("$", at)) >= 0:
        parts.append(text[at:dollar])
        filled, at = _variable(text, dollar + 1, variables, where, depth)
        parts.append(filled.text)
        missing += filled.missing
    whole = "".join([*parts, text[at:]])
    if len(whole) > LONGEST:
        raise ConfigError(f"{where}: longer than {LONGEST:,} characters once its variables are filled in")
    return Filled(whole, tuple(missing))


def _variable(text: str, at: int, variables: Mapping[str, str], where: str, depth: int) -> tuple[Filled, int]:
    """What stands behind the `$` before `at`, and where the text goes on."""
    if text.startswith("$", at):
        return Filled("$"), at + 1
    if name := _NAME.match(text, at):
        return _value(name[0], "", Filled(""), variables), name.end()
    if not text.startswith("{", at):
        raise _refusal(where)
    end = _closing(text, at + 1, where)
    inside = text[at + 1 : end]
    name = _NAME.match(inside)
    operator = _OPERATOR.match(inside, name.end()) if name else None
    if name is None or (operator is None and name.end() < len(inside)):
        raise _refusal(where)
    if operator is None:
        return _value(name[0], "", Filled(""), variables), end + 1
    other = fill(inside[operator.end() :], variables, where, depth + 1)
    return _value(name[0], operator[0], other, variables), end + 1


def _refusal(where: str) -> ConfigError:
    return ConfigError(f"{where}: a `$` that begins no variable", "write `$$` for a dollar sign")


def _closing(text: str, at: int, where: str) -> int:
    """The index of the brace that closes the one before `at`."""
    depth = 1
    while at < len(text):
        if text.startswith("${", at):
            depth += 1
            at += 1
        elif text[at] == "}":
            depth -= 1
            if depth == 0:
                return at
        at += 1
    raise ConfigError(f"{where}: a `${{` without its `}}`", "write `$$` for a dollar sign")


def _value(name: str, operator: str, other: Filled, variables: Mapping[str, str]) -> Filled:
    """With `:` an empty value counts as none."""
    value = variables.get(name)
    there = bool(value) if operator.startswith(":") else value is not None
    if operator.endswith("+"):
        return other if there else Filled("")
    if there:
        return Filled(value or "")
    if operator.endswith("-"):
        return other
    return Filled("", ((name, other.text if operator else ""),))
