"""How a difference and the state of a stack are shown."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sovereign_ai.console import Console, human_seconds
from sovereign_ai.deploy.kubernetes.comparing import Change, below
from sovereign_ai.deploy.kubernetes.difference import Difference, Outcome
from sovereign_ai.deploy.kubernetes.history import Revision
from sovereign_ai.deploy.kubernetes.kinds import title
from sovereign_ai.deploy.kubernetes.restarts import Restart
from sovereign_ai.render.kubernetes.labels import PLAN_HASH

STYLES = {"new": "green", "changed": "yellow", "unchanged": "dim", "pruned": "red", "refused": "bold red"}
LONGEST = 160
"""Characters of a value. What is longer is cut; `--json` has all of it."""


class Row(NamedTuple):
    """Of a stack's state. `ready` None: ready by being there; `counts`: whether the stack waits for it."""

    object: str
    ready: bool | None
    words: str
    trouble: str
    counts: bool


def show(
    console: Console, found: Difference, namespace: str, version: str, *, unchanged: bool = True
) -> None:
    console.say(f"namespace {namespace}, Kubernetes {version}", style="bold")
    for one in found.outcomes:
        if unchanged or one.state != "unchanged" or one.adopts:
            _show_outcome(console, one)
    for pruned in found.pruned:
        console.say(f"{'pruned':<9} {title(pruned)}", style=STYLES["pruned"])
    for restart in found.restarts:
        console.say(f"→ {restart_words(restart)}")
    console.say(summary(found))
    for note in found.notes:
        console.note(note)


def _show_outcome(console: Console, one: Outcome) -> None:
    console.say(f"{one.state:<9} {title(one.object)}{_aside(one)}", style=STYLES[one.state])
    for change in _telling(one.changes):
        for line in change_lines(change):
            console.say(f"            {line}")
    for conflict in one.conflicts:
        console.say(f"            {conflict.field} belongs to `{conflict.manager}`")


def _telling(changes: Sequence[Change]) -> list[Change]:
    """Without the plan's hash, which every object carries."""
    return [change for change in changes if change.path != below("metadata.annotations", PLAN_HASH)]


def _aside(one: Outcome) -> str:
    if one.refusal:
        return f": {one.refusal}"
    if one.unchecked:
        return " (not tried: its namespace is not there yet)"
    if one.changes and not _telling(one.changes):
        return " (the plan's hash alone)"
    return " (its fields become ours)" if one.adopts else ""


def change_lines(change: Change) -> Iterator[str]:
    """`path: old -> new`; of texts of several lines those that differ."""
    if isinstance(change.old, str) and isinstance(change.new, str) and "\n" in change.old + change.new:
        yield f"{change.path}:"
        lines = difflib.unified_diff(change.old.splitlines(), change.new.splitlines(), lineterm="", n=0)
        yield from (f"  {_cut(line)}" for line in list(lines)[2:] if not line.startswith("@@"))
    else:
        yield f"{change.path}: {_value(change.old)} -> {_value(change.new)}"


def _value(value: Any) -> str:
    return "nothing" if value is None else _cut(json.dumps(value, ensure_ascii=False))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def restart_words(one: Restart) -> str:
    if one.how == "stops":
        return f"{one.object} stops for good"
    time = "for as long as it loads" if one.at_most_s is None else f"at most {_about(one.at_most_s)}"
    if one.how == "starts":
        return f"{one.object} starts: ready after {time}"
    if one.down:
        return f"{one.object} restarts: it is down until the new pod is ready, {time}"
    return f"{one.object} restarts pod by pod and answers all the while, {time} each"


def _about(seconds: int) -> str:
    return human_seconds(float(seconds)) if seconds < 120 else f"{round(seconds / 60)} min"


def summary(found: Difference) -> str:
    counts = Counter[str](one.state for one in found.outcomes)
    parts = [f"{counts[state]} {state}" for state in STYLES if counts[state]]
    if found.pruned:
        parts.append(f"{len(found.pruned)} pruned")
    return ", ".join(parts)


def as_data(found: Difference, namespace: str, version: str) -> dict[str, Any]:
    return {
        "namespace": namespace,
        "kubernetes": version,
        "differs": not found.is_empty,
        "objects": [
            {
                "object": title(one.object),
                "state": one.state,
                "changes": [change._asdict() for change in one.changes],
                "conflicts": [conflict._asdict() for conflict in one.conflicts],
                "refusal": one.refusal,
                "tried": not one.unchecked,
            }
            for one in found.outcomes
        ],
        "pruned": [title(one) for one in found.pruned],
        "restarts": [one._asdict() for one in found.restarts],
        "notes": list(found.notes),
    }


def show_status(
    console: Console, namespace: str, rows: Sequence[Row], revisions: Sequence[Revision], *, is_ready: bool
) -> None:
    kept = [{"revision": one.number, "applied_at": one.applied_at} for one in revisions]
    if console.json:
        objects = [{key: value for key, value in row._asdict().items() if key != "counts"} for row in rows]
        console.data({"namespace": namespace, "ready": is_ready, "objects": objects, "revisions": kept})
        return
    if not any(row.counts for row in rows):
        left = f"; left are {', '.join(row.object for row in rows)}" if rows else ""
        console.say(f"nothing of ours runs in namespace {namespace}{left}")
        return
    console.table(
        f"Namespace {namespace}: {'ready' if is_ready else 'not ready'}",
        ["object", "state", "trouble"],
        [[row.object, row.words or "there", row.trouble] for row in rows],
    )
    if kept:
        numbers = ", ".join(f"{one.number} ({one.applied_at})" for one in revisions)
        console.say(f"kept for rollback: revision {numbers}")
