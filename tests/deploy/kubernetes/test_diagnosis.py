from __future__ import annotations

from typing import Any

from sovereign_ai.deploy.kubernetes.diagnosis import Trouble, last_words, of_workload, told, troubles


def pod(name: str = "p", **status: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {"app": "x"}}, "status": status}


def main(state: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"name": "main", "state": state, "ready": False, **more}]}


def only(**status: Any) -> Trouble:
    (found,) = troubles([pod(**status)])
    return found


def test_a_pod_that_no_node_takes() -> None:
    condition = {"type": "PodScheduled", "status": "False", "message": "Insufficient gpu.sovereign.ai/GPU-1"}
    assert only(conditions=[condition]) == Trouble(
        "p", "", "no node takes it: Insufficient gpu.sovereign.ai/GPU-1"
    )


def test_an_image_that_does_not_come_may_still_come() -> None:
    found = only(**main({"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}))
    assert found == Trouble("p", "main", "ImagePullBackOff: not found")


def test_a_container_that_crashes_again_and_again() -> None:
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
    ended = {"terminated": {"exitCode": 1, "reason": "Error"}}
    found = only(**main(waiting, restartCount=1, lastState=ended))
    assert (found.words, found.crashed, found.hopeless) == ("ended with code 1 (Error)", True, False)
    assert only(**main(waiting, restartCount=3, lastState=ended)).hopeless
    assert only(**main(waiting, restartCount=3)).words == "CrashLoopBackOff: back-off"


def test_a_container_that_ended() -> None:
    found = only(**main({"terminated": {"exitCode": 137, "reason": "OOMKilled", "message": " too much\n"}}))
    assert found.words == "ended with code 137 (OOMKilled): too much"
    assert only(**main({"terminated": {"exitCode": 2}})).words == "ended with code 2 (Error)"


def test_a_container_that_runs_but_is_not_ready() -> None:
    assert only(**main({"running": {}})).words == "runs, but is not ready"
    assert only(**main({"running": {}}, restartCount=2)).words == "runs, but is not ready, after 2 restarts"


def test_containers_that_come_before_the_others_are_named_first() -> None:
    first = {"name": "check", "state": {"terminated": {"exitCode": 1}}}
    waiting = {"name": "main", "state": {"waiting": {"reason": "PodInitializing"}}}
    found = only(initContainerStatuses=[first], containerStatuses=[waiting])
    assert found.container == "check"


def test_a_pod_that_was_put_out() -> None:
    assert only(phase="Failed", reason="Evicted", message="disk").words == "Evicted: disk"
    assert only(phase="Failed").words == "failed: "


def test_nothing_is_wrong() -> None:
    fine = {"name": "main", "state": {"running": {}}, "ready": True}
    done = {"name": "check", "state": {"terminated": {"exitCode": 0}}}
    coming = {"name": "main", "state": {"waiting": {"reason": "ContainerCreating"}}}
    assert troubles([pod(initContainerStatuses=[done], containerStatuses=[fine])]) == ()
    assert troubles([pod(containerStatuses=[coming]), pod()]) == ()
    assert troubles([pod(conditions=[{"type": "PodScheduled", "status": "True"}])]) == ()


def test_the_worst_comes_first() -> None:
    crash = main({"waiting": {"reason": "CrashLoopBackOff"}}, restartCount=9)
    found = troubles([pod("a", **main({"running": {}})), pod("b", **crash)])
    assert [one.pod for one in found] == ["b", "a"]


def event(name: str, message: str, when: str, kind: str = "Warning") -> dict[str, Any]:
    about = {"involvedObject": {"name": name}, "reason": "Failed", "message": message, "type": kind}
    return {**about, "lastTimestamp": when}


def test_the_newest_warnings_about_it() -> None:
    events = [event("p", str(hour), f"2026-11-26T0{hour}:00:00Z") for hour in (4, 1, 3, 2)]
    events += [
        event("p", "fine", "2026-11-26T09:00:00Z", "Normal"),
        event("q", "other", "2026-11-26T09:00:00Z"),
    ]
    assert told(events, ["p"]) == ("Failed: 2", "Failed: 3", "Failed: 4")


def test_pods_of_a_workload() -> None:
    workload = {"spec": {"selector": {"matchLabels": {"app": "x"}}}}
    assert of_workload(workload, [pod("a"), {"metadata": {"name": "b"}}]) == [pod("a")]


def test_an_engine_says_why_long_before_its_log_ends() -> None:
    log = [
        "2026-11-26T02:50:31Z E 70 model_lifecycle.cc:642] \"failed to load 'm' version 1: Internal: "
        "ModuleNotFoundError: No module named '_socket'\\n\\nAt:\\n  /usr/lib/python3.11/socket.py(51)\"",
        "| strict_readiness                 | 1  |",
        "+----------------------------------+----+",
        "",
        '2026-11-26T02:50:31Z I 70 server.cc:345] "Timeout 60: Found 0 live models"',
        "error: creating server: Internal - failed to load all models",
    ]
    assert list(last_words("triton", log, 1)) == [
        "triton says: failed to load 'm' version 1: Internal: ModuleNotFoundError: No module named '_socket'",
        "its last lines:",
        '  2026-11-26T02:50:31Z I 70 server.cc:345] "Timeout 60: Found 0 live models"',
    ]


def test_what_still_ends_is_told_only_where_nothing_else_is_there() -> None:
    going, coming = pod("old"), pod("new", **main({"running": {}}))
    going["metadata"]["deletionTimestamp"] = "2026-11-26T03:00:00Z"
    assert troubles([going]) == (Trouble("old", "", "still ends, and the new one waits for it"),)
    assert [one.pod for one in troubles([going, coming])] == ["new"]
    assert troubles([]) == ()
