from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from sovereign_ai.deploy.kubernetes import waiting
from sovereign_ai.deploy.kubernetes.kinds import title
from sovereign_ai.deploy.kubernetes.manifests import Wanted
from sovereign_ai.errors import ClusterRefused, NotReady
from sovereign_ai.render.kubernetes.labels import Object, owned
from tests.deploy.kubernetes.clusters import Cluster
from tests.deploy.kubernetes.stacks import less, small, the

LOOP_S = 5.0
"""Longest that a test waits for what should come at once."""


class Watched:
    """Progress that is looked at afterwards."""

    def __init__(self) -> None:
        self.done: list[int] = []
        self.notes: list[str] = []

    def update(self, done: int, *, total: int | None = None, note: str | None = None) -> None:
        self.done.append(done)
        self.notes.append(note or "")


def wait(
    cluster: Cluster, stack: Wanted, timeout_s: float = LOOP_S, **more: Callable[..., Any]
) -> tuple[list[str], Watched]:
    said: list[str] = []
    progress = Watched()
    with cluster.door() as door:
        waiting.Wait(door, stack, said.append, progress, **more).until_ready(timeout_s)
    return said, progress


def after(seconds: float, do: Callable[[], object]) -> threading.Thread:
    thread = threading.Timer(seconds, do)
    thread.start()
    return thread


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "ROUND_S", 1.0)
    monkeypatch.setattr(waiting, "AWAY_S", 0.05)


def test_what_is_ready_is_not_waited_for(cluster: Cluster) -> None:
    stack = small(cluster.namespace)
    cluster.bring(stack)
    for name in ("Deployment/engine", "DaemonSet/agent"):
        cluster.make_ready(the(stack, name))
    said, progress = wait(cluster, stack)
    ready = sorted(line.partition(",")[0] for line in said)
    assert ready == ["ready    DaemonSet/agent", "ready    Deployment/engine"]
    assert progress.done[-1] == 2


def test_nothing_to_wait_for(fake: Cluster) -> None:
    assert wait(fake, less(small(), "Deployment/engine", "DaemonSet/agent"))[0] == []
    assert fake.fake.asked == []


def test_a_watch_brings_the_news_at_once(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "ROUND_S", 60.0)
    stack = less(small(cluster.namespace), "DaemonSet/agent")
    cluster.bring(stack)
    started = time.monotonic()
    timer = after(0.5, lambda: cluster.make_ready(the(stack, "Deployment/engine")))
    said, progress = wait(cluster, stack, 60)
    timer.join()
    assert len(said) == 1
    assert time.monotonic() - started < LOOP_S
    assert progress.notes[0] == "Deployment/engine: 0 of 1 ready"


def test_each_kind_in_its_turn(cluster: Cluster) -> None:
    stack = small(cluster.namespace)
    cluster.bring(stack)
    first = after(0.2, lambda: cluster.make_ready(the(stack, "DaemonSet/agent")))
    second = after(0.4, lambda: cluster.make_ready(the(stack, "Deployment/engine")))
    said, _ = wait(cluster, stack, 20)
    first.join()
    second.join()
    assert len(said) == 2


def test_a_version_that_the_server_forgot_is_listed_anew(fake: Cluster) -> None:
    stack = less(small(), "DaemonSet/agent")
    fake.bring(stack)
    fake.fake.oldest = 10**9
    timer = after(0.2, lambda: fake.make_ready(the(stack, "Deployment/engine")))
    said, _ = wait(fake, stack)
    timer.join()
    assert len(said) == 1
    lists = [line for line in fake.fake.asked if "deployments?" in line and "watch" not in line]
    assert len(lists) > 2


def test_a_server_that_is_away_for_a_while(fake: Cluster) -> None:
    stack = less(small(), "DaemonSet/agent")
    fake.bring(stack)
    fake.make_ready(the(stack, "Deployment/engine"))
    fake.fake.stop()
    timer = after(0.3, fake.fake.start)
    said, progress = wait(fake, stack)
    timer.join()
    assert len(said) == 1
    assert any("does not answer" in note for note in progress.notes)


def test_a_server_that_goes_away_in_the_middle_of_a_watch(
    fake: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "ROUND_S", 60.0)
    stack = less(small(), "DaemonSet/agent")
    fake.bring(stack)

    def restart() -> None:
        fake.fake.stop()
        fake.fake.start()
        fake.make_ready(the(stack, "Deployment/engine"))

    timer = after(0.3, restart)
    said, _ = wait(fake, stack)
    timer.join()
    assert len(said) == 1


def test_a_server_that_stays_away(fake: Cluster) -> None:
    fake.bring(small())
    fake.fake.stop()
    with pytest.raises(NotReady, match=r"is not known: http://127.* does not answer"):
        wait(fake, small(), 0.2)


def test_other_refusals_are_not_waited_out(fake: Cluster) -> None:
    fake.bring(small())
    fake.fake.refuse("GET", "/apis/apps/v1/namespaces/sovereign/deployments", 403, "cannot list")
    with pytest.raises(ClusterRefused, match="cannot list"):
        wait(fake, small())


def pod(stack: Wanted, **status: Any) -> Object:
    labels = the(stack, "Deployment/engine")["spec"]["template"]["metadata"]["labels"]
    metadata = {"name": "engine-1", "namespace": stack.namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status}


def main(state: Object, **more: Any) -> Object:
    return {"containerStatuses": [{"name": "main", "state": state, "ready": False, **more}]}


def event(message: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "e", "namespace": "sovereign"},
        "type": "Warning",
        "reason": "BackOff",
        "message": message,
        "involvedObject": {"name": "engine-1"},
    }


def test_a_container_that_crashes_is_not_waited_for(fake: Cluster) -> None:
    """Its last words are those of the run that ended; other pods' are not told."""
    fake.bring(small())
    fake.make_ready(the(small(), "DaemonSet/agent"))
    waits = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
    ended = {"terminated": {"exitCode": 1, "reason": "Error"}}
    fake.fake.put(pod(small(), **main(waits, restartCount=4, lastState=ended)))
    fake.fake.put(event("Back-off restarting failed container"))
    fake.fake.logs["engine-1", "main", True] = "loading\nno space left on /dev/shm\n"
    started = time.monotonic()
    with pytest.raises(NotReady) as caught:
        wait(fake, small(), 60)
    assert time.monotonic() - started < LOOP_S
    assert str(caught.value) == (
        "not ready:\n"
        "  Deployment/engine: 0 of 1 ready\n"
        "    engine-1, main: ended with code 1 (Error)\n"
        "    BackOff: Back-off restarting failed container\n"
        "    main says: no space left on /dev/shm\n"
        "    its last lines:\n"
        "      loading\n"
        "      no space left on /dev/shm"
    )
    assert caught.value.hint == "back to what was good: sovereign rollback"


def test_an_image_may_still_come(fake: Cluster) -> None:
    fake.bring(small())
    fake.make_ready(the(small(), "DaemonSet/agent"))
    fake.fake.put(pod(small(), **main({"waiting": {"reason": "ImagePullBackOff", "message": "not found"}})))
    with pytest.raises(NotReady) as caught:
        wait(fake, small(), 1.5)
    assert str(caught.value) == (
        "not ready in time:\n"
        "  Deployment/engine: 0 of 1 ready\n"
        "    engine-1, main: ImagePullBackOff: not found"
    )


def test_a_pod_that_no_node_takes(fake: Cluster) -> None:
    fake.bring(small())
    fake.make_ready(the(small(), "DaemonSet/agent"))
    condition = {"type": "PodScheduled", "status": "False", "message": "Insufficient gpu.sovereign.ai/GPU-1"}
    fake.fake.put(pod(small(), conditions=[condition]))
    timer = after(1.2, lambda: fake.make_ready(the(small(), "Deployment/engine")))
    _, progress = wait(fake, small())
    timer.join()
    assert "Deployment/engine: no node takes it: Insufficient gpu.sovereign.ai/GPU-1" in progress.notes


def test_the_log_of_the_run_that_still_goes_on(fake: Cluster) -> None:
    fake.bring(small())
    fake.make_ready(the(small(), "DaemonSet/agent"))
    fake.fake.put(pod(small(), **main({"terminated": {"exitCode": 3}})))
    fake.fake.logs["engine-1", "main", False] = "only words\n"
    with pytest.raises(NotReady, match="      only words"):
        wait(fake, small(), 0.1)
    fake.fake.logs.clear()
    with pytest.raises(NotReady, match=r"ended with code 3 \(Error\)$"):
        wait(fake, small(), 0.1)


def test_a_deployment_that_kubernetes_gives_up(fake: Cluster) -> None:
    fake.bring(small())
    fake.make_ready(the(small(), "DaemonSet/agent"))
    condition = {
        "type": "Progressing",
        "reason": "ProgressDeadlineExceeded",
        "message": "timed out progressing",
    }
    status = {"status": {"observedGeneration": 1, "conditions": [condition]}}
    fake.edit(the(small(), "Deployment/engine"), status, below="/status")
    with pytest.raises(NotReady, match=r"Deployment/engine: 0 of 1 ready \(timed out progressing\)"):
        wait(fake, small(), 60)


def test_nothing_is_explained_where_pods_may_not_be_read(fake: Cluster) -> None:
    fake.bring(small())
    for path in ("/api/v1/namespaces/sovereign/pods", "/api/v1/namespaces/sovereign/events"):
        fake.fake.refuse("GET", path, 403)
    with pytest.raises(NotReady, match=r"Deployment/engine: 0 of 1 ready$"):
        wait(fake, less(small(), "DaemonSet/agent"), 0.1)


def test_a_pod_that_cannot_be_asked_for_at_all(fake: Cluster) -> None:
    fake.bring(small())
    fake.fake.refuse("GET", "/api/v1/namespaces/sovereign/pods", 400, "what?")
    with pytest.raises(ClusterRefused, match=r"what\?"):
        wait(fake, small())


def test_a_workload_that_somebody_deletes(fake: Cluster) -> None:
    fake.bring(small())
    stack = less(small(), "DaemonSet/agent")
    with fake.door() as door:
        live = fake.live(the(stack, "Deployment/engine"))
        assert live and door.delete(live)
    with pytest.raises(NotReady, match="Deployment/engine: is not there"):
        wait(fake, stack, 0.1)


def test_how_long_is_waited() -> None:
    assert waiting.timeout_s(small()) == 600 + 60
    assert waiting.timeout_s(less(small(), "Deployment/engine")) == 300 + 60
    assert waiting.timeout_s(less(small(), "Deployment/engine", "DaemonSet/agent")) == 300


def test_others_in_the_namespace_do_not_count(fake: Cluster) -> None:
    stack = less(small(), "DaemonSet/agent")
    fake.bring(stack)
    fake.make_ready(the(stack, "Deployment/engine"))
    another = {**the(stack, "Deployment/engine"), "metadata": {
        "name": "other", "namespace": "sovereign", "labels": owned("sovereign")}}  # fmt: skip
    fake.fake.put(another)
    said, _ = wait(fake, stack)
    assert len(said) == 1 and title(another) not in said[0]
