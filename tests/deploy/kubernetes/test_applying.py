from __future__ import annotations

import pytest

from sovereign_ai.deploy.kubernetes import applying
from sovereign_ai.deploy.kubernetes.difference import difference
from sovereign_ai.deploy.kubernetes.door import Door
from sovereign_ai.deploy.kubernetes.kinds import kind_of, title
from sovereign_ai.errors import ClusterRefused, DeployError, HalfApplied, Interrupted
from sovereign_ai.render.kubernetes.labels import Object, described, owned
from tests.deploy.kubernetes.clusters import Cluster
from tests.deploy.kubernetes.stacks import less, small, the, with_image


def test_everything_in_the_given_order(fake: Cluster) -> None:
    said = fake.bring(small())
    assert said == [f"created {title(one)}" for one in small().objects]
    asked = [line.rpartition("/")[2] for line in fake.fake.writes]
    assert asked == [one["metadata"]["name"] for one in small().objects]


def test_what_is_applied_is_there(cluster: Cluster) -> None:
    stack = small(cluster.namespace)
    cluster.bring(stack)
    for one in stack.objects:
        assert cluster.live(one), title(one)


def test_a_second_apply_writes_nothing(cluster: Cluster) -> None:
    stack = small(cluster.namespace)
    cluster.bring(stack)
    before = [cluster.live(one) for one in stack.objects]
    assert cluster.bring(stack) == []
    assert [cluster.live(one) for one in stack.objects] == before


def test_a_second_apply_asks_for_dry_runs_alone(fake: Cluster) -> None:
    fake.bring(small())
    fake.fake.asked.clear()
    fake.bring(small())
    patches = [line for line in fake.fake.asked if line.startswith("PATCH")]
    assert len(patches) == len(small().objects)
    assert all("dryRun=All" in line and "fieldManager=sovereign" in line for line in patches)


def test_only_what_differs_is_written(cluster: Cluster) -> None:
    cluster.bring(small(cluster.namespace))
    assert cluster.bring(small(cluster.namespace, Deployment=with_image("localhost/engine:2.0"))) == [
        "changed Deployment/engine"
    ]


def test_what_is_no_longer_wanted_is_deleted_and_nothing_else(cluster: Cluster) -> None:
    """Neither storage, nor what others have made in the namespace, nor what only looks like ours."""
    stack = small(cluster.namespace)
    cluster.bring(stack)
    theirs = described("ConfigMap", "theirs", cluster.namespace, {})
    half = described("ConfigMap", "half", cluster.namespace, {"sovereign.ai/stack": cluster.namespace})
    for one in (theirs, half):
        cluster.create(one)
    left = less(stack, "Deployment/engine", "ConfigMap/engine-1", "PersistentVolumeClaim/weights")
    assert cluster.bring(left) == ["pruned Deployment/engine", "pruned ConfigMap/engine-1"]
    assert cluster.live(the(stack, "Deployment/engine")) is None
    for one in (theirs, half, the(stack, "PersistentVolumeClaim/weights")):
        assert cluster.live(one), title(one)


def test_fields_of_others_are_not_taken_without_a_word(cluster: Cluster) -> None:
    stack = small(cluster.namespace)
    cluster.bring(stack)
    engine = the(stack, "Deployment/engine")
    cluster.edit(engine, {"spec": {"replicas": 3}})
    with pytest.raises(ClusterRefused) as caught:
        cluster.bring(small(cluster.namespace, DaemonSet=with_image("localhost/agent:2.0")))
    assert "Deployment/engine: .spec.replicas belongs to `kubectl-edit`" in str(caught.value)
    assert "--force-conflicts" in caught.value.hint
    assert cluster.difference(stack).outcomes[6].state == "unchanged", "nothing was begun"
    assert cluster.bring(stack, force=True) == ["changed Deployment/engine"]
    live = cluster.live(engine)
    assert live and live["spec"]["replicas"] == 1
    assert cluster.difference(stack).is_empty


def test_what_the_dry_run_refuses_is_not_begun(fake: Cluster) -> None:
    fake.bring(small())
    fake.fake.writes.clear()
    fake.fake.refuse("PATCH", "/apis/apps/v1", 403, 'User "bob" cannot patch resource')
    changed = small(Secret=lambda one: one["stringData"].update(x="y"))
    with pytest.raises(ClusterRefused) as caught:
        fake.bring(changed)
    assert "the cluster would refuse 2 of the objects:" in str(caught.value)
    assert '  Deployment/engine: User "bob" cannot patch resource' in str(caught.value)
    assert fake.fake.writes == []


def test_what_is_refused_once_the_namespace_is_there(fake: Cluster) -> None:
    """Before it is, nothing in it can be tried."""
    fake.fake.refuse("PATCH", "/apis/apps/v1/namespaces/sovereign/deployments", 403, "denied the request")
    with pytest.raises(HalfApplied) as caught:
        fake.bring(small())
    assert "Deployment/engine: denied the request" in str(caught.value)
    assert str(caught.value).endswith("applied: Namespace/sovereign alone")
    assert caught.value.exit_code == 75
    fake.fake.faults.clear()
    assert fake.bring(small()) == [f"created {title(one)}" for one in small().objects[1:]]


def test_a_namespace_that_nobody_makes(fake: Cluster) -> None:
    with pytest.raises(DeployError, match="namespace sovereign is not there, and not among") as caught:
        fake.bring(less(small(), "Namespace/sovereign"))
    assert "kubectl create namespace sovereign" in caught.value.hint


def test_a_server_that_goes_away_half_way(fake: Cluster) -> None:
    fake.fake.away_after = 4
    with pytest.raises(HalfApplied) as caught:
        fake.bring(small())
    message = str(caught.value)
    assert message.startswith("stopped at Secret/keys: http://127.0.0.1:")
    assert (
        "\ncreated: Namespace/sovereign; "
        "applied: 3 (PersistentVolume/sovereign-weights, PersistentVolumeClaim/weights, ConfigMap/engine-1); "
        "not applied: 4 (Secret/keys, Service/engine, DaemonSet/agent, Deployment/engine)"
    ) in message
    assert "`sovereign apply` again goes on from there" in caught.value.hint
    fake.fake.is_away = False
    assert fake.bring(small()) == [f"created {title(one)}" for one in small().objects[4:]]
    assert fake.difference(small()).is_empty


def test_a_refusal_that_the_dry_run_did_not_foresee(fake: Cluster) -> None:
    fake.bring(less(small(), "Service/engine", "Deployment/engine"))
    message = 'admission webhook "policy" denied the request'
    fake.fake.refuse("PATCH", "/apis/apps/v1", 403, message, dry_runs=False)
    with pytest.raises(HalfApplied) as caught:
        fake.bring(small())
    assert f"stopped at Deployment/engine: {message}" in str(caught.value)
    assert "applied: 1 (Service/engine); not applied: 1 (Deployment/engine)" in str(caught.value)
    assert caught.value.hint.startswith("`sovereign doctor --cluster` tells all rights"), "as the code is 403"


def test_a_refusal_while_pruning(fake: Cluster) -> None:
    fake.bring(small())
    fake.fake.refuse("DELETE", "/apis/apps/v1/namespaces/sovereign/daemonsets", 403, "cannot delete")
    with pytest.raises(
        HalfApplied,
        match=r"everything is applied; pruned: 1 \(Deployment/engine\); not pruned: 1 \(DaemonSet/agent\)",
    ):
        fake.bring(less(small(), "Deployment/engine", "DaemonSet/agent"))


def test_interrupted(fake: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Door.apply

    def interrupted(self: Door, one: Object, *, dry_run: bool = False, force: bool = False) -> Object:
        if title(one) == "ConfigMap/engine-1" and not dry_run:
            raise KeyboardInterrupt
        return real(self, one, dry_run=dry_run, force=force)

    monkeypatch.setattr(Door, "apply", interrupted)
    with pytest.raises(Interrupted, match="interrupted\ncreated: Namespace/sovereign; applied: 2"):
        fake.bring(small())


def test_many_objects_are_counted_rather_than_named(fake: Cluster) -> None:
    maps = [described("ConfigMap", f"map-{index}", "sovereign", owned("sovereign")) for index in range(12)]
    steps = applying.Steps("applied", maps, "sovereign apply", lambda line: None)
    for one in maps[:10]:
        with steps.step(one, "created"):
            pass
    with pytest.raises(HalfApplied) as caught, steps.step(maps[10], "created"):
        raise ClusterRefused("no")
    assert "applied: 10 (ConfigMap/map-0, " in str(caught.value)
    assert "ConfigMap/map-7 and 2 more); not applied: 2 (ConfigMap/map-10, ConfigMap/map-11)" in str(
        caught.value
    )
    with pytest.raises(HalfApplied, match=r"applied: nothing; not applied: 1"):  # noqa: SIM117
        with applying.Steps("applied", maps[:1], "x", lambda line: None).step(maps[0], "created"):
            raise ClusterRefused("no")


def test_a_difference_of_long_ago_is_not_written_over(cluster: Cluster) -> None:
    """What changed meanwhile is merged by the server: nothing of others is lost."""
    stack = small(cluster.namespace)
    cluster.bring(stack)
    changed = small(cluster.namespace, Deployment=with_image("localhost/engine:2.0"))
    with cluster.door() as door:
        found = difference(door, changed)
        engine = the(stack, "Deployment/engine")
        cluster.edit(engine, {"metadata": {"annotations": {"theirs": "x"}}})
        applying.apply(door, changed, found, force=False, command="sovereign apply", tell=lambda line: None)
        live = door.read(kind_of(engine), cluster.namespace, "engine")
    assert live and live["metadata"]["annotations"]["theirs"] == "x"
    assert live["spec"]["template"]["spec"]["containers"][0]["image"] == "localhost/engine:2.0"
