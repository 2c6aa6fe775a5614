"""Asks a cluster's API server what its fitness is judged by. The one door to the client for it; reading only.

What this user may not read is told in `unreadable`, and the rest is read all the same.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from sovereign_ai.errors import InventoryError
from sovereign_ai.inventory.cluster_facts import (
    Claim,
    Cluster,
    ClusterNode,
    DnsPod,
    Right,
    Slice,
    Volume,
)
from sovereign_ai.spec import Node

if TYPE_CHECKING:
    from lightkube import Client
    from lightkube.config.kubeconfig import SingleConfig

T = TypeVar("T")

TIMEOUT_S = 10
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
DNS_LABELS = {"k8s-app": "kube-dns"}
SANDBOX_EVENTS = {"reason": "FailedCreatePodSandBox"}
NO_KIND, FORBIDDEN = 404, 403
UNITS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15} | {
    f"{letter}i": 1 << 10 * power for power, letter in enumerate("KMGTP", start=1)
}
"""Suffixes of a quantity (k8s.io/apimachinery/pkg/api/resource); `m` and exponents do not come with memory
and cards."""


def read_cluster(
    kubeconfig: Path | None,
    namespace: str,
    annotation: str,
    rights: Sequence[Right],
    context: str | None = None,
) -> Cluster:
    """`kubeconfig`: a file; None takes the pod's own account, else ~/.kube/config. `context`: of that file,
    default its current one. `annotation`: where the agent writes its node's inventory. Raises InventoryError
    where the client is not installed."""
    try:
        from lightkube import Client
    except ImportError as error:
        hint = "install it: pip install 'sovereign-ai[kubernetes]'"
        raise InventoryError("asking a cluster needs the client of Kubernetes", hint) from error
    try:
        config = _config(kubeconfig, context)
        client = Client(config, namespace=namespace)
    except _unusable() as error:
        return Cluster(problem=f"no way to a cluster: {_told(error)}")
    try:
        version = _version(config)
    except _refusals() as error:
        client.close()
        return Cluster(problem=f"{config.cluster.server} does not answer: {_reason(error)}")
    try:
        return _Reader(client, namespace, annotation).read(version, rights)
    finally:
        client.close()


def _unusable() -> tuple[type[Exception], ...]:
    """What a kubeconfig that is not one leads to."""
    from lightkube.core.exceptions import ConfigError

    return (ConfigError, OSError, YAMLError, ValueError, KeyError, TypeError, AttributeError, AssertionError)


def _refusals() -> tuple[type[Exception], ...]:
    """A server that does not answer, refuses, or answers with something else."""
    import httpx2

    return (httpx2.HTTPError, httpx2.InvalidURL, ValueError, OSError)


def _told(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def _config(path: Path | None, context: str | None) -> SingleConfig:
    from lightkube.config.kubeconfig import KubeConfig
    from lightkube.core.exceptions import ConfigError

    if path is None and SERVICE_ACCOUNT.is_dir():
        found = KubeConfig.from_service_account().get(context)
    else:
        path = (path or Path("~/.kube/config")).expanduser()
        settings = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
        found = KubeConfig.from_dict(settings, fname=path).get(context)
    if found is None:
        raise ConfigError("it has no current context")
    return found


def _version(config: SingleConfig) -> str:
    """The client knows kinds only, and this is none: asked over a connection of the client's own making."""
    import httpx2
    from lightkube.config import client_adapter

    parameters = client_adapter.ConnectionParams(timeout=httpx2.Timeout(TIMEOUT_S))
    with client_adapter.Client(config, parameters) as connection:
        answer = connection.get("/version")
        answer.raise_for_status()
        return str(answer.json().get("gitVersion", ""))


def _reason(error: Exception) -> str:
    response = getattr(error, "response", None)
    code = getattr(response, "status_code", None)
    if code == FORBIDDEN:
        return "this user may not read them"
    return f"{code} {error}" if code else _told(error)


class _Reader:
    """One look at everything. A kind that is refused is noted, not raised."""

    def __init__(self, client: Client, namespace: str, annotation: str) -> None:
        self._client, self._namespace, self._annotation = client, namespace, annotation
        self._unreadable: dict[str, str] = {}

    def read(self, version: str, rights: Sequence[Right]) -> Cluster:
        from lightkube.resources.core_v1 import Node as NodeKind
        from lightkube.resources.core_v1 import PersistentVolume, PersistentVolumeClaim
        from lightkube.resources.node_v1 import RuntimeClass
        from lightkube.resources.resource_v1 import DeviceClass, ResourceSlice
        from lightkube.resources.storage_v1 import StorageClass

        nodes = self._list("nodes", NodeKind)
        classes = self._list("runtimeclasses", RuntimeClass)
        claims = self._list("persistentvolumeclaims", PersistentVolumeClaim, namespace=self._namespace)
        volumes = self._list("persistentvolumes", PersistentVolume)
        found = Cluster(
            version=version,
            nodes=_each(nodes, lambda one: _node(one, self._annotation)),
            runtime_classes=None if classes is None else {_name(one): one.handler for one in classes},
            namespace=self._labels(),
            device_classes=_each(self._list("deviceclasses", DeviceClass, optional=True), _name),
            slices=_each(self._list("resourceslices", ResourceSlice, optional=True), _slice),
            storage_classes=_each(self._list("storageclasses", StorageClass), _name),
            claims=_each(claims, _claim),
            volumes=_each(self._own(volumes), _volume),
            sandbox_failures=self._events(),
            dns=self._dns(),
            denied=self._denied(rights),
        )
        return msgspec.structs.replace(found, unreadable=dict(self._unreadable))

    def _try(self, what: str, ask: Callable[[], T], *, optional: bool = False) -> T | None:
        try:
            return ask()
        except _refusals() as error:
            response = getattr(error, "response", None)
            if not (optional and getattr(response, "status_code", None) == NO_KIND):
                self._unreadable[what] = _reason(error)
            return None

    def _list(self, what: str, kind: Any, *, optional: bool = False, **which: Any) -> list[Any] | None:
        """`optional`: older API servers do not have the kind."""
        return self._try(what, lambda: list(self._client.list(kind, **which)), optional=optional)

    def _own(self, volumes: list[Any] | None) -> list[Any] | None:
        """Those that are meant for claims of the namespace."""
        if volumes is None:
            return None
        return [
            one for one in volumes if one.spec.claimRef and one.spec.claimRef.namespace == self._namespace
        ]

    def _labels(self) -> dict[str, str] | None:
        from lightkube.resources.core_v1 import Namespace

        found = self._try("namespaces", lambda: self._client.get(Namespace, self._namespace), optional=True)
        return None if found is None else _mapping(getattr(found.metadata, "labels", None))

    def _events(self) -> tuple[str, ...] | None:
        from lightkube.resources.core_v1 import Event

        events = self._list("events", Event, namespace=self._namespace, fields=SANDBOX_EVENTS)
        messages = [one.message or "" for one in events or () if one.reason == SANDBOX_EVENTS["reason"]]
        return None if events is None else tuple(dict.fromkeys(messages))

    def _dns(self) -> tuple[DnsPod, ...] | None:
        from lightkube.resources.core_v1 import Pod

        pods = self._list("pods", Pod, namespace="kube-system", labels=DNS_LABELS)
        return _each(pods, lambda pod: DnsPod(name=_name(pod), ready=_condition(pod, "Ready")))

    def _denied(self, rights: Iterable[Right]) -> tuple[Right, ...] | None:
        """One question a right: the review of all rules at once may be incomplete, and says so."""
        return self._try("rights", lambda: tuple(right for right in rights if not self._allowed(right)))

    def _allowed(self, right: Right) -> bool:
        from lightkube.models.authorization_v1 import ResourceAttributes, SelfSubjectAccessReviewSpec
        from lightkube.resources.authorization_v1 import SelfSubjectAccessReview

        resource, _, group = right.resource.partition(".")
        where = self._namespace if right.namespaced else None
        asked = ResourceAttributes(group=group, resource=resource, verb=right.verb, namespace=where)
        review = SelfSubjectAccessReview(spec=SelfSubjectAccessReviewSpec(resourceAttributes=asked))
        answer = self._client.create(review)
        return answer.status is not None and bool(answer.status.allowed)


def _each(objects: list[Any] | None, make: Callable[[Any], T]) -> tuple[T, ...] | None:
    return None if objects is None else tuple(make(one) for one in objects)


def _name(found: Any) -> str:
    return str(found.metadata.name)


def _mapping(found: Mapping[str, Any] | None) -> dict[str, str]:
    return {key: str(value) for key, value in (found or {}).items()}


def _condition(found: Any, kind: str) -> bool:
    conditions = (found.status and found.status.conditions) or []
    return any(one.type == kind and one.status == "True" for one in conditions)


def quantity(text: str) -> int:
    """Kubernetes' `16Gi` or `2` as a number; 0 for what is none."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([A-Za-z]*)", text.strip())
    return int(float(found[1]) * UNITS.get(found[2], 0)) if found else 0


def _node(found: Any, annotation: str) -> ClusterNode:
    status, spec = found.status, found.spec
    allocatable = _mapping(status and status.allocatable)
    handlers = status and status.runtimeHandlers
    images = (status and status.images) or []
    return ClusterNode(
        name=_name(found),
        ready=_condition(found, "Ready"),
        cordoned=bool(spec and spec.unschedulable),
        taints=tuple(f"{one.key}={one.value}:{one.effect}" if one.value else f"{one.key}:{one.effect}"
                     for one in (spec and spec.taints) or ()),
        memory_bytes=quantity(allocatable.get("memory", "")),
        extended={name: quantity(amount) for name, amount in allocatable.items() if "/" in name},
        handlers=None if handlers is None else tuple(one.name or "" for one in handlers),
        images=tuple(name for image in images for name in image.names or ()),
        images_listed=len(images),
        cards=_cards((found.metadata.annotations or {}).get(annotation)),
    )  # fmt: skip


def _cards(text: str | None) -> tuple[str, ...] | None:
    """UUIDs in health of what the agent wrote; None for nothing, or nothing of ours."""
    try:
        node = msgspec.json.decode(text or "", type=Node)
    except msgspec.DecodeError:
        return None
    return tuple(device.id for device in node.devices if device.kind == "gpu" and not device.fault)


def _slice(found: Any) -> Slice:
    spec = found.spec
    return Slice(
        driver=spec.driver,
        node=spec.nodeName or "",
        pool=spec.pool.name,
        generation=spec.pool.generation,
        pool_slices=spec.pool.resourceSliceCount,
        cards=tuple(_uuids(spec.devices or ())),
    )


def _uuids(devices: Iterable[Any]) -> Iterator[str]:
    for device in devices:
        attribute = (device.attributes or {}).get("uuid")
        value = attribute.get("string") if isinstance(attribute, dict) else getattr(attribute, "string", None)
        if value:
            yield value


def _claim(found: Any) -> Claim:
    phase = (found.status and found.status.phase) or "Pending"
    return Claim(name=_name(found), phase=phase, storage_class=found.spec.storageClassName or "")


def _volume(found: Any) -> Volume:
    phase = (found.status and found.status.phase) or "Pending"
    return Volume(name=_name(found), phase=phase, claim=found.spec.claimRef.name or "")
