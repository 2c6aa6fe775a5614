from __future__ import annotations

import pytest

from sovereign_ai.deploy.kubernetes.kinds import (
    DEPLOYMENT,
    KINDS,
    NAMESPACE,
    SECRET,
    is_record,
    kind_of,
    title,
)
from sovereign_ai.errors import ConfigError
from sovereign_ai.render.kubernetes import render_stack
from tests.render.kubernetes.examples import NAMES, stack

WAYS = [
    {"monitoring": True},
    {"version": "1.36"},
    {"pinning": "env", "agent": False},
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: next(iter(way)))
def test_every_kind_that_is_rendered_is_known(name: str, way: dict[str, object]) -> None:
    for one in render_stack(stack(name, cluster=way)):
        kind = kind_of(one)
        assert kind.namespaced == ("namespace" in one["metadata"]), title(one)


def test_the_order_is_that_of_the_rendering() -> None:
    """Of the kinds on which others stand."""
    places = {kind.name: place for place, kind in enumerate(KINDS)}
    rendered = render_stack(stack("reference-rig", cluster={"monitoring": True}))
    first: dict[str, int] = {}
    for one in rendered:
        first.setdefault(one["kind"], places[one["kind"]])
    before_pods = [kind for kind in first if places[kind] < places["DaemonSet"]]
    pods = [kind for kind in first if kind in ("DaemonSet", "Deployment")]
    assert min(first[kind] for kind in pods) > max(first[kind] for kind in before_pods)
    assert next(iter(first)) == KINDS[0].name == "Namespace"


def test_paths() -> None:
    assert DEPLOYMENT.path("here") == "/apis/apps/v1/namespaces/here/deployments"
    assert DEPLOYMENT.path("here", "one") == "/apis/apps/v1/namespaces/here/deployments/one"
    assert SECRET.path("here") == "/api/v1/namespaces/here/secrets"
    assert NAMESPACE.path("", "here") == "/api/v1/namespaces/here"


def test_another_kind() -> None:
    one = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "x"}}
    with pytest.raises(ConfigError, match=r"Job/x: `Job` of batch/v1 is not a kind"):
        kind_of(one)
    with pytest.raises(ConfigError, match=r"None/None"):
        kind_of({})


def test_records_are_told_from_other_secrets() -> None:
    one = {
        "kind": "Secret",
        "metadata": {"name": "x", "labels": {"app.kubernetes.io/component": "last-good"}},
    }
    assert is_record(one)
    assert not is_record({**one, "kind": "ConfigMap"})
    assert not is_record({"kind": "Secret", "metadata": {"name": "x"}})
