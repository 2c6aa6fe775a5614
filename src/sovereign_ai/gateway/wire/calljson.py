"""One tool call as models write it, `{"name": …, "arguments": {…}}`, read while it is being written.

A machine over single characters: however the text is cut into pieces, it goes through the same states. What
it keeps is the call's beginning, until the name is known; from then on arguments pass through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

_NAMES = ("name",)
_ARGUMENTS = ("arguments", "parameters")
_SPACE = " \t\r\n"


class Span:
    """Finds the end of one JSON value. `take` is given its characters, first to last."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = self._begun = self._scalar = False

    def take(self, char: str) -> bool:
        """Whether the value ends with this character."""
        if self._in_string:
            return self._take_in_string(char)
        if char == '"':
            self._in_string = self._begun = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            return self._depth == 0
        elif self._depth == 0:
            self._scalar = True
        return False

    def ends_before(self, char: str) -> bool:
        """Whether the value ended with the character before this one: numbers and words have no end mark."""
        return self._scalar and char in ",}]" + _SPACE

    def _take_in_string(self, char: str) -> bool:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False
            return self._depth == 0
        return False


class CallReader:
    """`take` characters until `done` or `failed`.

    `start` is called once with the name, `write` with pieces of the arguments. A call whose name is not
    `known`, or what is no call at all, fails before `start`; `raw` is then all that was taken.
    """

    def __init__(
        self, known: Callable[[str], bool], start: Callable[[str], None], write: Callable[[str], None]
    ):
        self._known, self._start, self._write = known, start, write
        self._state: Callable[[str], None] = self._open
        self._span, self._key = Span(), ""
        self._value: list[str] = []
        self._waiting: list[str] = []
        self._raw: list[str] = []
        self.started = self.done = self.failed = False

    @property
    def raw(self) -> str:
        return "".join(self._raw)

    def take(self, char: str) -> None:
        if not self.started:
            self._raw.append(char)
        self._state(char)

    def _open(self, char: str) -> None:
        if char == "{":
            self._state = self._before_key
        elif char not in _SPACE:
            self.failed = True

    def _before_key(self, char: str) -> None:
        if char == "}":
            self._close()
        elif char == '"':
            self._begin(self._in_key)
            self._in_key(char)
        elif char != "," and char not in _SPACE:
            self.failed = True

    def _in_key(self, char: str) -> None:
        self._value.append(char)
        if self._span.take(char):
            self._key = str(self._decoded())
            self._state = self._before_value

    def _before_value(self, char: str) -> None:
        if char == ":":
            self._state = self._at_value
        elif char not in _SPACE:
            self.failed = True

    def _at_value(self, char: str) -> None:
        if char in _SPACE:
            return
        if char in ",}]:":
            self.failed = True
            return
        passes = self._key in _ARGUMENTS and char != '"'
        self._begin(self._in_arguments if passes else self._in_value)
        self._state(char)

    def _in_value(self, char: str) -> None:
        if self._span.ends_before(char):
            self._keep()
            self._before_key(char)
            return
        self._value.append(char)
        if self._span.take(char):
            self._keep()

    def _in_arguments(self, char: str) -> None:
        if self._span.ends_before(char):
            self._state = self._before_key
            self._before_key(char)
            return
        self._pass_on(char)
        if self._span.take(char):
            self._state = self._before_key

    def _begin(self, state: Callable[[str], None]) -> None:
        self._span, self._value, self._state = Span(), [], state

    def _keep(self) -> None:
        """A name, arguments that are JSON in a text, or something that is nothing to us."""
        self._state = self._before_key
        value = self._decoded()
        if self._key in _NAMES and not self.started:
            self._name(value)
        elif self._key in _ARGUMENTS:
            self._pass_on(str(value))

    def _name(self, name: Any) -> None:
        if not isinstance(name, str) or not self._known(name):
            self.failed = True
            return
        self.started = True
        self._raw.clear()
        self._start(name)
        for text in self._waiting:
            self._write(text)
        self._waiting.clear()

    def _pass_on(self, text: str) -> None:
        if self.started:
            self._write(text)
        else:
            self._waiting.append(text)

    def _close(self) -> None:
        self.done, self.failed = self.started, not self.started

    def _decoded(self) -> Any:
        try:
            return msgspec.json.decode("".join(self._value))
        except msgspec.DecodeError:
            self.failed = True
            return ""
