"""An answer's text → what is said in it and what is called, piece by piece as it is generated.

Models write calls in the form they were trained with:

    Hermes, Qwen    <tool_call>{"name": …, "arguments": {…}}</tool_call>, several one after the other
    Llama 3         {"name": …, "parameters": {…}}, the whole answer; several with `;` between
    Mistral         [TOOL_CALLS] [{"name": …, "arguments": {…}}, …], later [TOOL_CALLS]name[ARGS]{…}

and an answer that must be a call is, by the grammar that the engine is given, a list of such objects or the
arguments alone. All readers are machines over single characters with a bounded memory, so that any cutting
into pieces gives the same result, and the last token costs what the first did. What looks like a call and is
none (broken, or of a function that nobody declared) is text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, Protocol

import msgspec

from sovereign_ai.gateway.wire.calljson import CallReader, Span
from sovereign_ai.gateway.wire.tools import HERMES_CLOSE, HERMES_OPEN, Calling

Form = Literal["hermes", "llama", "mistral"]

MISTRAL_OPEN, MISTRAL_ARGUMENTS = "[TOOL_CALLS]", "[ARGS]"
LLAMA_OPEN = "<|python_tag|>"
MAX_NAME = 200
"""Characters between Mistral's mark and the arguments: a name of at most 64 and marks of its own."""

_SPACE = " \t\r\n"


class Said(msgspec.Struct, frozen=True):
    text: str


class Called(msgspec.Struct, frozen=True):
    """A call begins: the `number`th of the answer, from 0."""

    number: int
    name: str


class Arguments(msgspec.Struct, frozen=True):
    """Some more of a call's arguments."""

    number: int
    text: str


Piece = Said | Called | Arguments


class Reader(Protocol):
    def feed(self, text: str) -> list[Piece]:
        """What this text adds."""
        ...

    def end(self) -> list[Piece]:
        """What was held back and turns out to be text."""
        ...


def form_of(template: str) -> Form | None:
    """How a model writes calls, by the marks in its chat template; None where no mark is known."""
    if HERMES_OPEN in template and "<function=" not in template:
        return "hermes"
    if MISTRAL_OPEN in template:
        return "mistral"
    return "llama" if LLAMA_OPEN in template or '"parameters"' in template else None


def reader_for(calling: Calling, form: Form | None) -> Reader:
    """`form`: how the model writes calls; not needed where a call is forced."""
    if calling.named:
        return Whole(calling.choice)
    known = calling.names.__contains__
    if calling.forced:
        return List(known, parallel=calling.parallel)
    kinds: dict[Form | None, type[_Machine]] = {"hermes": Hermes, "llama": Llama, "mistral": Mistral}
    return kinds[form](known, parallel=calling.parallel)


class Whole:
    """All of the text is the arguments of one call."""

    def __init__(self, name: str) -> None:
        self._begun: list[Piece] = [Called(0, name)]

    def feed(self, text: str) -> list[Piece]:
        begun, self._begun = self._begun, []
        return [*begun, Arguments(0, text)] if text else begun

    def end(self) -> list[Piece]:
        return self.feed("")


class _Machine(ABC):
    """What the readers share: the pieces so far, held back spaces, and the call under way.

    Spaces around calls are layout, and at the end of an answer with calls too: they are held back until some
    other text follows. A state is a method that takes one character.
    """

    def __init__(self, known: Callable[[str], bool], *, parallel: bool = True) -> None:
        self._known, self._parallel = known, parallel
        self._pieces: list[Piece] = []
        self._calls = 0
        self._spaces: list[str] = []
        self._held = ""
        self._state: Callable[[str], None] = self._begin
        self._call = self._new_call()

    def feed(self, text: str) -> list[Piece]:
        for char in text:
            self._state(char)
        pieces, self._pieces = _joined(self._pieces), []
        return pieces

    def end(self) -> list[Piece]:
        if self._state == self._in_call and not self._call.started:
            self._say(self._held + self._call.raw)
        elif self._state != self._in_call:
            self._say(self._held)
        if not self._calls and self._spaces:
            self._pieces.append(Said("".join(self._spaces)))
        pieces, self._pieces = _joined(self._pieces), []
        return pieces

    @abstractmethod
    def _begin(self, char: str) -> None:
        """The first state."""

    @abstractmethod
    def _after_call(self) -> None:
        """Set the state after a complete call."""

    @abstractmethod
    def _no_call(self) -> None:
        """Set the state after what turned out to be no call."""

    def _say(self, text: str) -> None:
        for char in text:
            if char in _SPACE:
                self._spaces.append(char)
            else:
                self._pieces.append(Said("".join(self._spaces) + char))
                self._spaces.clear()

    def _new_call(self) -> CallReader:
        return CallReader(self._known, self._start, self._write)

    def _start(self, name: str) -> None:
        self._pieces.append(Called(self._calls, name))
        self._calls += 1
        self._spaces.clear()

    def _write(self, text: str) -> None:
        self._pieces.append(Arguments(self._calls - 1, text))

    def _expect_call(self, held: str) -> None:
        """`held`: what led here, which is text after all if no call follows."""
        self._held, self._call, self._state = held, self._new_call(), self._in_call

    def _in_call(self, char: str) -> None:
        call = self._call
        call.take(char)
        if call.failed and call.started:
            # the client has its beginning: nothing can be taken back
            self._held, self._state = "", self._skip
        elif call.failed:
            held, self._held = self._held, ""
            self._say(held + call.raw)
            self._no_call()
        elif call.done:
            self._held = ""
            self._finished()

    def _finished(self) -> None:
        if self._parallel:
            self._after_call()
        else:
            self._state = self._skip

    def _skip(self, char: str) -> None:
        """The rest of the answer counts for nothing."""
        self._held = ""

    def _plain(self, char: str) -> None:
        """The rest of the answer is text."""
        self._say(char)

    def _matched(self, char: str, *marks: str) -> str:
        """The mark that the text just taken ends in, or ""; what cannot be a mark's beginning is said."""
        self._held += char
        while not any(mark.startswith(self._held) for mark in marks):
            self._say(self._held[0])
            self._held = self._held[1:]
        return self._held if self._held in marks else ""


class Hermes(_Machine):
    def _begin(self, char: str) -> None:
        if self._matched(char, HERMES_OPEN):
            self._expect_call(HERMES_OPEN)

    def _after_call(self) -> None:
        self._state = self._behind

    def _behind(self, char: str) -> None:
        """Behind a call, whose closing mark some models forget."""
        match self._matched(char, HERMES_OPEN, HERMES_CLOSE):
            case "<tool_call>":
                self._expect_call(HERMES_OPEN)
            case "</tool_call>":
                self._held = ""

    def _no_call(self) -> None:
        self._state = self._begin

    def end(self) -> list[Piece]:
        if self._state == self._behind:
            self._held = ""  # the beginning of a mark that the answer's limit cut off
        return super().end()


class Llama(_Machine):
    """Only an answer that begins with a call has calls."""

    def _begin(self, char: str) -> None:
        if char in _SPACE and not self._held:
            self._say(char)
        elif char == "{" and not self._held:
            self._expect_call("")
            self._in_call(char)
        elif self._matched(char, LLAMA_OPEN):
            self._expect_call(LLAMA_OPEN)
        elif not self._held:
            self._state = self._plain

    def _after_call(self) -> None:
        self._state = self._between

    def _between(self, char: str) -> None:
        if char == ";":
            self._expect_call(char)
        else:
            self._say(char)

    def _no_call(self) -> None:
        self._state = self._plain


class List(_Machine):
    """A JSON list of calls and nothing else."""

    def _begin(self, char: str) -> None:
        if char == "[":
            self._expect_call(char)
        elif char in _SPACE:
            self._say(char)
        else:
            self._state = self._plain
            self._plain(char)

    def _after_call(self) -> None:
        self._state = self._between

    def _between(self, char: str) -> None:
        if char == ",":
            self._expect_call(char)
        elif char == "]":
            self._state = self._plain
        else:
            self._say(char)

    def _no_call(self) -> None:
        self._state = self._plain


class Mistral(List):
    _mark = _name = ""
    _span = Span()

    def _begin(self, char: str) -> None:
        if self._matched(char, MISTRAL_OPEN):
            self._state = self._after_mark

    def _after_mark(self, char: str) -> None:
        if char == "[":
            self._expect_call(self._held + char)
        elif char in _SPACE:
            self._held += char
        else:
            self._mark, self._name, self._state = self._held, char, self._in_name

    def _in_name(self, char: str) -> None:
        if char != "{":
            self._name += char
            if len(self._name) > MAX_NAME:
                self._refuse_name()
            return
        name = self._name.partition("[")[0].strip()
        if not self._known(name):
            self._name += char
            self._refuse_name()
            return
        self._held = ""
        self._start(name)
        self._span, self._state = Span(), self._in_arguments
        self._in_arguments(char)

    def _in_arguments(self, char: str) -> None:
        self._write(char)
        if self._span.take(char):
            self._state = self._begin if self._parallel else self._skip

    def _refuse_name(self) -> None:
        self._held, self._state = "", self._plain
        self._say(self._mark + self._name)

    def end(self) -> list[Piece]:
        if self._state == self._in_name:
            self._refuse_name()
        if self._state == self._in_arguments:
            self._state = self._skip
        return super().end()


def _joined(pieces: list[Piece]) -> list[Piece]:
    """One piece for what belongs together."""
    made: list[Piece] = []
    run: list[str] = []
    for index, piece in enumerate(pieces):
        if isinstance(piece, Called):
            made.append(piece)
            continue
        run.append(piece.text)
        after = pieces[index + 1] if index + 1 < len(pieces) else None
        if type(after) is not type(piece) or getattr(after, "number", 0) != getattr(piece, "number", 0):
            made.append(msgspec.structs.replace(piece, text="".join(run)))
            run = []
    return made
