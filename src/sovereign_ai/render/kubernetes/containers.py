"""What all pods of the stack have in common. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sovereign_ai.config import ClusterSettings
from sovereign_ai.render.kubernetes.labels import Object

USER = 1000
"""Triton's image has this user (triton-server), and so has the control plane's."""

MIB, GIB = 1 << 20, 1 << 30

CONTAINER_SECURITY: Object = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
"""With POD_SECURITY: what Pod Security's `restricted` asks for, and a root file system that nobody writes."""

POD_SECURITY: Object = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}


def environment(values: Mapping[str, str]) -> list[Object]:
    return [{"name": name, "value": value} for name, value in sorted(values.items())]


def quantity(size_bytes: int) -> str:
    """Whole GiB where it is so, else MiB, rounded up: `32Gi`."""
    if size_bytes % GIB == 0:
        return f"{size_bytes // GIB}Gi"
    return f"{-(-size_bytes // MIB)}Mi"


def writable(name: str, path: str, size_bytes: int) -> tuple[Object, Object]:
    """A volume that a container may write, and its mount: bounded, and gone with the pod."""
    volume = {"name": name, "emptyDir": {"sizeLimit": quantity(size_bytes)}}
    return volume, {"name": name, "mountPath": path}


def weights(settings: ClusterSettings, claim: str) -> tuple[Object, Object]:
    """The models' drive, and its mount at the same path as on the node: read-only, submounts too where the
    kernel can."""
    path = str(settings.storage.path)
    mount = {"name": "weights", "mountPath": path, "readOnly": True, "recursiveReadOnly": "IfPossible"}
    if settings.storage.kind == "local":
        source: Object = {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}}
    else:
        # not DirectoryOrCreate: an empty folder would take the place of a drive that is not mounted
        source = {"hostPath": {"path": path, "type": "Directory"}}
    return {"name": "weights", **source}, mount


def image(settings: ClusterSettings, name: str) -> Object:
    return {"image": name, "imagePullPolicy": settings.pull_policy}


def pod(settings: ClusterSettings, **fields: Any) -> Object:
    """A pod's specification on top of what all have."""
    base: Object = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": POD_SECURITY,
    }
    if settings.pull_secrets:
        base["imagePullSecrets"] = [{"name": name} for name in settings.pull_secrets]
    return {**base, **fields}
