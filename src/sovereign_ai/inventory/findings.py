"""The words of a diagnosis: a check, what was seen, what to do. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Literal, NamedTuple, TypeVar

from sovereign_ai.spec import Noun

State = Literal["ok", "warning", "fault", "skipped"]
Facts = TypeVar("Facts")

GIB = 1 << 30


class Finding(Noun, frozen=True, kw_only=True):
    """`what` was seen, `fix` what to do about it; `check` names the question, `subject` the card or node that
    it was asked of, where there are several."""

    check: str
    state: State
    what: str
    fix: str = ""
    subject: str = ""


class Seen(NamedTuple):
    """An answer to a check, before it knows the check's name."""

    state: State
    what: str
    fix: str = ""
    subject: str = ""


class Check(NamedTuple, Generic[Facts]):
    """One question. `judge` answers at least once, whatever the facts: what does not apply is skipped with
    the reason."""

    name: str
    judge: Callable[[Facts], Iterator[Seen]]


def ask(checks: Iterable[Check[Facts]], facts: Facts) -> tuple[Finding, ...]:
    """All findings, in the order of the checks."""
    return tuple(
        Finding(check=check.name, state=seen.state, what=seen.what, fix=seen.fix, subject=seen.subject)
        for check in checks
        for seen in check.judge(facts)
    )


def ok(what: str, subject: str = "") -> Seen:
    return Seen("ok", what, "", subject)


def skipped(what: str) -> Seen:
    return Seen("skipped", what)


def warning(what: str, fix: str, subject: str = "") -> Seen:
    return Seen("warning", what, fix, subject)


def fault(what: str, fix: str, subject: str = "") -> Seen:
    return Seen("fault", what, fix, subject)


def gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
