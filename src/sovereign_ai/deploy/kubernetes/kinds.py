"""Every kind of object that a stack has: the one list that applying, pruning and deleting go by. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from sovereign_ai.errors import ConfigError
from sovereign_ai.render.kubernetes.labels import COMPONENT, Object, owned
from sovereign_ai.render.kubernetes.monitoring import OPERATOR


class Kind(NamedTuple):
    api: str
    """apiVersion: `apps/v1`."""
    name: str
    plural: str
    namespaced: bool = True

    def path(self, namespace: str, name: str = "") -> str:
        """Of the object, or of all of them; `namespace` is left out where the kind has none."""
        root = f"/apis/{self.api}" if "/" in self.api else f"/api/{self.api}"
        place = f"/namespaces/{namespace}" if self.namespaced else ""
        return f"{root}{place}/{self.plural}" + (f"/{name}" if name else "")


NAMESPACE = Kind("v1", "Namespace", "namespaces", namespaced=False)
SECRET = Kind("v1", "Secret", "secrets")
DEPLOYMENT = Kind("apps/v1", "Deployment", "deployments")
DAEMON_SET = Kind("apps/v1", "DaemonSet", "daemonsets")
NODE = Kind("v1", "Node", "nodes", namespaced=False)
POD = Kind("v1", "Pod", "pods")
EVENT = Kind("v1", "Event", "events")

WORKLOADS = (DEPLOYMENT, DAEMON_SET)

KINDS = (
    NAMESPACE,
    Kind("node.k8s.io/v1", "RuntimeClass", "runtimeclasses", namespaced=False),
    Kind("scheduling.k8s.io/v1", "PriorityClass", "priorityclasses", namespaced=False),
    Kind("storage.k8s.io/v1", "StorageClass", "storageclasses", namespaced=False),
    Kind("v1", "PersistentVolume", "persistentvolumes", namespaced=False),
    Kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims"),
    Kind("v1", "ServiceAccount", "serviceaccounts"),
    Kind("rbac.authorization.k8s.io/v1", "ClusterRole", "clusterroles", namespaced=False),
    Kind("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "clusterrolebindings", namespaced=False),
    Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    Kind("v1", "ConfigMap", "configmaps"),
    SECRET,
    Kind("resource.k8s.io/v1", "ResourceClaimTemplate", "resourceclaimtemplates"),
    Kind("v1", "Service", "services"),
    DAEMON_SET,
    DEPLOYMENT,
    Kind("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    Kind(OPERATOR, "ServiceMonitor", "servicemonitors"),
    Kind(OPERATOR, "PodMonitor", "podmonitors"),
)
"""In the order of an application; deleting goes the other way."""

STORAGE = ("PersistentVolumeClaim", "PersistentVolume", "StorageClass", "Namespace")
"""What weights hang on, and what they lie in: never pruned, and deleted only where a person says so."""

SHARED = ("RuntimeClass", "StorageClass")
"""All stacks of a cluster have the same one."""

LAST_GOOD = "last-good"
"""Component of the Secrets that remember applied manifests: ours, but never rendered."""

_BY_NAME: Mapping[tuple[str, str], Kind] = {(kind.api, kind.name): kind for kind in KINDS}


def kind_of(one: Object) -> Kind:
    """Raises ConfigError for a kind that no stack has."""
    api, name = str(one.get("apiVersion")), str(one.get("kind"))
    if found := _BY_NAME.get((api, name)):
        return found
    raise ConfigError(f"{title(one)}: `{name}` of {api} is not a kind that stacks have")


def name_of(one: Object) -> str:
    return str(one["metadata"]["name"])


def title(one: Object) -> str:
    """`Deployment/triton-rig`."""
    return f"{one.get('kind')}/{(one.get('metadata') or {}).get('name')}"


def labels_of(one: Object) -> Mapping[str, str]:
    return one["metadata"].get("labels") or {}


def is_ours(one: Object, namespace: str) -> bool:
    """Whether it carries all labels of the stack of that namespace."""
    return owned(namespace).items() <= labels_of(one).items()


def is_record(one: Object) -> bool:
    return one["kind"] == SECRET.name and labels_of(one).get(COMPONENT) == LAST_GOOD
