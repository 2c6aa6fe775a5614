"""Takes a stack out of its cluster, and follows until it is gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sovereign_ai.console import Progress
from sovereign_ai.deploy.kubernetes.applying import Steps, Tell
from sovereign_ai.deploy.kubernetes.difference import Found
from sovereign_ai.deploy.kubernetes.door import Door
from sovereign_ai.deploy.kubernetes.kinds import kind_of, name_of, title
from sovereign_ai.deploy.kubernetes.pruning import to_delete
from sovereign_ai.errors import DeployError
from sovereign_ai.render.kubernetes.labels import Object

ROUND_S = 1.0
COMMAND = "sovereign delete --cluster"


class Doomed(NamedTuple):
    """What would go, in order; notes of what could not be looked at; whether no other stack is there."""

    going: tuple[Object, ...]
    notes: tuple[str, ...]
    is_alone: bool


def doomed(door: Door, namespace: str, *, with_storage: bool) -> Doomed:
    found = Found(door, namespace)
    alone = found.is_alone
    going = to_delete(namespace, found.all, alone=alone, with_storage=with_storage)
    return Doomed(going, found.notes, alone)


def delete(door: Door, objects: Sequence[Object], tell: Tell) -> None:
    """Raises HalfApplied where it is stopped in between."""
    steps = Steps("deleted", objects, COMMAND, tell)
    for one in objects:
        with steps.step(one, "deleted"):
            door.delete(one)


def until_gone(
    door: Door,
    objects: Sequence[Object],
    progress: Progress,
    timeout_s: float,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Raises DeployError with what holds the rest where it takes longer."""
    end = clock() + timeout_s
    left = {title(one): one for one in objects}
    while left := {name: now for name, one in left.items() if (now := _still(door, one))}:
        progress.update(len(objects) - len(left), note=f"still there: {', '.join(left)}")
        if clock() >= end:
            held = "\n".join(f"  {name}{_held(now)}" for name, now in left.items())
            raise DeployError(f"deleted, but not gone after {timeout_s:.0f} s:\n{held}")
        sleep(ROUND_S)
    progress.update(len(objects), note="")


def _still(door: Door, one: Object) -> Object | None:
    """The same object, not a new one of its name."""
    now = door.read(kind_of(one), str(one["metadata"].get("namespace", "")), name_of(one))
    if now is None or now["metadata"].get("uid") != one["metadata"].get("uid"):
        return None
    return now


def _held(one: Object) -> str:
    finalizers = one["metadata"].get("finalizers") or (one.get("spec") or {}).get("finalizers") or ()
    conditions = (one.get("status") or {}).get("conditions") or ()
    waits = [
        str(each["message"]) for each in conditions if each.get("status") == "True" and "message" in each
    ]
    words = [f"held by {', '.join(finalizers)}"] if finalizers else []
    return ": " + "; ".join([*words, *waits]) if words or waits else ""
