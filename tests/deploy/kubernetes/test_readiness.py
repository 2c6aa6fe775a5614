from __future__ import annotations

from typing import Any

import pytest

from sovereign_ai.deploy.kubernetes.readiness import readiness

UP = {"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}
STALLED = [
    {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "message": "timed out"}
]


def deployment(**status: Any) -> dict[str, Any]:
    return {"kind": "Deployment", "metadata": {"generation": 2}, "spec": {"replicas": 2}, "status": status}


@pytest.mark.parametrize(
    ("status", "ready", "words"),
    [
        (UP, True, "2 of 2 ready"),
        ({}, False, "0 of 2 ready"),
        ({**UP, "observedGeneration": 1}, False, "2 of 2 ready"),
        ({**UP, "availableReplicas": 1}, False, "1 of 2 ready"),
        ({**UP, "updatedReplicas": 1}, False, "2 of 2 ready"),
        ({**UP, "replicas": 3}, False, "2 of 2 ready"),
    ],
)
def test_a_deployment(status: dict[str, Any], ready: bool, words: str) -> None:
    found = readiness(deployment(**status))
    assert found and (found.ready, found.words, found.failed) == (ready, words, "")


def test_a_deployment_that_is_given_up() -> None:
    found = readiness(deployment(**{**UP, "availableReplicas": 0}, conditions=STALLED))
    assert found and found.failed == "timed out"
    found = readiness(deployment(**{**UP, "observedGeneration": 1}, conditions=STALLED))
    assert found and found.failed == "", "it was the one before"
    found = readiness(deployment(**UP, conditions=STALLED))
    assert found and found.ready and found.failed == ""
    found = readiness(deployment(conditions=[{"type": "Available"}], observedGeneration=2))
    assert found and found.failed == ""


@pytest.mark.parametrize(
    ("status", "ready", "words"),
    [
        (
            {"desiredNumberScheduled": 1, "updatedNumberScheduled": 1, "numberAvailable": 1},
            True,
            "1 of 1 ready",
        ),
        (
            {"desiredNumberScheduled": 2, "updatedNumberScheduled": 1, "numberAvailable": 2},
            False,
            "2 of 2 ready",
        ),
        ({"desiredNumberScheduled": 0}, True, "0 of 0 ready"),
    ],
)
def test_a_daemon_set(status: dict[str, Any], ready: bool, words: str) -> None:
    one = {"kind": "DaemonSet", "metadata": {"generation": 1}, "status": {"observedGeneration": 1, **status}}
    found = readiness(one)
    assert found and (found.ready, found.words) == (ready, words)


def test_a_daemon_set_of_which_nothing_is_known_yet() -> None:
    found = readiness({"kind": "DaemonSet", "metadata": {"generation": 1}})
    assert found and not found.ready


def test_phases() -> None:
    claim = {"kind": "PersistentVolumeClaim", "metadata": {}}
    assert readiness({**claim, "status": {"phase": "Bound"}}) == (True, "bound", "")
    assert readiness(claim) == (False, "pending", "")
    assert readiness({"kind": "Namespace", "metadata": {}, "status": {"phase": "Terminating"}}) == (
        False,
        "terminating",
        "",
    )


def test_the_rest_is_ready_by_being_there() -> None:
    assert readiness({"kind": "ConfigMap", "metadata": {}}) is None
