"""What a migration has to tell: every decision is a line with its place, none is made in silence. Pure."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

from sovereign_ai.migrate.tree import Place
from sovereign_ai.spec import Noun

Kind = Literal["carried", "changed", "assumed", "not_carried"]


class Line(Noun, frozen=True, kw_only=True):
    """One thing that the report tells. `where` is file:line; `todo` is empty where nothing is to be done."""

    kind: Kind
    where: str
    service: str
    what: str
    todo: str = ""


class Book:
    """The lines of a report while it is written. A line that is told twice is kept once."""

    def __init__(self) -> None:
        self._lines: dict[Line, Place] = {}

    def report(self) -> tuple[Line, ...]:
        """By what became of things, then in the order of the files."""
        order = get_args(Kind)
        told = self._lines.items()
        return tuple(line for line, _ in sorted(told, key=lambda one: (order.index(one[0].kind), one[1])))

    def carried(self, where: Place, service: str, what: str, todo: str = "") -> None:
        self._add("carried", where, service, what, todo)

    def changed(self, where: Place, service: str, what: str, todo: str = "") -> None:
        self._add("changed", where, service, what, todo)

    def assumed(self, where: Place, service: str, what: str, todo: str = "") -> None:
        self._add("assumed", where, service, what, todo)

    def left(self, where: Place, service: str, what: str, todo: str = "") -> None:
        """Something that is not carried over."""
        self._add("not_carried", where, service, what, todo)

    def _add(self, kind: Kind, where: Place, service: str, what: str, todo: str) -> None:
        parts = (printable(part) for part in (str(where), service, what, todo))
        place, name, said, hint = parts
        self._lines[Line(kind=kind, where=place, service=name, what=said, todo=hint)] = where


def printable(text: str) -> str:
    """A compose file can hold anything, a terminal must not be told all of it: control characters are `?`."""
    return "".join(one if one.isprintable() else "?" for one in text)


class Page(NamedTuple):
    """The book opened at one service: what its reader tells."""

    book: Book
    service: str
    place: Place

    def carried(self, where: Place, what: str, todo: str = "") -> None:
        self.book.carried(where, self.service, what, todo)

    def changed(self, where: Place, what: str, todo: str = "") -> None:
        self.book.changed(where, self.service, what, todo)

    def assumed(self, where: Place, what: str, todo: str = "") -> None:
        self.book.assumed(where, self.service, what, todo)

    def left(self, where: Place, what: str, todo: str = "") -> None:
        self.book.left(where, self.service, what, todo)
