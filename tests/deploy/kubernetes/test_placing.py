from __future__ import annotations

from typing import Any

from sovereign_ai.deploy.kubernetes.placing import hostnames, misplaced
from sovereign_ai.render.kubernetes.labels import HOSTNAME


def node(name: str, labels: dict[str, str] | None = None) -> dict[str, Any]:
    return {"metadata": {"name": name, **({} if labels is None else {"labels": labels})}}


def pods(selector: dict[str, str]) -> dict[str, Any]:
    return {"kind": "Deployment", "spec": {"template": {"spec": {"nodeSelector": selector}}}}


def test_a_node_goes_by_its_label_and_by_its_name_without_one() -> None:
    found = hostnames([node("a", {HOSTNAME: "a.lan"}), node("b", {}), node("c")])
    assert found == {"a.lan", "b", "c"}


def test_what_has_no_pods_or_pods_for_any_node_is_well_placed() -> None:
    assert misplaced({"kind": "ConfigMap", "data": {}}, set()) == ""
    assert misplaced(pods({}), set()) == ""
    assert misplaced(pods({HOSTNAME: "a"}), {"a"}) == ""


def test_the_nodes_that_there_are_are_named_unless_they_are_many() -> None:
    assert "(it has none)" in misplaced(pods({HOSTNAME: "x"}), set())
    assert "(it has a, b)" in misplaced(pods({HOSTNAME: "x"}), {"b", "a"})
    assert "(it has n0, n1, n2, n3, n4 and 2 more)" in misplaced(
        pods({HOSTNAME: "x"}), {f"n{number}" for number in range(7)}
    )
