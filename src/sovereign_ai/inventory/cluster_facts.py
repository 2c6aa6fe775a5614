"""What a cluster says of itself, as far as its fitness is judged by it. No I/O. What may not be read is
None."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from sovereign_ai.spec import Noun


class ClusterNode(Noun, frozen=True, kw_only=True):
    """`extended`: allocatable amounts of resources that are not Kubernetes' own. `handlers` of its container
    runtime; None where it does not tell. `cards`: UUIDs in health as the agent measured them; None where no
    agent has been here. `taints` as kubectl writes them."""

    name: str
    ready: bool = True
    cordoned: bool = False
    taints: tuple[str, ...] = ()
    memory_bytes: int = 0
    extended: Mapping[str, int] = {}
    handlers: tuple[str, ...] | None = None
    images: tuple[str, ...] = ()
    images_listed: int = 0
    cards: tuple[str, ...] | None = None


class Slice(Noun, frozen=True, kw_only=True):
    """One ResourceSlice: `pool_slices` is how many its pool has at this `generation`; `cards` are UUIDs."""

    driver: str
    node: str
    pool: str
    generation: int
    pool_slices: int
    cards: tuple[str, ...] = ()


class Claim(Noun, frozen=True, kw_only=True):
    """A PersistentVolumeClaim."""

    name: str
    phase: str
    storage_class: str = ""


class Volume(Noun, frozen=True, kw_only=True):
    """A PersistentVolume that is meant for a claim of the namespace."""

    name: str
    phase: str
    claim: str


class DnsPod(Noun, frozen=True, kw_only=True):
    name: str
    ready: bool


class Right(NamedTuple):
    """Something that `apply` does: a resource (`deployments.apps`), a verb, and where."""

    resource: str
    verb: str
    namespaced: bool = True


class Cluster(Noun, frozen=True, kw_only=True):
    """`problem`: why the API server does not answer; everything else is unknown then. `namespace`: its
    labels; None where there is none. `device_classes` and `slices`: None where the API has no such kind.
    `sandbox_failures`: messages of the namespace's events. `denied`: what this user may not do.
    `unreadable`: kind → why it may not be read."""

    problem: str = ""
    version: str = ""
    nodes: tuple[ClusterNode, ...] | None = None
    runtime_classes: Mapping[str, str] | None = None
    namespace: Mapping[str, str] | None = None
    device_classes: tuple[str, ...] | None = None
    slices: tuple[Slice, ...] | None = None
    storage_classes: tuple[str, ...] | None = None
    claims: tuple[Claim, ...] | None = None
    volumes: tuple[Volume, ...] | None = None
    sandbox_failures: tuple[str, ...] | None = None
    dns: tuple[DnsPod, ...] | None = None
    denied: tuple[Right, ...] | None = None
    unreadable: Mapping[str, str] = {}


WRITTEN = (
    ("services", True),
    ("configmaps", True),
    ("secrets", True),
    ("serviceaccounts", True),
    ("persistentvolumeclaims", True),
    ("deployments.apps", True),
    ("daemonsets.apps", True),
    ("poddisruptionbudgets.policy", True),
    ("networkpolicies.networking.k8s.io", True),
    ("namespaces", False),
    ("persistentvolumes", False),
    ("storageclasses.storage.k8s.io", False),
    ("runtimeclasses.node.k8s.io", False),
    ("priorityclasses.scheduling.k8s.io", False),
    ("clusterroles.rbac.authorization.k8s.io", False),
    ("clusterrolebindings.rbac.authorization.k8s.io", False),
)
"""What a stack consists of, and whether it lies in the namespace."""
VERBS = ("create", "patch", "delete")
"""Server-side apply patches, and creates what is not there; pruning deletes."""
DRA_WRITTEN = ("resourceclaimtemplates.resource.k8s.io", True)
MONITORING_WRITTEN = (
    ("servicemonitors.monitoring.coreos.com", True),
    ("podmonitors.monitoring.coreos.com", True),
)
"""Where they are asked for: other clusters have no such kinds."""


def rights(*, dra: bool, monitoring: bool) -> tuple[Right, ...]:
    """What `apply` does. What lies outside the namespace is not pruned with every change of a plan."""
    kinds = (*WRITTEN, *([DRA_WRITTEN] if dra else []), *(MONITORING_WRITTEN if monitoring else ()))
    return tuple(
        Right(resource, verb, namespaced)
        for resource, namespaced in kinds
        for verb in VERBS
        if verb != "delete" or namespaced
    )
