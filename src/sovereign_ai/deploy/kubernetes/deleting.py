"""Takes a stack out of its cluster, and follows until it is gone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from sovereign_ai.console import Progress
from sovereign_ai.deploy.kubernetes.applying import Steps, Tell
from sovereign_ai.deploy.kubernetes.connection import FORBIDDEN
from sovereign_ai.deploy.kubernetes.diagnosis import of_workload
from sovereign_ai.deploy.kubernetes.difference import Found
from sovereign_ai.deploy.kubernetes.door import Door
from sovereign_ai.deploy.kubernetes.kinds import POD, WORKLOADS, kind_of, name_of, title
from sovereign_ai.deploy.kubernetes.pruning import to_delete
from sovereign_ai.errors import ClusterRefused, DeployError
from sovereign_ai.render.kubernetes.labels import Object, owned

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
    """Pods end after what they belong to, and hold their cards until then. Raises DeployError with what holds
    the rest where it takes longer."""
    end = clock() + timeout_s
    left = {title(one): one for one in (*objects, *_pods(door, objects))}
    total = len(left)
    while left := {name: now for name, one in left.items() if (now := _still(door, one))}:
        progress.update(total - len(left), total=total, note=f"still there: {', '.join(left)}")
        if clock() >= end:
            held = "\n".join(f"  {name}{_held(now)}" for name, now in left.items())
            raise DeployError(f"deleted, but not gone after {timeout_s:.0f} s:\n{held}")
        sleep(ROUND_S)
    progress.update(total, note="")


def _pods(door: Door, objects: Sequence[Object]) -> list[Object]:
    """Of the workloads among them. None where they may not be listed: they end all the same."""
    workloads = [one for one in objects if one["kind"] in [kind.name for kind in WORKLOADS]]
    namespaces = {str(one["metadata"]["namespace"]) for one in workloads}
    try:
        pods = [pod for name in namespaces for pod in door.listed(POD, name, owned(name))[0]]
    except ClusterRefused as error:
        if error.code != FORBIDDEN:
            raise
        return []
    return [pod for one in workloads for pod in of_workload(one, pods)]


def _still(door: Door, one: Object) -> Object | None:
    """The same object, not a new one of its name."""
    kind = POD if one["kind"] == POD.name else kind_of(one)
    now = door.read(kind, str(one["metadata"].get("namespace", "")), name_of(one))
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
