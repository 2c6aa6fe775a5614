from __future__ import annotations

import pytest

from sovereign_ai.console import Silent
from sovereign_ai.deploy.kubernetes import deleting, history
from sovereign_ai.deploy.kubernetes.kinds import title
from sovereign_ai.errors import DeployError, HalfApplied
from sovereign_ai.render.kubernetes.labels import Object, described, owned
from tests.deploy.kubernetes.clusters import Cluster
from tests.deploy.kubernetes.stacks import small, the
from tests.deploy.kubernetes.test_waiting import Watched


def delete(cluster: Cluster, *, with_storage: bool = False, timeout_s: float = 5) -> list[str]:
    said: list[str] = []
    with cluster.door() as door:
        going = deleting.doomed(door, cluster.namespace, with_storage=with_storage).going
        deleting.delete(door, going, said.append)
        deleting.until_gone(door, going, Silent(), timeout_s)
    return said


def test_storage_and_namespace_stay(cluster: Cluster) -> None:
    stack = small(cluster.namespace)
    cluster.bring(stack)
    theirs = described("ConfigMap", "theirs", cluster.namespace, {})
    cluster.create(theirs)
    with cluster.door() as door:
        history.remember(door, stack)
    assert delete(cluster) == [
        "deleted Deployment/engine",
        "deleted DaemonSet/agent",
        "deleted Service/engine",
        "deleted Secret/keys",
        "deleted Secret/sovereign-last-good-1",
        "deleted ConfigMap/engine-1",
    ]
    left = [title(one) for one in (*stack.objects, theirs) if cluster.live(one)]
    assert left == [
        f"Namespace/{cluster.namespace}",
        f"PersistentVolume/{cluster.namespace}-weights",
        "PersistentVolumeClaim/weights",
        "ConfigMap/theirs",
    ]
    assert delete(cluster) == [], "there is nothing left to delete"


def test_with_storage_everything_goes(fake: Cluster) -> None:
    fake.bring(small())
    said = delete(fake, with_storage=True)
    assert said[-3:] == [
        "deleted PersistentVolumeClaim/weights",
        "deleted PersistentVolume/sovereign-weights",
        "deleted Namespace/sovereign",
    ]
    assert [kind for kind, _, _ in fake.fake.objects] == ["Node"]


def test_what_is_shared_stays_while_another_stack_is_there(fake: Cluster) -> None:
    fake.bring(small())
    fake.fake.put(described("StorageClass", "sovereign-local", None, owned("sovereign")))
    fake.fake.put(described("Namespace", "other", None, owned("other")))
    delete(fake, with_storage=True)
    assert sorted(kind for kind, _, _ in fake.fake.objects) == ["Namespace", "Node", "StorageClass"]


def held(one: Object, live: Object) -> Object:
    return {**one, "metadata": {**live["metadata"], "finalizers": ["kubernetes.io/pvc-protection"]}}


def test_a_claim_that_is_still_used(fake: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.bring(small())
    claim = the(small(), "PersistentVolumeClaim/weights")
    live = fake.live(claim)
    assert live
    fake.fake.put(held(claim, live))
    monkeypatch.setattr(deleting, "ROUND_S", 0.01)
    progress = Watched()
    with fake.door() as door:
        deleting.delete(door, [live], lambda line: None)
        with pytest.raises(DeployError) as caught:
            deleting.until_gone(door, [live], progress, 0.05)
    assert str(caught.value) == (
        "deleted, but not gone after 0 s:\n"
        "  PersistentVolumeClaim/weights: held by kubernetes.io/pvc-protection"
    )
    assert "still there: PersistentVolumeClaim/weights" in progress.notes


def test_a_namespace_that_does_not_go(fake: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deleting, "ROUND_S", 0.01)
    fake.bring(small())
    fake.fake.stuck.add("sovereign")
    namespace = fake.live(the(small(), "Namespace/sovereign"))
    assert namespace
    conditions = [{"type": "NamespaceFinalizersRemaining", "status": "True", "message": "in 1 resource"}]
    fake.fake.put({**namespace, "status": {"conditions": conditions}, "spec": {"finalizers": ["kubernetes"]}})
    with pytest.raises(DeployError, match="  Namespace/sovereign: held by kubernetes; in 1 resource"):
        delete(fake, with_storage=True, timeout_s=0.05)


def test_one_of_the_same_name_that_comes_after_it(fake: Cluster) -> None:
    fake.bring(small())
    service = the(small(), "Service/engine")
    live = fake.live(service)
    assert live
    with fake.door() as door:
        deleting.delete(door, [live], lambda line: None)
        fake.fake.put(described("Service", "engine", "sovereign", {}))
        deleting.until_gone(door, [live], Silent(), 0)
    assert fake.live(service)


def test_what_just_says_nothing_of_why(fake: Cluster) -> None:
    fake.bring(small())
    live = fake.live(the(small(), "Service/engine"))
    assert live
    with fake.door() as door, pytest.raises(DeployError, match=r"  Service/engine$"):
        deleting.until_gone(door, [live], Silent(), 0)


def test_a_right_that_is_missing(fake: Cluster) -> None:
    fake.bring(small())
    fake.fake.refuse("DELETE", "/api/v1/namespaces/sovereign/secrets", 403, "cannot delete secrets")
    with pytest.raises(
        HalfApplied, match="stopped at Secret/keys: cannot delete secrets\ndeleted: 3"
    ) as caught:
        delete(fake)
    assert "`sovereign delete --cluster` again goes on" in caught.value.hint
    fake.fake.faults.clear()
    assert delete(fake) == ["deleted Secret/keys", "deleted ConfigMap/engine-1"]


def pod(name: str, app: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "sovereign",
            "labels": {**owned("sovereign"), "app.kubernetes.io/name": app},
        },
    }


def test_pods_end_last_and_hold_their_cards_until_then(fake: Cluster) -> None:
    fake.bring(small())
    for one in (pod("engine-1", "engine"), pod("another-1", "another")):
        fake.fake.put(one)
    with pytest.raises(DeployError, match=r"not gone after 0 s:\n  Pod/engine-1$"):
        delete(fake, timeout_s=0)
    fake.bring(small())
    fake.fake.refuse("GET", "/api/v1/namespaces/sovereign/pods?", 403, "pods is forbidden")
    assert delete(fake), "who may not look at pods does not wait for them"
