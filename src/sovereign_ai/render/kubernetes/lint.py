"""Our own rules for manifests, beside the schemas: what a person who knows them would send back. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from sovereign_ai.render.kubernetes import labels as names
from sovereign_ai.render.kubernetes.labels import Object

WORKLOADS = {"Deployment", "DaemonSet"}
_PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


def lint(objects: Sequence[Object]) -> list[str]:
    """`Kind/name: what is wrong`, of all of them."""
    found = []
    for one in objects:
        where = f"{one['kind']}/{one['metadata']['name']}"
        found += [f"{where}: {problem}" for rule in _RULES for problem in rule(one)]
    return found


def restricted_problems(pod: Object) -> Iterator[str]:
    """What Pod Security's level `restricted` would refuse in a pod's specification
    (https://kubernetes.io/docs/concepts/security/pod-security-standards/)."""
    for volume in pod.get("volumes", ()):
        if not set(volume) & {"configMap", "emptyDir", "persistentVolumeClaim", "secret", "projected"}:
            yield f"volume {volume['name']} is of a kind that `restricted` refuses"
    security = pod.get("securityContext", {})
    if security.get("runAsNonRoot") is not True or not security.get("runAsUser"):
        yield "the pod may run as root"
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "the pod has no seccomp profile"
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.get(key):
            yield f"the pod has {key}"
    for container in containers(pod):
        context = container.get("securityContext", {})
        if context.get("allowPrivilegeEscalation") is not False or context.get("privileged"):
            yield f"{container['name']} may gain privileges"
        if context.get("capabilities") != {"drop": ["ALL"]}:
            yield f"{container['name']} keeps capabilities"


def containers(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", ()), *pod["containers"]]


def _ours(one: Object) -> Iterator[str]:
    labels = one["metadata"].get("labels", {})
    if any(key not in labels for key in (names.PART_OF, names.MANAGED_BY, names.STACK)):
        yield "lacks the labels by which it is found again"


def _pods(one: Object) -> Iterator[str]:
    if one["kind"] not in WORKLOADS:
        return
    pod = one["spec"]["template"]["spec"]
    for container in containers(pod):
        yield from _container(container, is_main=container in pod["containers"])
    if "serviceAccountName" not in pod:
        yield "runs as the namespace's default account"


def _container(container: Object, *, is_main: bool) -> Iterator[str]:
    name, resources = container["name"], container.get("resources", {})
    if "memory" not in resources.get("limits", {}) or "cpu" not in resources.get("requests", {}):
        yield f"{name} lacks a memory limit or a CPU request"
    image, at, _ = container["image"].partition("@")
    if not at and (":" not in image.rpartition("/")[2] or image.endswith(":latest")):
        yield f"{name}: {image} has no fixed tag"
    if container.get("securityContext", {}).get("readOnlyRootFilesystem") is not True:
        yield f"{name} may write to its root file system"
    if is_main and any(probe not in container for probe in _PROBES):
        yield f"{name} lacks a probe"
    if not any(one["name"] == "NVIDIA_VISIBLE_DEVICES" for one in container.get("env", ())):
        claims = resources.get("claims") or any(
            "nvidia.com/gpu" in key for key in resources.get("limits", {})
        )
        if not claims and not _is_cpu(container):
            yield f"{name} would see all cards"


def _is_cpu(container: Object) -> bool:
    return any(one["name"] == "CUDA_VISIBLE_DEVICES" for one in container.get("env", ()))


def _shared_memory(one: Object) -> Iterator[str]:
    """Its pages count against the memory limit."""
    if one["kind"] != "Deployment":
        return
    pod = one["spec"]["template"]["spec"]
    for volume in pod.get("volumes", ()):
        if volume.get("emptyDir", {}).get("medium") == "Memory":
            limit = pod["containers"][0]["resources"]["limits"]["memory"]
            if _gib(limit) <= _gib(volume["emptyDir"]["sizeLimit"]):
                yield f"a memory limit of {limit} cannot hold /dev/shm"


def _gib(quantity: str) -> float:
    return float(quantity[:-2]) / (1 if quantity.endswith("Gi") else 1024)


_RULES: tuple[Callable[[Object], Iterator[str]], ...] = (_ours, _pods, _shared_memory)
