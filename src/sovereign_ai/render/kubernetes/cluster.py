"""What stands around the pods: the namespace, who may do what, who may talk to whom. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from sovereign_ai.config import ClusterSettings
from sovereign_ai.render.kubernetes import labels as names
from sovereign_ai.render.kubernetes.engine import COMPONENT, HTTP, METRICS, priority_class
from sovereign_ai.render.kubernetes.gateway import COMPONENT as GATEWAY
from sovereign_ai.render.kubernetes.gateway import NAME as GATEWAY_NAME
from sovereign_ai.render.kubernetes.gateway import PORT
from sovereign_ai.render.kubernetes.labels import Object, described, owned
from sovereign_ai.render.kubernetes.pinning import OWN_RUNTIME_CLASS
from sovereign_ai.spec import Tier

ENGINE_ACCOUNT = "sovereign-engine"
NETWORK, RBAC = "networking.k8s.io/v1", "rbac.authorization.k8s.io/v1"
NAMESPACE_NAME = "kubernetes.io/metadata.name"
"""A label that every namespace has, and nobody can change."""

AGENT_PORT = 9400

HIGHEST_PRIORITY, PRIORITY_STEP = 100_000, 10_000


def level(settings: ClusterSettings) -> str:
    """Pod Security's level: hostPath volumes need `privileged`, everything else holds `restricted`."""
    return "privileged" if settings.storage.kind == "hostPath" else "restricted"


def namespace(settings: ClusterSettings) -> Object:
    pod_security = "pod-security.kubernetes.io"
    labels = {
        **owned(settings.namespace),
        f"{pod_security}/enforce": level(settings),
        f"{pod_security}/warn": "restricted",
        f"{pod_security}/audit": "restricted",
    }
    return described("Namespace", settings.namespace, None, labels)


def runtime_classes(settings: ClusterSettings) -> list[Object]:
    """Ours, where the cluster has none. It is shared by all stacks of the cluster."""
    if settings.runtime_class is not None:
        return []
    labels = owned(settings.namespace)
    return [
        described("RuntimeClass", OWN_RUNTIME_CLASS, None, labels, api="node.k8s.io/v1", handler="nvidia")
    ]


def priority_classes(settings: ClusterSettings, tiers: Sequence[Tier]) -> list[Object]:
    """The first tier's pods are the last to be evicted; nobody is preempted, since the plan has a place for
    all."""
    return [
        described(
            "PriorityClass",
            priority_class(settings, tier),
            None,
            owned(settings.namespace),
            api="scheduling.k8s.io/v1",
            value=max(0, HIGHEST_PRIORITY - PRIORITY_STEP * (tier.rank - 1)),
            preemptionPolicy="Never",
            globalDefault=False,
            description=f"tier {tier.name} of {settings.namespace}",
        )
        for tier in tiers
    ]


def accounts(settings: ClusterSettings) -> list[Object]:
    """Engines and gateway never talk to the API server: accounts without rights, and without a token."""
    return [
        described(
            "ServiceAccount",
            name,
            settings.namespace,
            owned(settings.namespace),
            automountServiceAccountToken=False,
        )
        for name in (ENGINE_ACCOUNT, GATEWAY_NAME)
    ]


def policies(settings: ClusterSettings, *, upstreams: bool) -> list[Object]:
    """Nobody comes in but through the gateway, and engines go nowhere. `upstreams`: whether the gateway asks
    servers outside of the stack."""
    scraped = {
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"namespaceSelector": {}}], "ports": [_port(AGENT_PORT)]}],
    }
    return [
        _policy(settings, "default-deny", {}, {"policyTypes": ["Ingress"]}),
        *([_policy(settings, "agent", {names.COMPONENT: "agent"}, scraped)] if settings.monitoring else []),
        _policy(settings, "engines", {names.COMPONENT: COMPONENT}, _engines(settings)),
        _policy(settings, "gateway", {names.COMPONENT: GATEWAY}, _gateway(settings, upstreams)),
    ]


def _policy(settings: ClusterSettings, name: str, selected: dict[str, str], fields: Object) -> Object:
    spec = {"podSelector": {"matchLabels": selected} if selected else {}, **fields}
    return described(
        "NetworkPolicy",
        f"sovereign-{name}",
        settings.namespace,
        owned(settings.namespace),
        api=NETWORK,
        spec=spec,
    )


def _engines(settings: ClusterSettings) -> Object:
    from_gateway = {"podSelector": {"matchLabels": {names.COMPONENT: GATEWAY}}}
    ingress: list[Object] = [{"from": [from_gateway], "ports": [_port(HTTP)]}]
    if settings.monitoring:
        ingress.append({"from": [{"namespaceSelector": {}}], "ports": [_port(METRICS)]})
    return {"policyTypes": ["Ingress", "Egress"], "ingress": ingress, "egress": []}


def _gateway(settings: ClusterSettings, upstreams: bool) -> Object:
    clients = [settings.namespace, *settings.clients]
    sources: list[Object] = [
        {"namespaceSelector": {"matchLabels": {NAMESPACE_NAME: name}}} for name in dict.fromkeys(clients)
    ]
    ingress = [{"from": sources, "ports": [_port(PORT)]}]
    if upstreams:
        return {"policyTypes": ["Ingress"], "ingress": ingress}
    to_engines = {"podSelector": {"matchLabels": {names.COMPONENT: COMPONENT}}}
    dns = {"namespaceSelector": {"matchLabels": {NAMESPACE_NAME: "kube-system"}}}
    egress = [
        {"to": [to_engines], "ports": [_port(HTTP)]},
        {"to": [dns], "ports": [_port(53), _port(53, "UDP")]},
    ]
    return {"policyTypes": ["Ingress", "Egress"], "ingress": ingress, "egress": egress}


def _port(number: int, protocol: str = "TCP") -> Object:
    return {"port": number, "protocol": protocol}
