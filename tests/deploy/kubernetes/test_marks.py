from __future__ import annotations

from sovereign_ai.deploy.kubernetes import marks
from sovereign_ai.deploy.kubernetes.kinds import NODE
from sovereign_ai.inventory.published import INVENTORY, MEASURED, token
from tests.deploy.kubernetes.clusters import Cluster

CARD = token("GPU-00000000")


def marked(cluster: Cluster, name: str) -> None:
    """As its agent and others leave a node."""
    cluster.add_node(name)
    annotations = {INVENTORY: "{}", MEASURED: "2026-11-26T00:00:00Z", "theirs": "stays"}
    capacity = {CARD: "1", "cpu": "2"}
    with cluster.door() as door:
        door.merge(NODE, "", name, {"metadata": {"annotations": annotations}})
        door.merge(
            NODE, "", name, {"status": {"capacity": capacity, "allocatable": capacity}}, below="/status"
        )


def erased(cluster: Cluster) -> list[str]:
    said: list[str] = []
    with cluster.door() as door:
        marks.erase(door, said.append)
    return said


def test_what_agents_left_goes_and_what_others_wrote_stays(cluster: Cluster) -> None:
    name = f"node-of-{cluster.namespace}"
    marked(cluster, name)
    assert f"cleaned Node/{name}: what its agent told of it, 1 tokens" in erased(cluster)
    with cluster.door() as door:
        live = door.read(NODE, "", name)
    assert live
    assert marks.annotations_of(live) == []
    assert marks.tokens_on(live) == []
    assert live["metadata"]["annotations"]["theirs"] == "stays"
    assert live["status"]["capacity"] == {"cpu": "2"}
    assert erased(cluster) == [], "a second time there is nothing to do"


def test_where_nodes_may_not_be_written_that_is_told(fake: Cluster) -> None:
    marked(fake, "rig")
    fake.fake.refuse("PATCH", "/api/v1/nodes/rig", 403, "nodes is forbidden", reason="Forbidden")
    (said,) = erased(fake)
    assert said == ("what agents wrote on nodes stays, since it may not be taken away (nodes is forbidden)")
