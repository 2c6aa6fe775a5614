"""The node's own object in the cluster, through the Kubernetes client. The agent's only door to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sovereign_ai.agent.knowledge import Change
from sovereign_ai.inventory.cluster import cluster_errors, open_client
from sovereign_ai.inventory.published import encode_time

if TYPE_CHECKING:
    from lightkube import Client

AGENT = "sovereign-agent"
"""Who the fields belong to that the agent writes, and whom its events name as their source."""
EVENTS_NAMESPACE = "default"
"""Of events about what has no namespace, as a node."""
MESSAGE_MAX = 1000
"""Of an event's message; the API server refuses more than 1024 bytes."""


class NodeFacts(NamedTuple):
    """What the node's object says now."""

    annotations: Mapping[str, str]
    capacity: Mapping[str, str]
    allocatable: Mapping[str, str]


class NodeApi(Protocol):
    """Each call raises InventoryError where the API server does not do it."""

    def read(self) -> NodeFacts: ...
    def annotate(self, annotations: Mapping[str, str]) -> None: ...
    def set_tokens(self, tokens: Mapping[str, str]) -> None: ...
    def tell(self, change: Change, moment: float, serial: int) -> None: ...


@contextmanager
def open_node(name: str, kubeconfig: Path | None, context: str | None) -> Iterator[NodeApi]:
    """Raises ConfigError where there are no credentials."""
    with open_client(kubeconfig, context, manager=AGENT) as client:
        yield ClusterNode(client, name)


class ClusterNode:
    """One node, as `NodeApi` has it."""

    def __init__(self, client: Client, name: str) -> None:
        self._client, self._name = client, name

    def read(self) -> NodeFacts:
        from lightkube.resources.core_v1 import Node

        with cluster_errors(f"reading node {self._name}"):
            found: dict[str, Any] = self._client.get(Node, self._name).to_dict()
        status = found.get("status") or {}
        annotations = (found.get("metadata") or {}).get("annotations") or {}
        capacity, allocatable = (status.get(key) or {} for key in ("capacity", "allocatable"))
        return NodeFacts(annotations, _texts(capacity), _texts(allocatable))

    def annotate(self, annotations: Mapping[str, str]) -> None:
        from lightkube.resources.core_v1 import Node

        with cluster_errors(f"annotating node {self._name}"):
            self._client.patch(Node, self._name, {"metadata": {"annotations": dict(annotations)}})

    def set_tokens(self, tokens: Mapping[str, str]) -> None:
        """Capacity is ours to set; the kubelet copies it to allocatable, which the scheduler reads, within
        ten seconds. Writing both closes a lost card to new pods at once."""
        from lightkube.resources.core_v1 import NodeStatus

        status = {"capacity": dict(tokens), "allocatable": dict(tokens)}
        with cluster_errors(f"setting the tokens of node {self._name}"):
            self._client.patch(NodeStatus, self._name, {"status": status})

    def tell(self, change: Change, moment: float, serial: int) -> None:
        """`kubectl describe node` finds events of a node by its name as the uid, as the kubelet's."""
        from lightkube.models.core_v1 import EventSource, ObjectReference
        from lightkube.models.meta_v1 import ObjectMeta
        from lightkube.resources.core_v1 import Event

        when: Any = encode_time(moment)
        about = ObjectReference(kind="Node", apiVersion="v1", name=self._name, uid=self._name)
        name = f"{self._name}.{int(moment * 1000):x}.{serial:x}"
        event = Event(
            metadata=ObjectMeta(name=name, namespace=EVENTS_NAMESPACE),
            involvedObject=about,
            reason=change.reason,
            message=_shortened(change.message),
            type="Warning" if change.warning else "Normal",
            source=EventSource(component=AGENT, host=self._name),
            firstTimestamp=when,
            lastTimestamp=when,
            count=1,
        )
        with cluster_errors(f"writing an event of node {self._name}"):
            self._client.create(event)


def _texts(resources: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in resources.items()}


def _shortened(message: str) -> str:
    return message.encode()[:MESSAGE_MAX].decode(errors="ignore")
