from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest

from sovereign_ai.render.kubernetes import Object, render_stack
from sovereign_ai.render.kubernetes.lint import lint, restricted_problems
from tests.render.kubernetes.examples import stack


def engine() -> Object:
    objects = render_stack(stack("reference-rig"))
    return deepcopy(next(one for one in objects if one["metadata"]["name"] == "triton-1f2a7333-9799af58"
                         and one["kind"] == "Deployment"))  # fmt: skip


def pod(one: Object) -> Any:
    return one["spec"]["template"]["spec"]


def main(one: Object) -> Any:
    return pod(one)["containers"][0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda one: one["metadata"].pop("labels"), "lacks the labels"),
        (lambda one: main(one)["resources"]["limits"].pop("memory"), "lacks a memory limit"),
        (lambda one: main(one)["resources"]["requests"].pop("cpu"), "or a CPU request"),
        (lambda one: main(one).update(image="a/b:latest"), "no fixed tag"),
        (lambda one: main(one).update(image="host:5000/b"), "no fixed tag"),
        (lambda one: main(one).pop("livenessProbe"), "lacks a probe"),
        (lambda one: main(one)["securityContext"].pop("readOnlyRootFilesystem"), "may write"),
        (lambda one: pod(one).pop("serviceAccountName"), "default account"),
        (
            lambda one: main(one).update(env=[], resources={"limits": {"memory": "40Gi"}}),
            "would see all cards",
        ),
        (lambda one: main(one)["resources"]["limits"].update(memory="32Gi"), "cannot hold /dev/shm"),
    ],
)
def test_what_is_sent_back(change: Callable[[Object], object], said: str) -> None:
    one = engine()
    assert lint([one]) == []
    if "memory" in said and "limit" in said and "hold" not in said:
        one["spec"]["template"]["spec"]["volumes"] = []
    change(one)
    found = lint([one])
    assert any(said in line for line in found), found
    assert all(line.startswith("Deployment/triton-1f2a7333-9799af58: ") for line in found)


def test_a_digest_is_a_fixed_tag() -> None:
    one = engine()
    main(one)["image"] = "host:5000/b@sha256:00"
    assert lint([one]) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda one: pod(one)["volumes"].append({"name": "x", "hostPath": {"path": "/"}}), "volume x"),
        (lambda one: pod(one)["securityContext"].update(runAsNonRoot=False), "as root"),
        (lambda one: pod(one)["securityContext"].update(runAsUser=0), "as root"),
        (lambda one: pod(one)["securityContext"].pop("seccompProfile"), "seccomp"),
        (lambda one: pod(one).update(hostNetwork=True), "hostNetwork"),
        (lambda one: main(one)["securityContext"].update(privileged=True), "gain privileges"),
        (lambda one: main(one)["securityContext"].pop("capabilities"), "capabilities"),
    ],
)
def test_what_restricted_refuses(change: Callable[[Object], object], said: str) -> None:
    one = engine()
    assert list(restricted_problems(pod(one))) == []
    change(one)
    assert any(said in line for line in restricted_problems(pod(one)))
