"""Where each value of a JSON text stands: what lets an error name a line. Pure."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

Step = str | int
Steps = tuple[Step, ...]

DEEPEST = 32
"""Levels that places are kept for. An inventory has six; a text of a million brackets must cost no memory."""

_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+')


class Places(NamedTuple):
    """The line of every value, from 1; `twice` has the keys that an object holds more than once."""

    lines: dict[Steps, int]
    twice: tuple[tuple[Steps, int], ...]

    def line(self, steps: Steps) -> int:
        """Of the value at `steps`, or of the nearest one around it."""
        while steps and steps not in self.lines:
            steps = steps[:-1]
        return self.lines.get(steps, 1)


def find_places(text: str) -> Places:
    """Walk over `text`, which must be JSON: it is not checked here (else IndexError or ValueError).

    `around` holds the steps to the value that comes next; None where a key comes next.
    """
    lines: dict[Steps, int] = {}
    twice: list[tuple[Steps, int]] = []
    around: list[Step | None] = []
    line, counted = 1, 0
    for match in _WORD.finditer(text):
        word = match[0]
        line += text.count("\n", counted, match.start())
        counted = match.start()
        if word in ("}", "]"):
            around.pop()
        elif word == ",":
            around[-1] = around[-1] + 1 if isinstance(around[-1], int) else None
        elif around and around[-1] is None:
            around[-1] = json.loads(word)
            if len(around) <= DEEPEST:
                _note(tuple(around), line, lines, twice)  # type: ignore[arg-type]
        elif word != ":":
            if len(around) <= DEEPEST:
                lines.setdefault(tuple(around), line)  # type: ignore[arg-type]
            if word in ("{", "["):
                around.append(None if word == "{" else 0)
    return Places(lines, tuple(twice))


def _note(steps: Steps, line: int, lines: dict[Steps, int], twice: list[tuple[Steps, int]]) -> None:
    if steps in lines:
        twice.append((steps, line))
    lines.setdefault(steps, line)


def spell(steps: Steps) -> str:
    """("nodes", 0, "devices", 3, "id") → 'nodes[0].devices[3].id'."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps).lstrip(".")


def read_steps(path: str) -> Steps:
    """msgspec's '$.nodes[0].devices[...]' → ("nodes", 0, "devices"). Steps that it does not know end it."""
    steps: list[Step] = []
    for name, number in re.findall(r"\.(\w+)|\[(\d+|\.\.\.)\]", path):
        if number == "...":
            break
        steps.append(int(number) if number else name)
    return tuple(steps)
