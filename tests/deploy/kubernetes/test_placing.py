from __future__ import annotations

from typing import Any

import pytest

from sovereign_ai.deploy.kubernetes.placing import by_hostname, misplaced
from sovereign_ai.render.kubernetes import render_stack
from sovereign_ai.render.kubernetes.labels import HOSTNAME
from tests.render.kubernetes.examples import stack


def node(name: str, labels: dict[str, str] | None = None, cards: str = "") -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name}
    if labels is not None:
        metadata["labels"] = labels
    return {"metadata": metadata, "status": {"capacity": {"nvidia.com/gpu": cards} if cards else {}}}


def pods(selector: dict[str, str]) -> dict[str, Any]:
    return {"kind": "Deployment", "spec": {"template": {"spec": {"nodeSelector": selector}}}}


def test_a_node_goes_by_its_label_and_by_its_name_without_one() -> None:
    found = by_hostname([node("a", {HOSTNAME: "a.lan"}), node("b", {}), node("c")])
    assert list(found) == ["a.lan", "b", "c"]


def test_what_has_no_pods_or_pods_for_any_node_is_well_placed() -> None:
    assert misplaced({"kind": "ConfigMap", "data": {}}, {}) == ""
    assert misplaced(pods({}), {}) == ""
    assert misplaced(pods({HOSTNAME: "a"}), {"a": node("a")}) == ""


def test_the_nodes_that_there_are_are_named_unless_they_are_many() -> None:
    wanted = pods({HOSTNAME: "x"})
    assert "(it has none)" in misplaced(wanted, {})
    assert "(it has a, b)" in misplaced(wanted, by_hostname([node("b"), node("a")]))
    many = by_hostname(node(f"n{number}") for number in range(7))
    assert "(it has n0, n1, n2, n3, n4 and 2 more)" in misplaced(wanted, many)


@pytest.mark.parametrize(
    ("pinning", "how"),
    [("tokens", "beside our tokens"), ("dra", "beside our claims"), ("device-plugin", ""), ("env", "")],
)
def test_cards_that_the_device_plugin_hands_out_too(pinning: str, how: str) -> None:
    objects = render_stack(stack("eight-a100", cluster={"version": "1.36", "pinning": pinning}))
    deployments = {one["metadata"]["name"]: one for one in objects if one["kind"] == "Deployment"}
    engines = [one for name, one in deployments.items() if name.startswith("triton-")]
    assert engines
    for one in engines:
        name = one["spec"]["template"]["spec"]["nodeSelector"][HOSTNAME]
        plugged = by_hostname([node(name, cards="8")])
        assert how in misplaced(one, plugged)
        assert bool(misplaced(one, plugged)) == bool(how)
        assert misplaced(one, by_hostname([node(name, cards="0")])) == ""
    gateway = next(one for name, one in deployments.items() if name.startswith("sovereign-gateway-"))
    assert misplaced(gateway, plugged) == ""
