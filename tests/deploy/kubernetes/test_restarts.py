from __future__ import annotations

import copy
from typing import Any

import pytest

from sovereign_ai.deploy.kubernetes.restarts import Restart, restart, startup_s, stop
from tests.deploy.kubernetes.stacks import container, pod_of, workload


def engine(**spec: Any) -> dict[str, Any]:
    return workload("Deployment", "engine", "here", **{"strategy": {"type": "Recreate"}, **spec})


def updated(one: dict[str, Any]) -> dict[str, Any]:
    changed = copy.deepcopy(one)
    pod_of(changed)["containers"][0]["image"] = "localhost/engine:2.0"
    return changed


def test_a_new_one_starts() -> None:
    assert restart(None, engine()) == Restart("Deployment/engine", "starts", False, 300)


def test_what_stays_is_left_alone() -> None:
    assert restart({**engine(), "status": {}}, engine(replicas=3)) is None
    assert restart(None, {"kind": "ConfigMap", "metadata": {"name": "x"}}) is None


def test_recreate_is_down_until_the_new_pod_is_ready() -> None:
    found = restart(engine(), updated(engine()))
    assert found == Restart("Deployment/engine", "restarts", True, 300 + 60)


def test_the_grace_of_the_old_pod_has_a_default() -> None:
    one = engine()
    del pod_of(one)["terminationGracePeriodSeconds"]
    found = restart(one, updated(one))
    assert found and found.at_most_s == 330


@pytest.mark.parametrize(
    ("replicas", "unavailable", "down"),
    [(2, 0, False), (1, None, False), (1, 1, True), (2, 1, False), (2, "100%", True), (1, "50%", False)],
)
def test_a_rolling_update(replicas: int, unavailable: int | str | None, down: bool) -> None:
    rolling = {} if unavailable is None else {"rollingUpdate": {"maxUnavailable": unavailable}}
    one = engine(replicas=replicas, strategy={"type": "RollingUpdate", **rolling})
    found = restart(one, updated(one))
    assert found and found.down == down
    assert found.at_most_s == (360 if down else 300)


def test_a_daemon_set_goes_node_by_node() -> None:
    one = workload("DaemonSet", "agent", "here")
    found = restart(one, updated(one))
    assert found == Restart("DaemonSet/agent", "restarts", True, 360)


def test_the_slowest_container_counts() -> None:
    slow = container(
        "slow", startupProbe={"periodSeconds": 5, "failureThreshold": 100, "initialDelaySeconds": 7}
    )
    assert startup_s({"spec": {"containers": [container("main"), slow]}}) == 507
    assert startup_s({"spec": {"containers": [{"name": "x", "startupProbe": {}}]}}) == 30
    unprobed = {"spec": {"containers": [{"name": "x"}]}}
    assert startup_s(unprobed) is None


def test_nothing_is_promised_where_nothing_bounds_it() -> None:
    one = engine()
    del pod_of(one)["containers"][0]["startupProbe"]
    found = restart(one, updated(one))
    assert found and found.at_most_s is None


def test_what_is_pruned_stops() -> None:
    assert stop(engine()) == Restart("Deployment/engine", "stops", True, None)
    assert stop({"kind": "ConfigMap", "metadata": {"name": "x"}}) is None
