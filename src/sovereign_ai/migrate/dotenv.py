"""`.env` and `env_file`: NAME=value lines, as docker compose reads them.

Grammar: https://docs.docker.com/compose/how-tos/environment-variables/variable-interpolation/#env-file-syntax
Pure.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Mapping
from typing import NamedTuple

from sovereign_ai.errors import ConfigError
from sovereign_ai.migrate.interpolation import fill
from sovereign_ai.migrate.tree import Missing, Place

_ASSIGNMENT = re.compile(
    r"""[ \t]*(?:export[ \t]+)?(?P<name>[A-Za-z_][A-Za-z0-9_.-]*)[ \t]*
    (?:[=:][ \t]*(?:'(?P<literal>[^']*)'|"(?P<quoted>(?:\\.|[^"\\])*)"|(?P<plain>[^\n]*)))?
    [ \t]*(?:\#[^\n]*)?(?:\n|\Z)""",
    re.VERBOSE | re.DOTALL,
)
_NOTHING = re.compile(r"[ \t]*(?:#[^\n]*)?(?:\n|\Z)")
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r"}


class Setting(NamedTuple):
    """One variable and where it is set."""

    value: str
    place: Place


def read_settings(
    path: str, text: str, variables: Mapping[str, str]
) -> tuple[dict[str, Setting], list[Missing]]:
    """The variables of a file, later ones may use earlier ones and `variables`; and those without a value.

    Raises ConfigError with file and line, never with what the line holds: it may be a secret.
    """
    found: dict[str, Setting] = {}
    values: dict[str, str] = {}
    known = ChainMap(values, dict(variables))
    missing: list[Missing] = []
    text = text.replace("\r\n", "\n")
    at, counted, number = 0, 0, 1
    while at < len(text):
        number, counted = number + text.count("\n", counted, at), at
        place = Place(path, number)
        if blank := _NOTHING.match(text, at):
            at = blank.end()
            continue
        line = _ASSIGNMENT.match(text, at)
        if line is None:
            raise ConfigError(f"{place}: not a NAME=value line")
        at = line.end()
        value = _value(line, known, place, missing)
        if value is not None:
            found[line["name"]], values[line["name"]] = Setting(value, place), value
    return found, missing


def _value(line: re.Match[str], known: Mapping[str, str], place: Place, missing: list[Missing]) -> str | None:
    """None for a name alone: docker compose takes that from the shell."""
    if line["literal"] is not None:
        return line["literal"]
    text = line["quoted"]
    if text is not None:
        text = re.sub(r"\\(.)", lambda escape: _unescaped(escape[1]), text, flags=re.DOTALL)
    elif line["plain"] is not None:
        text = re.sub(r"(^|[ \t])#.*", "", line["plain"]).strip()
    else:
        if line["name"] not in known:
            missing.append(Missing(line["name"], place, ""))
        return None
    filled = fill(text, known, str(place))
    missing += [Missing(name, place, message) for name, message in filled.missing]
    return filled.text


def _unescaped(character: str) -> str:
    """`\\$` is a dollar sign that begins no variable."""
    return _ESCAPES.get(character, "$$" if character == "$" else character)
