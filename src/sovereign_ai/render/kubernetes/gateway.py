"""The gateway in the cluster: routes, keys, and replicas spread over the nodes with the models. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from sovereign_ai.config import ClusterSettings, GatewaySettings, encode_gateway
from sovereign_ai.render.kubernetes import labels as names
from sovereign_ai.render.kubernetes.containers import (
    CONTAINER_SECURITY,
    GIB,
    environment,
    image,
    pod,
    weights,
    writable,
)
from sovereign_ai.render.kubernetes.labels import Object, described
from sovereign_ai.render.kubernetes.pinning import NO_DEVICES
from sovereign_ai.render.kubernetes.storage import claim_name
from sovereign_ai.spec import Routes

COMPONENT, NAME = "gateway", "sovereign-gateway"
PORT = 8000
ANY = "0.0.0.0"  # noqa: S104  in the pod, behind a NetworkPolicy
ROUTES, KEYS, LEDGER = "/etc/sovereign/routes", "/etc/sovereign/keys", "/var/lib/sovereign"
KEYS_NAME = "sovereign-keys"

DRAIN_S = 60
"""How long streams may go on when a replica is to end."""


def gateway(
    settings: ClusterSettings, door: GatewaySettings, routes: Routes, keys: str, nodes: Sequence[str]
) -> list[Object]:
    """`keys`: the digests of API keys, as JSON. `nodes` have the models, whose tokenizers and chat templates
    the gateway reads."""
    labels = {**names.owned(settings.namespace), names.NAME: NAME, names.COMPONENT: COMPONENT}
    text = msgspec.json.format(msgspec.json.encode(routes), indent=2).decode() + "\n"
    # its name stays: the gateway takes over routes that change while it runs
    routing = described("ConfigMap", f"{NAME}-routes", settings.namespace, labels, data={"routes.json": text})
    secret = described(
        "Secret", KEYS_NAME, settings.namespace, labels, type="Opaque", stringData={"keys.json": keys}
    )
    deployments = [
        _deployment(settings, door, labels, node, count)
        for node, count in _shares(settings.gateway_replicas, nodes)
    ]
    return [routing, secret, _service(settings, labels), *deployments, _budget(settings, labels)]


def _shares(replicas: int, nodes: Sequence[str]) -> list[tuple[str, int]]:
    """Node → replicas, as even as it gets: a claim of the models' drive binds a pod to its node."""
    return [
        (node, replicas // len(nodes) + (index < replicas % len(nodes)))
        for index, node in enumerate(nodes)
        if replicas // len(nodes) + (index < replicas % len(nodes))
    ]


def _service(settings: ClusterSettings, labels: dict[str, str]) -> Object:
    ports = [{"name": "http", "port": PORT, "targetPort": "http", "protocol": "TCP"}]
    spec = {"type": "ClusterIP", "selector": {names.NAME: NAME}, "ports": ports}
    return described("Service", NAME, settings.namespace, labels, spec=spec)


def _budget(settings: ClusterSettings, labels: dict[str, str]) -> Object:
    spec = {
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": {names.NAME: NAME}},
    }
    return described("PodDisruptionBudget", NAME, settings.namespace, labels, api="policy/v1", spec=spec)


def _deployment(
    settings: ClusterSettings, door: GatewaySettings, labels: dict[str, str], node: str, replicas: int
) -> Object:
    instance = names.dns_label(f"{NAME}-{node}")
    selector = {names.NAME: NAME, names.INSTANCE: instance}
    its = {**labels, names.INSTANCE: instance}
    template = {"metadata": {"labels": its}, "spec": _pod(settings, door, node, selector)}
    spec = {
        "replicas": replicas,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
        "revisionHistoryLimit": 3,
        "progressDeadlineSeconds": 600,
        "selector": {"matchLabels": selector},
        "template": template,
    }
    return described("Deployment", instance, settings.namespace, its, api="apps/v1", spec=spec)


def _pod(settings: ClusterSettings, door: GatewaySettings, node: str, selector: dict[str, str]) -> Object:
    drive, drive_mount = weights(settings, claim_name(node))
    ledger, ledger_mount = writable("ledger", LEDGER, 2 * GIB)
    tmp, tmp_mount = writable("tmp", "/tmp", GIB)  # noqa: S108  in the pod
    mounts = [
        drive_mount,
        ledger_mount,
        tmp_mount,
        {"name": "routes", "mountPath": ROUTES, "readOnly": True},
        {"name": "keys", "mountPath": KEYS, "readOnly": True},
    ]
    spread = {
        "maxSkew": 1,
        "topologyKey": names.HOSTNAME,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": selector},
    }
    return pod(
        settings,
        serviceAccountName=NAME,
        terminationGracePeriodSeconds=DRAIN_S,
        nodeSelector={names.HOSTNAME: node},
        topologySpreadConstraints=[spread],
        containers=[_container(settings, door, mounts)],
        volumes=[
            drive,
            ledger,
            tmp,
            {"name": "routes", "configMap": {"name": f"{NAME}-routes"}},
            {"name": "keys", "secret": {"secretName": KEYS_NAME}},
        ],
    )


def _container(settings: ClusterSettings, door: GatewaySettings, mounts: list[Object]) -> Object:
    # replicas take the place of workers
    inside = msgspec.structs.replace(door, host=ANY, port=PORT, tls=None, workers=1)
    return {
        "name": "gateway",
        **image(settings, settings.control_image),
        "command": ["sovereign", "gateway"],
        "args": [
            f"--routes={ROUTES}/routes.json",
            f"--ledger={LEDGER}/ledger.sqlite",
            f"--keys={KEYS}/keys.json",
            f"--settings={encode_gateway(inside)}",
        ],
        "env": environment({**NO_DEVICES, "HOME": LEDGER, "SOVEREIGN_HOME": LEDGER}),
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        # readiness is not that of the models: who asks while one loads waits in the queue
        "startupProbe": _probe(2, 60),
        "livenessProbe": _probe(10, 6),
        "readinessProbe": _probe(5, 2),
        "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
        "resources": {
            "requests": {"cpu": "100m", "memory": "192Mi"},
            "limits": {"memory": "1Gi"},
        },
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": mounts,
    }


def _probe(period_s: int, failures: int) -> Object:
    get = {"path": "/healthz", "port": "http"}
    return {"httpGet": get, "periodSeconds": period_s, "timeoutSeconds": 3, "failureThreshold": failures}
