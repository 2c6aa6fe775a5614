"""Which pods an apply restarts, and for how long their work stops. Pure."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from sovereign_ai.deploy.kubernetes.comparing import normal
from sovereign_ai.deploy.kubernetes.kinds import DAEMON_SET, WORKLOADS, title
from sovereign_ai.render.kubernetes.labels import Object

PERIOD_S, FAILURES, GRACE_S = 10, 3, 30
"""Kubernetes' own values of `periodSeconds`, `failureThreshold` and `terminationGracePeriodSeconds`."""

How = Literal["starts", "restarts", "stops"]


class Restart(NamedTuple):
    object: str
    how: How
    down: bool
    """Whether nothing of it serves meanwhile."""
    at_most_s: int | None
    """Until the new pod is ready: the grace of the old one where both cannot be there at once, and the
    startup probe's budget. Not in it: the pull of an image. None where no probe bounds it."""


def restart(live: Object | None, after: Object) -> Restart | None:
    """`after`: as the API server says that it will be. None where no pod is touched."""
    if after["kind"] not in [kind.name for kind in WORKLOADS]:
        return None
    template = after["spec"]["template"]
    budget = startup_s(template)
    if live is None:
        return Restart(title(after), "starts", False, budget)
    if normal(live)["spec"]["template"] == template:
        return None
    down = _goes_first(after)
    if budget is not None and down:
        budget += template["spec"].get("terminationGracePeriodSeconds", GRACE_S)
    return Restart(title(after), "restarts", down, budget)


def stop(live: Object) -> Restart | None:
    """Of what is pruned."""
    if live["kind"] not in [kind.name for kind in WORKLOADS]:
        return None
    return Restart(title(live), "stops", True, None)


def startup_s(template: Object) -> int | None:
    """The longest that a startup probe of a container waits, as an upper bound of what loading takes."""
    probes = [one["startupProbe"] for one in template["spec"]["containers"] if "startupProbe" in one]
    return max(map(_budget_s, probes), default=None)


def _budget_s(probe: dict[str, Any]) -> int:
    period, failures = probe.get("periodSeconds", PERIOD_S), probe.get("failureThreshold", FAILURES)
    return int(probe.get("initialDelaySeconds", 0)) + int(period) * int(failures)


def _goes_first(one: Object) -> bool:
    """Whether the old pods are gone before new ones are ready. A DaemonSet's: on one node after another."""
    if one["kind"] == DAEMON_SET.name:
        return True
    strategy, replicas = one["spec"].get("strategy") or {}, int(one["spec"].get("replicas", 1))
    if strategy.get("type") == "Recreate":
        return True
    unavailable = str((strategy.get("rollingUpdate") or {}).get("maxUnavailable", "25%"))
    if unavailable.endswith("%"):
        return replicas * int(unavailable[:-1]) // 100 >= replicas
    return int(unavailable) >= replicas
