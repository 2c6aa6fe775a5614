"""The node agent: a pod on every node with cards, which reports them and keeps their tokens true. Pure."""

from __future__ import annotations

from sovereign_ai.config import ClusterSettings
from sovereign_ai.render.kubernetes import labels as names
from sovereign_ai.render.kubernetes.cluster import AGENT_PORT as PORT
from sovereign_ai.render.kubernetes.cluster import RBAC
from sovereign_ai.render.kubernetes.containers import CONTAINER_SECURITY, GIB, image, pod, writable
from sovereign_ai.render.kubernetes.labels import Object, described
from sovereign_ai.render.kubernetes.pinning import VISIBLE, mode_of, runtime_class

NAME, COMPONENT = "sovereign-agent", "agent"

RULES = [
    # of its own node alone cannot be said in RBAC; the agent asks for no other
    {"apiGroups": [""], "resources": ["nodes"], "verbs": ["get", "patch"]},
    {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]},
]


def agent(settings: ClusterSettings, nodes: list[str]) -> list[Object]:
    """For `nodes`, which have cards. Nothing where there are none, or where it is not wanted."""
    if not settings.agent or not nodes:
        return []
    labels = {**names.owned(settings.namespace), names.NAME: NAME, names.COMPONENT: COMPONENT}
    role = names.dns_label(f"{NAME}-{settings.namespace}")
    subject = {"kind": "ServiceAccount", "name": NAME, "namespace": settings.namespace}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}
    return [
        described("ServiceAccount", NAME, settings.namespace, labels, automountServiceAccountToken=False),
        described("ClusterRole", role, None, labels, api=RBAC, rules=RULES),
        described("ClusterRoleBinding", role, None, labels, api=RBAC, roleRef=reference, subjects=[subject]),
        _daemon_set(settings, nodes, labels),
    ]


def _daemon_set(settings: ClusterSettings, nodes: list[str], labels: dict[str, str]) -> Object:
    selector = {names.NAME: NAME}
    template = {"metadata": {"labels": labels}, "spec": _pod(settings, nodes)}
    spec = {
        "selector": {"matchLabels": selector},
        "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
        "template": template,
    }
    return described("DaemonSet", NAME, settings.namespace, labels, api="apps/v1", spec=spec)


def _pod(settings: ClusterSettings, nodes: list[str]) -> Object:
    tmp, tmp_mount = writable("tmp", "/tmp", GIB)  # noqa: S108  in the pod
    where = {"key": names.HOSTNAME, "operator": "In", "values": sorted(nodes)}
    terms = [{"matchExpressions": [where]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    return pod(
        settings,
        serviceAccountName=NAME,
        automountServiceAccountToken=True,
        runtimeClassName=runtime_class(settings),
        terminationGracePeriodSeconds=10,
        affinity={"nodeAffinity": required},
        # it says what is wrong with a node: also where nothing else may run
        tolerations=[{"operator": "Exists"}],
        containers=[_container(settings, tmp_mount)],
        volumes=[tmp],
    )


def _container(settings: ClusterSettings, tmp_mount: Object) -> Object:
    tokens = mode_of(settings) == "tokens"
    return {
        "name": "agent",
        **image(settings, settings.control_image),
        "command": ["sovereign", "agent"],
        "args": [f"--port={PORT}", *([] if tokens else ["--no-tokens"])],
        "env": [
            {"name": VISIBLE, "value": "all"},
            {"name": "NVIDIA_DRIVER_CAPABILITIES", "value": "utility"},
            {"name": "HOME", "value": "/tmp"},  # noqa: S108  in the pod
            {"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        ],
        "ports": [{"name": "metrics", "containerPort": PORT, "protocol": "TCP"}],
        "startupProbe": _probe(2, 60),
        "livenessProbe": _probe(15, 4),
        "readinessProbe": _probe(15, 2),
        "resources": {
            "requests": {"cpu": "50m", "memory": "96Mi"},
            "limits": {"memory": "256Mi"},
        },
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [tmp_mount],
    }


def _probe(period_s: int, failures: int) -> Object:
    get = {"path": "/healthz", "port": "metrics"}
    return {"httpGet": get, "periodSeconds": period_s, "timeoutSeconds": 3, "failureThreshold": failures}
