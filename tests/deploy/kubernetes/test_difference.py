from __future__ import annotations

import pytest

from sovereign_ai.deploy.kubernetes.comparing import Change
from sovereign_ai.deploy.kubernetes.difference import Conflict, Found
from sovereign_ai.deploy.kubernetes.kinds import DEPLOYMENT, title
from sovereign_ai.deploy.kubernetes.manifests import Wanted, wanted
from sovereign_ai.deploy.kubernetes.restarts import Restart
from sovereign_ai.errors import ClusterRefused, DeployError
from sovereign_ai.render.kubernetes import render_stack
from sovereign_ai.render.kubernetes.labels import HOSTNAME, described, owned
from tests.deploy.kubernetes.clusters import Cluster
from tests.deploy.kubernetes.fake_api import Fault
from tests.deploy.kubernetes.stacks import less, more, pod_of, small, the, with_image
from tests.render.kubernetes.examples import stack as example


def test_everything_is_new_in_an_empty_cluster(cluster: Cluster) -> None:
    stack = small(cluster.namespace)
    found = cluster.difference(stack)
    assert {one.state for one in found.outcomes} == {"new"}
    unchecked = [title(one.object) for one in found.outcomes if not one.unchecked]
    assert unchecked == [f"Namespace/{cluster.namespace}", f"PersistentVolume/{cluster.namespace}-weights"]
    assert [one.how for one in found.restarts] == ["starts", "starts"]
    assert not found.is_empty
    with cluster.door() as door:
        assert door.ours(DEPLOYMENT, cluster.namespace) == [], "nothing is written"


def test_nothing_differs_after_an_apply(cluster: Cluster) -> None:
    """Also where the server fills in defaults, and a controller its status."""
    stack = small(cluster.namespace)
    cluster.bring(stack)
    cluster.make_ready(the(stack, "Deployment/engine"))
    found = cluster.difference(stack)
    assert found.is_empty
    assert [title(one.object) for one in found.outcomes if one.adopts] == []
    assert found.restarts == ()


@pytest.mark.parametrize("settings", [{}, {"version": "1.36", "pinning": "dra"}], ids=["tokens", "dra"])
def test_nothing_differs_after_an_apply_of_a_whole_rig(cluster: Cluster, settings: dict[str, str]) -> None:
    stack = wanted(
        render_stack(example("reference-rig", cluster={**settings, "namespace": cluster.namespace}))
    )
    cluster.bring(stack)
    assert cluster.difference(stack).is_empty


def test_what_changes_is_told_field_by_field_and_what_restarts(cluster: Cluster) -> None:
    cluster.bring(small(cluster.namespace))
    found = cluster.difference(small(cluster.namespace, Deployment=with_image("localhost/engine:2.0")))
    changed = [one for one in found.outcomes if one.state == "changed"]
    assert [title(one.object) for one in changed] == ["Deployment/engine"]
    path = "spec.template.spec.containers[main].image"
    assert changed[0].changes == (Change(path, "localhost/engine:1.0", "localhost/engine:2.0"),)
    assert found.restarts == (Restart("Deployment/engine", "restarts", True, 360),)


def test_what_is_no_longer_rendered_goes(cluster: Cluster) -> None:
    """A field, and an object."""
    stack = small(cluster.namespace, Deployment=lambda one: pod_of(one).update(hostname="rig"))
    cluster.bring(stack)
    found = cluster.difference(less(small(cluster.namespace), "DaemonSet/agent"))
    changes = {title(one.object): one.changes for one in found.outcomes if one.changes}
    assert changes == {"Deployment/engine": (Change("spec.template.spec.hostname", "rig", None),)}
    assert [title(one) for one in found.pruned] == ["DaemonSet/agent"]
    assert Restart("DaemonSet/agent", "stops", True, None) in found.restarts


def test_a_secret_changes_unseen(cluster: Cluster) -> None:
    cluster.bring(small(cluster.namespace))
    changed = small(cluster.namespace, Secret=lambda one: one["stringData"].update({"keys.json": "[1]\n"}))
    (change,) = [change for one in cluster.difference(changed).outcomes for change in one.changes]
    assert change.path == "data[keys.json]"
    assert str(change.new).startswith("secret, digest")


def test_a_key_that_leaves_a_secret_leaves_the_cluster(cluster: Cluster) -> None:
    cluster.bring(small(cluster.namespace, Secret=lambda one: one["stringData"].update(old="x")))
    cluster.bring(small(cluster.namespace))
    live = cluster.live(the(small(cluster.namespace), "Secret/keys"))
    assert live and list(live["data"]) == ["keys.json"]


def test_fields_of_others_are_named(cluster: Cluster) -> None:
    stack = small(cluster.namespace)
    cluster.bring(stack)
    cluster.edit(the(stack, "Deployment/engine"), {"spec": {"replicas": 3}})
    found = cluster.difference(stack)
    (outcome,) = [one for one in found.outcomes if one.state == "changed"]
    assert outcome.conflicts == (Conflict("kubectl-edit", ".spec.replicas"),)
    assert outcome.changes == (Change("spec.replicas", 3, 1),)


def test_fields_of_others_that_say_the_same_become_ours(cluster: Cluster) -> None:
    stack = small(cluster.namespace)
    cluster.bring(less(stack, "Service/engine"))
    cluster.create(the(stack, "Service/engine"))
    found = cluster.difference(stack)
    assert found.is_empty
    assert [title(one.object) for one in found.outcomes if one.adopts] == ["Service/engine"]
    cluster.bring(stack)
    assert not any(one.adopts for one in cluster.difference(stack).outcomes)


def test_what_can_never_be_changed_is_told_before(cluster: Cluster) -> None:
    cluster.bring(small(cluster.namespace))
    changed = small(cluster.namespace, ConfigMap=lambda one: one["data"].update(more="x"))
    (outcome,) = cluster.difference(changed).refused
    assert title(outcome.object) == "ConfigMap/engine-1"
    assert "immutable" in outcome.refusal
    assert "delete the object, then apply again" in outcome.refusal


def test_a_kind_that_the_cluster_lacks(cluster: Cluster) -> None:
    monitor = described(
        "ServiceMonitor",
        "gateway",
        cluster.namespace,
        owned(cluster.namespace),
        api="monitoring.coreos.com/v1",
        spec={"endpoints": []},
    )
    cluster.bring(small(cluster.namespace))
    (outcome,) = cluster.difference(more(small(cluster.namespace), monitor)).refused
    assert outcome.refusal.startswith("404 page not found → install what brings the kind")


def test_a_webhook_that_refuses(fake: Cluster) -> None:
    fake.bring(small())
    message = 'admission webhook "policy.example.org" denied the request: no images from localhost'
    fake.fake.refuse("PATCH", "/apis/apps/v1/namespaces/sovereign/deployments", 403, message)
    (outcome,) = fake.difference(small()).refused
    assert title(outcome.object) == "Deployment/engine"
    assert outcome.refusal.startswith(f"{message} → the webhook's owner says")


def test_a_kind_that_may_not_be_written(fake: Cluster) -> None:
    fake.bring(small())
    fake.fake.refuse("PATCH", "/api/v1/namespaces/sovereign/secrets", 403, 'User "bob" cannot patch')
    (outcome,) = fake.difference(small()).refused
    assert (
        outcome.refusal
        == 'User "bob" cannot patch → `sovereign doctor --cluster` tells all rights that are needed'
    )


def test_a_kind_that_may_not_be_listed_is_read_one_by_one(fake: Cluster) -> None:
    fake.bring(small())
    fake.fake.put(described("Service", "old", "sovereign", owned("sovereign")))
    fake.fake.refuse("GET", "/api/v1/namespaces/sovereign/services?", 403, "cannot list services")
    found = fake.difference(small())
    assert found.is_empty
    assert found.notes == (
        "services may not be listed: what is no longer wanted of them would stay (cannot list services)",
    )


def test_other_refusals_of_a_list_are_raised(fake: Cluster) -> None:
    fake.fake.refuse("GET", "/api/v1/namespaces/sovereign/services", 400, "what?")
    with pytest.raises(ClusterRefused, match=r"what\?"):
        fake.difference(small())


def test_where_namespaces_may_not_be_listed_there_may_be_other_stacks(fake: Cluster) -> None:
    fake.bring(small())
    fake.fake.put(described("RuntimeClass", "old", None, owned("sovereign"), api="node.k8s.io/v1"))
    assert [title(one) for one in fake.difference(small()).pruned] == ["RuntimeClass/old"]
    with fake.door() as door:
        found = Found(door, "sovereign")
        fake.fake.refuse("GET", "/api/v1/namespaces", 403)
        assert not found.is_alone


def test_what_other_stacks_share_is_not_pruned(fake: Cluster) -> None:
    fake.bring(small())
    fake.fake.put(described("RuntimeClass", "old", None, owned("sovereign"), api="node.k8s.io/v1"))
    fake.fake.put(described("Namespace", "other", None, owned("other")))
    assert fake.difference(small()).pruned == ()


def test_a_namespace_on_its_way_out(fake: Cluster) -> None:
    fake.bring(small())
    namespace = fake.live(the(small(), "Namespace/sovereign"))
    assert namespace
    content = "Some resources are remaining: pods. has 1 resource instances"
    conditions = [
        {"type": "NamespaceContentRemaining", "status": "True", "message": content},
        {"type": "NamespaceDeletionDiscoveryFailure", "status": "False", "message": "fine"},
    ]
    going = {**namespace, "status": {"phase": "Terminating", "conditions": conditions}}
    going["metadata"] = {**namespace["metadata"], "deletionTimestamp": "2026-11-26T00:00:00Z"}
    fake.fake.put(going)
    with pytest.raises(DeployError) as caught:
        fake.difference(small())
    assert "namespace sovereign is being deleted since 2026-11-26T00:00:00Z" in str(caught.value)
    assert content in str(caught.value)
    going["status"] = {}
    fake.fake.put(going)
    with pytest.raises(DeployError, match=r"00:00Z$"):
        fake.difference(small())


def on(node: str, namespace: str = "sovereign") -> Wanted:
    return small(namespace, Deployment=lambda one: pod_of(one).update(nodeSelector={HOSTNAME: node}))


def test_pods_for_a_node_that_is_not_there_would_wait_for_ever(cluster: Cluster) -> None:
    cluster.add_node("box", hostname="box.example.org")
    cluster.bring(small(cluster.namespace))
    refused = cluster.difference(on("vm", cluster.namespace)).refused
    assert [title(one.object) for one in refused] == ["Deployment/engine"]
    assert refused[0].refusal.startswith("it is for node `vm`, which the cluster does not have (it has box.")
    assert cluster.difference(on("box.example.org", cluster.namespace)).refused == ()
    assert cluster.difference(on("box", cluster.namespace)).refused != (), "its label is what is matched"


def test_where_nodes_may_not_be_listed_they_are_taken_to_be_there(fake: Cluster) -> None:
    fake.fake.faults.append(Fault("GET", "/api/v1/nodes", 403, "nodes is forbidden", "Forbidden"))
    found = fake.difference(on("vm"))
    assert found.refused == ()
    assert found.notes == (
        "nodes may not be listed: whether the plan's are in the cluster is not known (nodes is forbidden)",
    )
