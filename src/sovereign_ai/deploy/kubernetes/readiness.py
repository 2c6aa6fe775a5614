"""Whether an object is ready, from its status. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from sovereign_ai.deploy.kubernetes.kinds import DAEMON_SET, DEPLOYMENT
from sovereign_ai.render.kubernetes.labels import Object

DEADLINE = "ProgressDeadlineExceeded"


class Readiness(NamedTuple):
    ready: bool
    words: str
    failed: str = ""
    """Why it will not become ready; "" while it still may."""


def readiness(one: Object) -> Readiness | None:
    """None for what is ready by being there."""
    judge = _JUDGES.get(one["kind"])
    return judge(one) if judge else None


def _deployment(one: Object) -> Readiness:
    status, wanted = one.get("status") or {}, one["spec"].get("replicas", 1)
    updated, available, all_ = (
        status.get(key, 0) for key in ("updatedReplicas", "availableReplicas", "replicas")
    )
    ready = _observed(one) and updated == all_ == wanted and available >= wanted
    return Readiness(ready, f"{available} of {wanted} ready", "" if ready else _stalled(one))


def _stalled(one: Object) -> str:
    if not _observed(one):
        return ""
    for condition in (one.get("status") or {}).get("conditions") or ():
        if condition.get("type") == "Progressing" and condition.get("reason") == DEADLINE:
            return str(condition.get("message") or DEADLINE)
    return ""


def _daemon_set(one: Object) -> Readiness:
    status = one.get("status") or {}
    wanted, updated, available = (
        status.get(key, 0) for key in ("desiredNumberScheduled", "updatedNumberScheduled", "numberAvailable")
    )
    ready = _observed(one) and updated >= wanted and available >= wanted
    return Readiness(ready, f"{available} of {wanted} ready")


def _observed(one: Object) -> bool:
    """Whether the status is of what was last written."""
    seen: int = (one.get("status") or {}).get("observedGeneration", 0)
    return seen >= int(one["metadata"].get("generation", 1))


def _phase(expected: tuple[str, ...]) -> Any:
    def judge(one: Object) -> Readiness:
        phase = str((one.get("status") or {}).get("phase") or "Pending")
        return Readiness(phase in expected, phase.lower())

    return judge


_JUDGES: dict[str, Any] = {
    DEPLOYMENT.name: _deployment,
    DAEMON_SET.name: _daemon_set,
    "PersistentVolumeClaim": _phase(("Bound",)),
    "PersistentVolume": _phase(("Bound", "Available")),
    "Namespace": _phase(("Active",)),
}
